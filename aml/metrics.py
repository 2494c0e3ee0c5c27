"""Referring segmentation metrics as integer sums that add over batches, workers and machines, divided once at the end.

Per sentence I = |prediction and truth| and U = |prediction or truth| in pixels. mIoU (gIoU) is the mean of I/U, oIoU (cIoU) is
sum I / sum U, P@X the share of sentences with I/U >= X. An empty union counts 0. A P@X comparison is made in integers
(100 I >= X U), and I/U is added as an integer number of 2^-32, so that the sum does not depend on its order.

Where some expressions name nothing in the picture (gRefCOCO, Liu et al. 2023), a prediction of next to nothing is called empty. Such an
expression counts 1 in mIoU and nothing in I and U when the prediction is called empty, else 0 and U is what was predicted; a target
wrongly called empty has I = 0. N-acc is the share of expressions without a target that are called empty, T-acc of those with a target
that are not, and P@X is the share of those with a target.
"""

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F

THRESHOLDS = (50, 60, 70, 80, 90)

"""The X of P@X, in per cent."""

IOU_UNIT = 1 << 32

EMPTY_BELOW, EMPTY_SIDE = 50, 480

"""Fewer pixels than this in a square picture of this side are called empty; other pictures in proportion to their area."""


@dataclass
class Sums:
    """Integer sums over sentences; `a + b` is the sums of both sets."""

    n: int = 0
    intersection: int = 0
    union: int = 0
    iou: int = 0
    """Sum of I/U in units of 2^-32."""
    no_target: int = 0
    """Sentences that name nothing in the picture."""
    rejected: int = 0
    """Those of them whose prediction is called empty."""
    missed: int = 0
    """Sentences with a target whose prediction is called empty."""
    hits: tuple[int, ...] = (0,) * len(THRESHOLDS)
    """Sentences with a target and I/U >= X for each X of THRESHOLDS."""

    def __add__(self, other: "Sums") -> "Sums":
        plain = {
            f.name: getattr(self, f.name) + getattr(other, f.name)
            for f in fields(self)
            if f.name != "hits"
        }
        return Sums(**plain, hits=tuple(a + b for a, b in zip(self.hits, other.hits, strict=True)))

    def to_tensor(self) -> torch.Tensor:
        """(7 + len(THRESHOLDS),) int64, for an all-reduce."""
        return torch.tensor(
            [*(getattr(self, f.name) for f in fields(self) if f.name != "hits"), *self.hits],
            dtype=torch.int64,
        )

    @classmethod
    def from_tensor(cls, values: torch.Tensor) -> "Sums":
        *plain, hits = (
            *values[: -len(THRESHOLDS)].tolist(),
            tuple(values[-len(THRESHOLDS) :].tolist()),
        )
        return cls(*plain, hits)

    def scores(self) -> dict[str, float]:
        """mIoU, oIoU, P@0.5 ... P@0.9 as shares in [0, 1], and n. All 0 for no sentence.

        With sentences without a target among them also gIoU and cIoU (the same numbers under the names used there), N-acc and T-acc.
        """
        n, targeted = max(self.n, 1), self.n - self.no_target
        shares = {
            f"P@0.{x // 10}": hit / max(targeted, 1)
            for x, hit in zip(THRESHOLDS, self.hits, strict=True)
        }
        found = {
            "mIoU": self.iou / IOU_UNIT / n,
            "oIoU": self.intersection / max(self.union, 1),
            **shares,
            "n": self.n,
        }
        if not self.no_target:
            return found
        accuracies = {
            "N-acc": self.rejected / self.no_target,
            "T-acc": (targeted - self.missed) / max(targeted, 1),
        }
        return found | {"gIoU": found["mIoU"], "cIoU": found["oIoU"], **accuracies}


