"""One training step as a masking method sees it: the batch, the passes it may run, the mask."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch

from aml.masking.masker import Masker
from aml.masking.passes import Mask, MaskInputs, Pass
from aml.masking.words import change_words

Answer = tuple[torch.Tensor, Any]
"""Logits (B, h, w) of a pass without gradient, and its features or None."""


class Step:
    """Builds the passes of a training step and runs them; `train` leads a step in any mode."""

    def __init__(
        self,
        masker: Masker,
        model: Any,
        batch: Any,
        epoch: int,
        run: Callable[[Pass], Answer],
        autocast: Callable = nullcontext,
    ) -> None:
        """Prepare a step.

        Args:
            masker: Settings and schedule of the training.
            model: The bare module.
            batch: Image, tokens, token_mask, item, real, mask, valid as aml.data.Batch names them;
                ids and view, too, with aml.stage1 cached.
            epoch: 0-based.
            run: Runs a pass forward and backward; returns its logits and features.
            autocast: Makes the context in which stage 1 computes.
        """
        self.masker = masker
        self.model = model
        self.batch = batch
        self.epoch = epoch
        self.run = run
        self.x = model.normalise(batch.image)
        self._autocast = autocast

    def train(self) -> None:
        """Run the passes of the step: the method's own, or a clean one where it is not active."""
        if self.masker.active(self.epoch):
            self.masker.method.train(self)
        else:
            self.run(self.clean())

    def clean(self, **changes: Any) -> Pass:
        """Return the pass on the clean image, some of its fields replaced."""
        one = Pass(self.x, self.batch.tokens, self.batch.token_mask, 1.0)
        return one._replace(**changes)

    def masked(self, mask: Mask, level: str | None = None, **changes: Any) -> Pass:
        """Return the pass under a mask, some of its fields replaced.

        `level` is where blocks are hidden, without it that of the method; a mask of words hides
        words whatever it is.
        """
        level = "words" if mask.words else level or self.masker.method.level
        shown, extras = self.masker.view(self.x, mask, level)
        counted = ~self.masker.spread(mask) if level == "loss" else None
        tokens = self.masker.hide_words(
            self.model, self.batch.tokens, mask, epoch=self.epoch, item=self.batch.item
        )
        one = self.clean(x=shown, tokens=tokens, counted=counted, mask=mask, **extras)
        return one._replace(**changes)

    def mask(
        self,
        logits: torch.Tensor | None = None,
        features: Any = None,
        *,
        see_target: bool = True,
        name: str = "",
    ) -> Mask:
        """Decide what is hidden; stage 1 runs where the method reads the alignment.

        Args:
            logits: (B, h, w) of a clean pass of this step; stage 1 then runs for no prediction.
            features: Of a clean pass of this step; stage 1 then runs for no other source.
            see_target: Whether the draw may read where the target lies.
            name: Of the mask; a second mask of a step needs one of its own to be drawn anew.
        """
        target = self.batch.mask if see_target else None
        inputs = replace(self.inputs, target=target, logits=logits, features=features)
        with self._autocast():
            return self.masker.decide(inputs, self.epoch, name=name)

    @cached_property
    def inputs(self) -> MaskInputs:
        """Parts of this batch that a mask may depend on, but for its target and its passes."""
        batch = self.batch
        cached = self.masker.cache is not None
        return MaskInputs(
            self.model,
            self.x,
            batch.tokens,
            batch.token_mask,
            batch.item,
            batch.real,
            valid=batch.valid,
            ids=batch.ids if cached else None,
            view=batch.view if cached else None,
        )

    def changed_words(self) -> torch.Tensor:
        """Return the sentences, words of masked samples changed as MaskRIS does, (B, L) int64."""
        batch = self.batch
        changed = change_words(
            self.model, batch.tokens, batch.token_mask, self.masker.seed, self.epoch, batch.item
        )
        masked = self.masker.masked_samples(batch.item, self.epoch)
        return torch.where(masked, changed, batch.tokens)
