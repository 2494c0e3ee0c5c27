"""Compute referring segmentation metrics from integer sums.

The sums add over batches, workers and machines, and are divided once at the end.

Per sentence I = |prediction and truth| and U = |prediction or truth| in pixels. mIoU (gIoU) is the
mean of I/U, oIoU (cIoU) is sum I / sum U, P@X is the share of sentences with I/U >= X. An empty
union counts 0. A P@X comparison is made in integers (100 I >= X U), and I/U is added as an integer
number of 2^-32, so that the sum does not depend on its order.

Some data sets have expressions that name nothing in the picture (gRefCOCO, Liu et al. 2023). There
a prediction of very few pixels is called empty (`called_empty`):

- An expression without a target whose prediction is called empty counts 1 in mIoU and adds nothing
  to I and U; otherwise it counts 0, and U is the predicted area.
- An expression with a target whose prediction is called empty has I = 0.
- N-acc is the share of expressions without a target whose prediction is called empty, T-acc the
  share of expressions with a target whose prediction is not.
- P@X is a share of the expressions with a target only.
"""

from dataclasses import dataclass, fields
from typing import overload

import torch
import torch.nn.functional as F

THRESHOLDS = (50, 60, 70, 80, 90)
"""The X of P@X, in per cent."""

IOU_UNIT = 1 << 32
"""Units of I/U in 1."""

EMPTY_BELOW = 50
"""Fewer pixels than this are called empty in a square picture of side EMPTY_SIDE.

In other pictures the bound is in proportion to their area.
"""

EMPTY_SIDE = 480


@dataclass
class Sums:
    """Integer sums over sentences; `a + b` holds the sums over both sets."""

    n: int = 0
    intersection: int = 0
    union: int = 0
    iou: int = 0
    """Sum of I/U in units of 2^-32."""
    no_target: int = 0
    """Sentences that name nothing in the picture."""
    rejected: int = 0
    """Sentences that name nothing and whose prediction is called empty."""
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
        """Return the sums as a tensor for an all-reduce, (7 + len(THRESHOLDS),) int64."""
        return torch.tensor(
            [*(getattr(self, f.name) for f in fields(self) if f.name != "hits"), *self.hits],
            dtype=torch.int64,
        )

    @classmethod
    def from_tensor(cls, values: torch.Tensor) -> "Sums":
        """Return the sums that `to_tensor` made a tensor of."""
        numbers = values.tolist()
        names = [f.name for f in fields(cls) if f.name != "hits"]
        plain = dict(zip(names, numbers[: -len(THRESHOLDS)], strict=True))
        return cls(**plain, hits=tuple(numbers[-len(THRESHOLDS) :]))

    def scores(self) -> dict[str, float]:
        """Return mIoU, oIoU, P@0.5 ... P@0.9 as shares in [0, 1], and n. All are 0 for no sentence.

        Where some sentences have no target, also return N-acc, T-acc, and gIoU and cIoU, which are
        mIoU and oIoU under the names usual for such data.
        """
        n = max(self.n, 1)
        targeted = self.n - self.no_target
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
    """Return the intersection and union of masks.

    Args:
        prediction: (B, H, W) bool.
        truth: (B, H, W) bool.

    Returns:
        I (B,) int64 and U (B,) int64, in pixels.
    """
    return (prediction & truth).flatten(1).sum(1), (prediction | truth).flatten(1).sum(1)


@overload
def called_empty(pixels: int, area: int) -> bool: ...
@overload
def called_empty(pixels: torch.Tensor, area: torch.Tensor | int) -> torch.Tensor: ...
def called_empty(pixels: torch.Tensor | int, area: torch.Tensor | int) -> torch.Tensor | bool:
    """Return whether a prediction of `pixels` pixels says that nothing named is in the picture.

    Args:
        pixels: predicted pixels, int or int64 tensor.
        area: pixels of the picture, int or int64 tensor.
    """
    return pixels * EMPTY_SIDE**2 < EMPTY_BELOW * area


