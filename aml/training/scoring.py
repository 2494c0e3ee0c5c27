"""Logits, masks and metric sums of batches, in training and validation."""

import math
import time

import torch
import torch.nn.functional as F

from aml.data import Batch
from aml.masking import MaskSums
from aml.metrics import Sums, score_masks
from aml.training.world import World


class TrainSums:
    """Running sums of an epoch, on the device."""

    def __init__(self, device):
        self.loss, self.skipped = torch.zeros((), device=device), torch.zeros((), device=device)
        self.masks, self.stage1_s = MaskSums(device), 0.0
        self.start, self.earlier_s = time.perf_counter(), 0.0

    @property
    def seconds(self) -> float:
        """That the epoch has taken so far."""
        return self.earlier_s + time.perf_counter() - self.start

    def state(self) -> dict:
        """All of it, and the generators that dropout draws from, as a checkpoint keeps it."""
        cuda = {"cuda": torch.cuda.get_rng_state()} if self.loss.is_cuda else {}
        sums = {
            "loss": self.loss.cpu().clone(),
            "skipped": self.skipped.cpu().clone(),
            "masks": self.masks.sums.cpu().clone(),
        }
        return (
            sums
            | {"stage1_s": self.stage1_s, "seconds": self.seconds, "cpu": torch.get_rng_state()}
            | cuda
        )

    def add(self, state: dict) -> None:
        """Sums that were kept."""
        device = self.loss.device
        self.loss, self.skipped = (
            self.loss + state["loss"].to(device),
            self.skipped + state["skipped"].to(device),
        )
        self.masks.sums += state["masks"].to(device)
        self.stage1_s, self.earlier_s = (
            self.stage1_s + state["stage1_s"],
            max(self.earlier_s, state["seconds"]),
        )

    def means(self, steps: int, world: World) -> dict[str, float]:
        loss = float(world.sum(self.loss)) / max(1.0, steps - float(self.skipped))
        masks = {
            f"aml/{name}": value
            for name, value in ({"hidden": 0.0} | self.masks.means(world.sum)).items()
        }
        return {
            "train/loss": loss,
            "train/skipped": float(self.skipped),
            **masks,
            "time/stage1_s": self.stage1_s,
        }


def whole_image_logits(model, batch: Batch) -> torch.Tensor:
    """Logits (B, h, w) of whole images, without augmentation. A picture whose sentences follow one another is encoded once for them."""
    if model.fuses:
        return model(model.normalise(batch.image), batch.tokens, batch.token_mask)
    picture = torch.stack([batch.dataset, batch.image_id])
    another = torch.cat(
        [picture.new_ones(1, dtype=torch.bool), (picture[:, 1:] != picture[:, :-1]).any(0)]
    )
    maps = model.encode(model.normalise(batch.image[another]))
    of = another.cumsum(0) - 1
    return model.decode([m[of] for m in maps], batch.tokens, batch.token_mask)


def segment_logits(logits, size: tuple[int, int], threshold: float = 0.5) -> torch.Tensor:
    """logits (B, h, w) -> prediction (B, H, W) bool: probability at or above the threshold, after bilinear resizing."""
    z = F.interpolate(logits[:, None], tuple(size), mode="bilinear", align_corners=False)[:, 0]
    return z >= math.log(threshold / (1 - threshold))


def score_batch(logits: torch.Tensor, batch: Batch, threshold: float) -> Sums:
    """Sums of a batch at network size.   logits (B, h, w)"""
    no_target = batch.no_target if batch.generalised else None
    return score_masks(
        segment_logits(logits, batch.mask.shape[1:], threshold), batch.mask, batch.valid, no_target
    )
