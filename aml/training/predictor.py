"""Predictions of a model during training: validation, and what the training mask knows.

B samples of this rank, H W network image, h w logits
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from aml.data import Batch
from aml.masking import Mask, Masker, MaskSums
from aml.metrics import Sums
from aml.training.scoring import score_batch, whole_image_logits
from aml.training.world import PRECISIONS, World


@dataclass
class Progress:
    """Position and history of a training, saved beside model, optimiser and masker."""

    epoch: int = 0
    """Epochs done."""
    step: int = 0
    """Steps done of the epoch under way."""
    ranks: list[dict] = field(default_factory=list)
    """Running sums and random generators of each rank at that step."""
    best: float = -1.0
    """Best validation score so far: mIoU, or oIoU by evaluate.select."""
    history: list[dict] = field(default_factory=list)
    """Metrics of the epochs done."""


class Predictor:
    """Model and masker on a device, and their predictions; the learner is derived from it."""

    def __init__(self, model: Any, masker: Masker, device: str | torch.device, precision: str):
        self.world = World()
        self.device = torch.device(device)
        self.model = model.to(self.device)
        self.masker = masker
        self.dtype = PRECISIONS[precision]
        self.progress = Progress()
        masker.mean_over_ranks = self.world.mean

    def autocast(self) -> AbstractContextManager:
        """Return the context in which the model computes at the precision of the settings."""
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def evaluate(self, batches: Iterable[Batch], threshold: float = 0.5) -> Sums:
        """Return the sums over the sentences of all ranks.

        Prediction and truth are compared at network size (the square protocol).
        """
        total = Sums()
        for batch, logits in self.predict(batches):
            total = total + score_batch(logits, batch, threshold)
        return self._over_ranks(total)

    @torch.inference_mode()
    def predict(
        self, batches: Iterable[Batch], masked: bool = False, sums: MaskSums | None = None
    ) -> Iterator[tuple[Batch, torch.Tensor]]:
        """Yield each batch with its logits, float32 (B, h, w).

        Args:
            batches: The batches.
            masked: Mask the images as training would, for diagnostics; else they are whole.
            sums: Adds up the masks' statistics.
        """
        self.model.eval()
        for batch in batches:
            batch = batch.to(self.device)
            with self.autocast():
                if masked:
                    logits = self._under_mask(batch, sums)
                else:
                    logits = whole_image_logits(self.model, batch)
                yield batch, logits.float()

    def mask(self, x: torch.Tensor, batch: Batch) -> Mask:
        """Return the mask that training would draw in the present epoch, warm-up or not.

        Args:
            x: (B, 3, H, W) normalised images.
            batch: The samples.
        """
        return self.masker(
            self.model,
            x,
            batch.tokens,
            batch.token_mask,
            epoch=self.progress.epoch,
            item=batch.item,
            real=batch.real,
            target=batch.mask,
            probe=True,
        )

    def diagnose(
        self, batches: Iterable[Batch], clean: Iterable[Batch], threshold: float = 0.5
    ) -> dict[str, float]:
        """Return what the mask knows of the target, and the leak.

        The leak is the mIoU with training masks minus the one without.

        Args:
            batches: The samples, whose images are masked.
            clean: The same samples again, whose images stay whole.
            threshold: From which probability on a pixel is the referent's.
        """
        sums = MaskSums(self.device)
        masked = Sums()
        whole = Sums()
        for batch, logits in self.predict(batches, masked=True, sums=sums):
            masked = masked + score_batch(logits, batch, threshold)
        for batch, logits in self.predict(clean):
            whole = whole + score_batch(logits, batch, threshold)
        masked = self._over_ranks(masked)
        whole = self._over_ranks(whole)
        found = {f"aml/probe_{name}": value for name, value in sums.means(self.world.sum).items()}
        if self.masker.method.hides:
            found["aml/leak"] = masked.scores()["mIoU"] - whole.scores()["mIoU"]
        return found

    def _under_mask(self, batch: Batch, sums: MaskSums | None) -> torch.Tensor:
        """Return logits (B, h, w) of the images as training would mask them."""
        x = self.model.normalise(batch.image)
        mask = self.mask(x, batch)
        if sums is not None:
            sums.add(mask, batch.mask, batch.valid, self.masker.block)
        x, extras = self.masker.view(x, mask, self.masker.method.level)
        tokens = self.masker.hide_words(
            self.model, batch.tokens, mask, epoch=self.progress.epoch, item=batch.item
        )
        return self.model(x, tokens, batch.token_mask, **extras)

    def _over_ranks(self, sums: Sums) -> Sums:
        return Sums.from_tensor(self.world.sum(sums.to_tensor().to(self.device)))
