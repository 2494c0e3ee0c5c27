"""Referring segmentation metrics as integer sums that add over batches, workers and machines, divided once at the end.

Per sentence I = |prediction and truth| and U = |prediction or truth| in pixels. mIoU (gIoU) is the mean of I/U, oIoU (cIoU) is
sum I / sum U, P@X the share of sentences with I/U >= X. An empty union counts 0. A P@X comparison is made in integers
(100 I >= X U), and I/U is added as an integer number of 2^-32, so that the sum does not depend on its order.
"""

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F

THRESHOLDS = (50, 60, 70, 80, 90)
"""The X of P@X, in per cent."""
IOU_UNIT = 1 << 32


@dataclass
class Sums:
    """Integer sums over sentences; `a + b` is the sums of both sets."""

    n: int = 0
    intersection: int = 0
    union: int = 0
    iou: int = 0
    """Sum of I/U in units of 2^-32."""
    hits: tuple[int, ...] = (0,) * len(THRESHOLDS)
    """Sentences with I/U >= X for each X of THRESHOLDS."""

    def __add__(self, other: "Sums") -> "Sums":
        plain = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self) if f.name != "hits"}
        return Sums(**plain, hits=tuple(a + b for a, b in zip(self.hits, other.hits, strict=True)))

    def to_tensor(self) -> torch.Tensor:
        """(4 + len(THRESHOLDS),) int64, for an all-reduce."""
        return torch.tensor([self.n, self.intersection, self.union, self.iou, *self.hits], dtype=torch.int64)

    @classmethod
    def from_tensor(cls, values: torch.Tensor) -> "Sums":
        n, intersection, union, iou, *hits = values.tolist()
        return cls(n, intersection, union, iou, tuple(hits))

    def scores(self) -> dict[str, float]:
        """mIoU, oIoU, P@0.5 ... P@0.9 as shares in [0, 1], and n. All 0 for no sentence."""
        n = max(self.n, 1)
        shares = {f"P@0.{x // 10}": hit / n for x, hit in zip(THRESHOLDS, self.hits, strict=True)}
        return {"mIoU": self.iou / IOU_UNIT / n, "oIoU": self.intersection / max(self.union, 1), **shares, "n": self.n}


def counts(prediction: torch.Tensor, truth: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels in both and in either.   prediction, truth (B, H, W) bool -> I (B,), U (B,) int64"""
    return (prediction & truth).flatten(1).sum(1), (prediction | truth).flatten(1).sum(1)


def score(intersection: torch.Tensor, union: torch.Tensor, valid: torch.Tensor | None = None) -> Sums:
    """Sums of a batch.   intersection, union (B,) int64 pixels; valid (B,) bool leaves padding out."""
    if valid is not None:
        intersection, union = intersection[valid], union[valid]
    intersection, union = intersection.cpu().to(torch.int64), union.cpu().to(torch.int64)
    # An empty union has I = 0; dividing by 1 makes it count 0 in mIoU, and `union > 0` keeps it out of P@X.
    iou = intersection * IOU_UNIT // union.clamp(min=1)
    hits = tuple(int(((100 * intersection >= x * union) & (union > 0)).sum()) for x in THRESHOLDS)
    return Sums(len(union), int(intersection.sum()), int(union.sum()), int(iou.sum()), hits)


def weighted_auroc(score: torch.Tensor, weight: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Area under the ROC curve when cell j holds a share `weight` of positives, all at the same score.

    score, weight (B, N) float, weight in [0, 1]; valid (B, N) bool -> (B,) float, NaN where a class is empty. It equals the pixel-level
    AUROC (Mann-Whitney: probability that a positive scores higher than a negative, ties 1/2) of a map that is constant over each cell.
    """
    positive, negative = weight * valid, (1 - weight) * valid
    ascending, order = score.sort(1)
    below = F.pad(negative.gather(1, order).cumsum(1), (1, 0))  # negatives among the k lowest scores
    first = torch.searchsorted(ascending, score.contiguous())
    last = torch.searchsorted(ascending, score.contiguous(), right=True)
    wins = (positive * (below.gather(1, first) + below.gather(1, last)) / 2).sum(1)
    return wins / (positive.sum(1) * negative.sum(1))  # 0 / 0 is NaN: undefined, and left out of means


def mask_auroc(hidden: torch.Tensor, weight: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    """The same of a mask that calls visible cells positive.   hidden (B, N) bool; weight (B, N) pixels of positives, size (B, N) pixels -> (B,)"""
    visible = (~hidden).to(weight.dtype)
    hit = (weight * visible).sum(1) / weight.sum(1)
    alarm = ((size - weight) * visible).sum(1) / (size - weight).sum(1)
    return (1 + hit - alarm) / 2  # the area under a ROC curve with one corner