def intersection_over_union(
    intersection: torch.Tensor, union: torch.Tensor, no_target: torch.Tensor, empty: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Apply the rule for expressions without a target (see the module's text).

    Args:
        intersection: (B,) int64 pixels.
        union: (B,) int64 pixels.
        no_target: (B,) bool, True where the expression names nothing.
        empty: (B,) bool, True where the prediction is called empty. With both False, I and U stay
            as they are.

    Returns:
        I, U and I/U in units of 2^-32, each (B,) int64.
    """
    rejected = no_target & empty
    intersection = intersection.masked_fill(empty, 0)
    union = union.masked_fill(rejected, 0)
    # An empty union has I = 0; dividing by 1 makes it count 0.
    iou = (intersection * IOU_UNIT // union.clamp(min=1)).masked_fill(rejected, IOU_UNIT)
    return intersection, union, iou


def score(
    intersection: torch.Tensor,
    union: torch.Tensor,
    valid: torch.Tensor | None = None,
    *,
    no_target: torch.Tensor | None = None,
    empty: torch.Tensor | None = None,
) -> Sums:
    """Return the sums of a batch.

    Args:
        intersection: (B,) int64 pixels.
        union: (B,) int64 pixels.
        valid: (B,) bool, False for padding, which is left out.
        no_target: (B,) bool, given where the split has expressions without a target.
        empty: (B,) bool, the result of `called_empty`, given together with `no_target`.
    """
    keep = slice(None) if valid is None else valid
    intersection = intersection[keep].cpu().to(torch.int64)
    union = union[keep].cpu().to(torch.int64)
    absent, empty = (
        torch.zeros_like(union, dtype=torch.bool) if x is None else x[keep].cpu()
        for x in (no_target, empty)
    )
    intersection, union, iou = intersection_over_union(intersection, union, absent, empty)
    hits = tuple(
        int(((100 * intersection >= x * union) & (union > 0) & ~absent).sum()) for x in THRESHOLDS
    )
    return Sums(
        n=len(union),
        intersection=int(intersection.sum()),
        union=int(union.sum()),
        iou=int(iou.sum()),
        no_target=int(absent.sum()),
        rejected=int((absent & empty).sum()),
        missed=int((~absent & empty).sum()),
        hits=hits,
    )


def score_masks(
    prediction: torch.Tensor,
    truth: torch.Tensor,
    valid: torch.Tensor | None = None,
    no_target: torch.Tensor | None = None,
) -> Sums:
    """Return the sums of a batch of masks.

    Args:
        prediction: (B, H, W) bool.
        truth: (B, H, W) bool.
        valid: (B,) bool as in `score`.
        no_target: (B,) bool as in `score`.
    """
    pixels = prediction.flatten(1).sum(1)
    empty = None if no_target is None else called_empty(pixels, prediction[0].numel())
    return score(*counts(prediction, truth), valid, no_target=no_target, empty=empty)


def weighted_auroc(score: torch.Tensor, weight: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Return the area under the ROC curve of scores given to cells that hold several pixels.

    The result equals the pixel-level AUROC (Mann-Whitney: probability that a positive scores higher
    than a negative, ties 1/2) of a map that is constant over each cell.

    Args:
        score: (B, N) float, the score of all pixels of a cell.
        weight: (B, N) float in [0, 1], the share of positives in a cell.
        valid: (B, N) bool, False for cells to leave out.

    Returns:
        (B,) float, NaN where a row has no positives or no negatives.
    """
    positive = weight * valid
    negative = (1 - weight) * valid
    ascending, order = score.sort(1)
    # negatives among the k lowest scores
    below = F.pad(negative.gather(1, order).cumsum(1), (1, 0))
    first = torch.searchsorted(ascending, score.contiguous())
    last = torch.searchsorted(ascending, score.contiguous(), right=True)
    wins = (positive * (below.gather(1, first) + below.gather(1, last)) / 2).sum(1)
    # 0 / 0 is NaN: the area is undefined, and means leave it out
    return wins / (positive.sum(1) * negative.sum(1))


def mask_auroc(hidden: torch.Tensor, weight: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    """Return the area under the ROC curve of a mask that calls visible cells positive.

    Args:
        hidden: (B, N) bool, the cells that the mask hides.
        weight: (B, N) positive pixels of a cell.
        size: (B, N) pixels of a cell.

    Returns:
        (B,) in the dtype of `weight`.
    """
    visible = (~hidden).to(weight.dtype)
    hit = (weight * visible).sum(1) / weight.sum(1)
    alarm = ((size - weight) * visible).sum(1) / (size - weight).sum(1)
    return (1 + hit - alarm) / 2  # the area under a ROC curve with one corner