def counts(prediction: torch.Tensor, truth: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels in both and in either.   prediction, truth (B, H, W) bool -> I (B,), U (B,) int64"""
    return (prediction & truth).flatten(1).sum(1), (prediction | truth).flatten(1).sum(1)


def called_empty(pixels, area):
    """Whether a prediction of so many pixels in a picture of `area` pixels says "nothing there"; integers or int64 tensors.   -> bool"""
    return pixels * EMPTY_SIDE**2 < EMPTY_BELOW * area


def intersection_over_union(
    intersection: torch.Tensor, union: torch.Tensor, no_target: torch.Tensor, empty: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """I, U and I/U in units of 2^-32 under the rule for expressions without a target, all (B,) int64.

    no_target, empty (B,) bool: the expression names nothing, the prediction is called empty; both False leave I and U as they are.
    """
    intersection, union = (
        intersection.masked_fill(empty, 0),
        union.masked_fill(no_target & empty, 0),
    )
    # An empty union has I = 0; dividing by 1 makes it count 0.
    return (
        intersection,
        union,
        (intersection * IOU_UNIT // union.clamp(min=1)).masked_fill(no_target & empty, IOU_UNIT),
    )


def score(
    intersection: torch.Tensor,
    union: torch.Tensor,
    valid: torch.Tensor | None = None,
    *,
    no_target: torch.Tensor | None = None,
    empty: torch.Tensor | None = None,
) -> Sums:
    """Sums of a batch.   intersection, union (B,) int64 pixels; valid (B,) bool leaves padding out.

    no_target, empty (B,) bool: given where expressions without a target are among the split's, with what `called_empty` says.
    """
    keep = slice(None) if valid is None else valid
    intersection, union = (
        intersection[keep].cpu().to(torch.int64),
        union[keep].cpu().to(torch.int64),
    )
    absent, empty = (
        torch.zeros_like(union, dtype=torch.bool) if x is None else x[keep].cpu()
        for x in (no_target, empty)
    )
    intersection, union, iou = intersection_over_union(intersection, union, absent, empty)
    hits = tuple(
        int(((100 * intersection >= x * union) & (union > 0) & ~absent).sum()) for x in THRESHOLDS
    )
    named = int(absent.sum()), int((absent & empty).sum()), int((~absent & empty).sum())
    return Sums(len(union), int(intersection.sum()), int(union.sum()), int(iou.sum()), *named, hits)


def score_masks(
    prediction: torch.Tensor,
    truth: torch.Tensor,
    valid: torch.Tensor | None = None,
    no_target: torch.Tensor | None = None,
) -> Sums:
    """Sums of a batch of masks.   prediction, truth (B, H, W) bool; valid, no_target (B,) bool as in `score`"""
    pixels = prediction.flatten(1).sum(1)
    empty = None if no_target is None else called_empty(pixels, prediction[0].numel())
    return score(*counts(prediction, truth), valid, no_target=no_target, empty=empty)


def weighted_auroc(score: torch.Tensor, weight: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Area under the ROC curve when cell j holds a share `weight` of positives, all at the same score.

    score, weight (B, N) float, weight in [0, 1]; valid (B, N) bool -> (B,) float, NaN where a class is empty. It equals the pixel-level
    AUROC (Mann-Whitney: probability that a positive scores higher than a negative, ties 1/2) of a map that is constant over each cell.
    """
    positive, negative = weight * valid, (1 - weight) * valid
    ascending, order = score.sort(1)
    below = F.pad(
        negative.gather(1, order).cumsum(1), (1, 0)
    )  # negatives among the k lowest scores
    first = torch.searchsorted(ascending, score.contiguous())
    last = torch.searchsorted(ascending, score.contiguous(), right=True)
    wins = (positive * (below.gather(1, first) + below.gather(1, last)) / 2).sum(1)
    return wins / (
        positive.sum(1) * negative.sum(1)
    )  # 0 / 0 is NaN: undefined, and left out of means


def mask_auroc(hidden: torch.Tensor, weight: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    """The same of a mask that calls visible cells positive.   hidden (B, N) bool; weight (B, N) pixels of positives, size (B, N) pixels -> (B,)"""
    visible = (~hidden).to(weight.dtype)
    hit = (weight * visible).sum(1) / weight.sum(1)
    alarm = ((size - weight) * visible).sum(1) / (size - weight).sum(1)
    return (1 + hit - alarm) / 2  # the area under a ROC curve with one corner
