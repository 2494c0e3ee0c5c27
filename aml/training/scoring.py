"""Logits, masks and metric sums of batches, in training and validation."""

import math
import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from aml.data import Batch
from aml.masking import MaskSums, Predictions
from aml.metrics import Sums, score_masks
from aml.training.world import World


class TrainSums:
    """Running sums of an epoch, on the device."""

    def __init__(self, device: str | torch.device) -> None:
        self.loss = torch.zeros((), device=device)
        self.skipped = torch.zeros((), device=device)
        self.masks = MaskSums(device)
        self.predictions: list[Predictions] = []
        self.stage1_s = 0.0
        self.start = time.perf_counter()
        self.earlier_s = 0.0

    @property
    def seconds(self) -> float:
        """Seconds that the epoch has taken so far, those before an interruption included."""
        return self.earlier_s + time.perf_counter() - self.start

    def keep(self, found: Predictions | None) -> None:
        """Keep what a step predicted, by which later epochs mask; None is nothing."""
        if found is not None:
            self.predictions.append(found)

    def state(self) -> dict[str, Any]:
        """Return the sums and the states of dropout's generators, as a checkpoint keeps them."""
        more: dict[str, Any] = {"cuda": torch.cuda.get_rng_state()} if self.loss.is_cuda else {}
        if self.predictions:
            parts = zip(*self.predictions, strict=True)
            more["predictions"] = tuple(torch.cat([x.cpu() for x in part]) for part in parts)
        return {
            "loss": self.loss.cpu().clone(),
            "skipped": self.skipped.cpu().clone(),
            "masks": self.masks.sums.cpu().clone(),
            "stage1_s": self.stage1_s,
            "seconds": self.seconds,
            "cpu": torch.get_rng_state(),
        } | more

    def add(self, state: dict[str, Any]) -> None:
        """Add sums that a checkpoint kept."""
        device = self.loss.device
        self.loss = self.loss + state["loss"].to(device)
        self.skipped = self.skipped + state["skipped"].to(device)
        self.masks.sums += state["masks"].to(device)
        self.keep(state.get("predictions"))
        self.stage1_s = self.stage1_s + state["stage1_s"]
        self.earlier_s = max(self.earlier_s, state["seconds"])

    def means(self, steps: int, world: World) -> dict[str, float]:
        """Return the epoch's metrics, the same on every rank.

        Args:
            steps: Steps of the epoch.
            world: The ranks that train together.
        """
        loss = float(world.sum(self.loss)) / max(1.0, steps - float(self.skipped))
        means = {"hidden": 0.0} | self.masks.means(world.sum)
        return {
            "train/loss": loss,
            "train/skipped": float(self.skipped),
            **{f"aml/{name}": value for name, value in means.items()},
            "time/stage1_s": self.stage1_s,
        }


def whole_image_logits(model: Any, batch: Batch) -> torch.Tensor:
    """Return logits (B, h, w) of whole images, without augmentation.

    A picture whose sentences follow one another is encoded once for them.
    """
    if model.fuses:
        return model(model.normalise(batch.image), batch.tokens, batch.token_mask)
    picture = torch.stack([batch.dataset, batch.image_id])
    differs = (picture[:, 1:] != picture[:, :-1]).any(0)
    another = torch.cat([picture.new_ones(1, dtype=torch.bool), differs])
    maps = model.encode(model.normalise(batch.image[another]))
    of = another.cumsum(0) - 1
    return model.decode([m[of] for m in maps], batch.tokens, batch.token_mask)


def segment_logits(
    logits: torch.Tensor, size: Sequence[int], threshold: float = 0.5
) -> torch.Tensor:
    """Return predictions (B, H, W) bool: probability at or above the threshold.

    Args:
        logits: (B, h, w), resized bilinearly.
        size: H and W.
        threshold: The probability.
    """
    z = F.interpolate(logits[:, None], tuple(size), mode="bilinear", align_corners=False)[:, 0]
    return z >= math.log(threshold / (1 - threshold))


def score_batch(logits: torch.Tensor, batch: Batch, threshold: float) -> Sums:
    """Return the sums of a batch at network size; the logits are (B, h, w)."""
    no_target = batch.no_target if batch.generalised else None
    predicted = segment_logits(logits, batch.mask.shape[1:], threshold)
    return score_masks(predicted, batch.mask, batch.valid, no_target)
