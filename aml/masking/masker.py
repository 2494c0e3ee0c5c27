"""Hide the image regions that an expression does not talk about.

PMME scores patches (aml.masking.alignment), AFM turns low scores into a block mask
(aml.masking.selection and drawing). `Masker` holds what all methods need and is all that a training
loop of one's own needs; the methods themselves are in aml.masking.methods.

    B samples, C channels, H W network image, h w alignment grid, L tokens, G blocks
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from aml.draws import uniform
from aml.masking.alignment import Alignment
from aml.masking.config import MaskingConfig
from aml.masking.drawing import BlockDraw
from aml.masking.passes import Mask, MaskInputs, whole_image
from aml.masking.selection import (
    Blocks,
    block_sums,
    blocks_to_pixels,
    hide_pixels,
    real_pixels,
    to_blocks,
)
from aml.masking.stage1.align import AlignmentCache, Predictions, Stage1
from aml.masking.stage1.projections import Projections
from aml.masking.stage1.teacher import Teacher
from aml.masking.words import leave_one_word, replace_words, words_of


def _same(x: torch.Tensor) -> torch.Tensor:
    return x


class Masker:
    """Decides what to hide; one a training run. It never changes the model.

    mask = masker(model, x, tokens, token_mask, epoch=e, item=ids)      stage 1, forward only
    loss = criterion(model(masker.hide(x, mask), tokens, token_mask))   stage 2, the training step

    A `Step` leads a whole training step in any mode and at any level, as the learner does it. With
    aml.stage1 teacher a loop calls `teacher.start(model)` before its first step and
    `teacher.update()` after each one; a teacher that has not started is the model itself.
    """

    def __init__(
        self,
        config: MaskingConfig,
        *,
        model: Any,
        image_size: int,
        seed: int = 0,
        mean_over_ranks: Callable[[torch.Tensor], torch.Tensor] = _same,
    ) -> None:
        """Check the settings against the model.

        Args:
            config: The settings of masked learning.
            model: The model that is trained.
            image_size: Side of the network's image in pixels.
            seed: Of projections and draws.
            mean_over_ranks: Averages a tensor over the workers: for the calibration of the scale,
                and for learned projections.
        """
        config.check(model, image_size)
        self.method = config.method
        self.config = config
        self.seed = seed
        self.block = config.block_side(image_size)
        self.mean_over_ranks = mean_over_ranks
        self.stage1 = Stage1(config, seed)
        self.cache: AlignmentCache | None = None
        if config.reads_cache:
            other = config.sentence == "other"
            self.cache = AlignmentCache(self.block, image_size, seed=seed, any_referent=other)
        self.teacher = Teacher(config.teacher_decay) if config.reads_teacher else None

    @property
    def scale(self) -> float:
        """Multiplier of similarities in use."""
        return self.stage1.scale

    @property
    def calibrating(self) -> bool:
        """Return whether the automatic scale is still being measured."""
        return self.stage1.calibrating

    @property
    def log_scales(self) -> list[float]:
        """Logarithms of the scales measured so far, one a calibration batch."""
        return self.stage1.log_scales

    @property
    def projections(self) -> Projections:
        """The maps of the features before they are compared."""
        return self.stage1.projections

    def active(self, epoch: int) -> bool:
        """Return whether an epoch (0-based) trains as the method does, not on clean images."""
        return self.method.active(epoch)

    def __call__(
        self,
        model: Any,
        x: torch.Tensor,
        tokens: torch.Tensor,
        token_mask: torch.Tensor,
        *,
        epoch: int,
        item: torch.Tensor,
        real: torch.Tensor | None = None,
        target: torch.Tensor | None = None,
        probe: bool = False,
    ) -> Mask:
        """Decide what is hidden of images in an epoch.

        Args:
            model: The bare module, never a DDP wrapper.
            x: (B, C, H, W) normalised images.
            tokens: (B, L) int64.
            token_mask: (B, L) bool.
            epoch: 0-based.
            item: (B,) int64, keys the draws.
            real: (B, 4), the picture inside its letterbox; None: all of the image.
            target: (B, H, W) bool, see MaskInputs.
            probe: Run stage 1 and the draws of any mode whatever the epoch, without calibrating:
                for diagnostics. It is a fresh one with aml.stage1 cached, too.
        """
        real = whole_image(x) if real is None else real
        inputs = MaskInputs(model, x, tokens, token_mask, item, real, target=target)
        return self.decide(inputs, epoch, probe=probe)

    def masked_samples(self, item: torch.Tensor, epoch: int) -> torch.Tensor:
        """Return which items (B,) are masked at all in an epoch, (B, 1) bool: aml.batch_share."""
        return uniform(self.seed, epoch, item, "masked") < self.config.batch_share

    @torch.no_grad()
    def decide(
        self, inputs: MaskInputs, epoch: int, *, probe: bool = False, name: str = ""
    ) -> Mask:
        """Decide what is hidden, as calling the masker does, from all that is known of a batch.

        `name` is that of the mask, see `Step.mask`.
        """
        pixels = real_pixels(inputs.real, *inputs.x.shape[2:])
        words = self.method.level == "words"
        if words:
            count = words_of(inputs.model, inputs.tokens, inputs.token_mask)[:, None].float()
        else:
            count = block_sums(pixels.float(), self.block)
        nothing = torch.zeros_like(count, dtype=torch.bool)
        blank = Blocks(count.new_zeros(count.shape), count)
        if not probe and not self.active(epoch):
            return Mask(nothing, nothing, blank, None, pixels, words)
        alignment = None
        blocks = blank
        if self.cache is not None and not probe:
            alignment = self.cache.read(inputs, epoch, pixels)
            blocks = Blocks(alignment.map, count)
        elif self.method.reads_alignment or (probe and not words):
            if self.config.sentence == "other":
                inputs = inputs.with_sentence_of_the_sample_before()
            alignment = self.align(inputs, calibrate=not probe)
            if words:
                blocks = Blocks(alignment.map, count)
            else:
                blocks = to_blocks(alignment.map, pixels, self.block)
        if not self.method.hides or (self.calibrating and self.method.reads_alignment):
            return Mask(nothing, nothing, blocks, alignment, pixels, words)
        candidate = (count > 0).flatten(1)
        if alignment is not None and alignment.known is not None:
            candidate = candidate & alignment.known.flatten(1)
        on_target = torch.zeros_like(candidate)
        if inputs.target is not None and not words:
            on_target = (block_sums((inputs.target & pixels).float(), self.block) > 0).flatten(1)
        if self.config.protect_target:
            candidate = candidate & ~on_target
        weak, hidden = self.method.draw(
            BlockDraw(
                config=self.config,
                block=self.block,
                seed=self.seed,
                epoch=epoch,
                item=inputs.item,
                candidate=candidate,
                on_target=on_target,
                blocks=blocks,
                alignment=alignment,
                pixels=pixels,
                name=name,
            )
        )
        if words:
            score = blocks.score.flatten(1)
            score = 1 - score if self.config.weak == "highest" else score
            tie = uniform(self.seed, epoch, inputs.item, name + "stays", score.shape[1])
            hidden = leave_one_word(hidden, candidate, score, tie)
        if self.config.batch_share < 1:
            hidden = hidden & self.masked_samples(inputs.item, epoch)
        return Mask(
            hidden.view_as(nothing), weak.view_as(nothing), blocks, alignment, pixels, words
        )

    def align(self, inputs: MaskInputs, *, calibrate: bool = False) -> Alignment:
        """Return the alignment of stage 1, see `Stage1.align`; the teacher's, if there is one."""
        if self.teacher is not None and self.teacher.model is not None:
            inputs = replace(inputs, model=self.teacher.model, logits=None, features=None)
        of_words = self.method.level == "words"
        return self.stage1.align(
            inputs, self.mean_over_ranks, calibrate=calibrate, of_words=of_words
        )

    def predicted(
        self, logits: torch.Tensor, inputs: MaskInputs, mask: Mask | None
    ) -> Predictions | None:
        """Return what later epochs mask these samples by, with aml.stage1 cached; else None.

        Args:
            logits: (B, h, w) of a training pass.
            inputs: The samples.
            mask: The mask of that pass, if it has one.
        """
        if self.cache is None:
            return None
        pixels = mask.pixels if mask else real_pixels(inputs.real, *inputs.x.shape[2:])
        return self.cache.predicted(logits, inputs, pixels)

    def end_epoch(self, found: list[Predictions]) -> None:
        """Take over the predictions that the ranks made in an epoch."""
        if self.cache is not None:
            for of_rank in found:
                self.cache.add(of_rank)

    def view(self, x: torch.Tensor, mask: Mask, level: str) -> tuple[torch.Tensor, dict[str, Any]]:
        """Return what the model is given under a mask.

        Args:
            x: (B, C, H, W) normalised images.
            mask: The mask.
            level: Where blocks are hidden, as aml.level.

        Returns:
            The images (B, C, H, W), and the arguments visible and drop of `Model.forward` that
            they need besides.
        """
        if level == "image" and self.config.fill == "drop":
            return x, {"visible": ~self.spread(mask), "drop": True}
        if level == "image":
            return self.hide(x, mask), {}
        return x, {"visible": ~self.spread(mask)} if level == "feature" else {}

    def hide(self, x: torch.Tensor, mask: Mask) -> torch.Tensor:
        """Return images (B, C, H, W) with the hidden blocks blanked, by zero where they drop.

        With aml.level words they are whole: `hide_words` hides words.
        """
        if mask.words:
            return x
        return hide_pixels(x, mask.hidden, self.block, self.config.fill, mask.pixels)

    def hide_words(
        self, model: Any, tokens: torch.Tensor, mask: Mask, *, epoch: int, item: torch.Tensor
    ) -> torch.Tensor:
        """Return sentences (B, L) without the words that a mask hides; see `replace_words`."""
        if not mask.words:
            return tokens
        return replace_words(model, tokens, mask.hidden[:, 0], self.seed, epoch, item)

    def spread(self, mask: Mask) -> torch.Tensor:
        """Return the hidden blocks as pixels, (B, H, W) bool."""
        return blocks_to_pixels(mask.hidden, self.block, *mask.pixels.shape[1:])

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs of the masker."""
        state = self.stage1.state_dict()
        if self.cache is not None:
            state["cache"] = self.cache.state_dict()
        if self.teacher is not None and self.teacher.model is not None:
            state["teacher"] = self.teacher.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the state of the run that goes on."""
        self.stage1.load_state_dict(state)
        if self.cache is not None and "cache" in state:
            self.cache.load_state_dict(state["cache"])
        if self.teacher is not None and "teacher" in state:
            self.teacher.load_state_dict(state["teacher"])
