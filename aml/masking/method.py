"""The interface of masking methods: one class a mode of `aml.mode`.

A method decides how a training step is built. It is a class derived from `MaskingMethod`, in this
project one of aml.masking.methods, elsewhere any class named as `aml.mode: package.module:MyMethod`
or `aml.mode: path/file.py:MyMethod`. Everything that methods share lies in `Masker`: the settings,
the schedule of warm-up and ramp, the calibration of the scale, the alignment of stage 1 and the
selection of blocks.

A training step goes like this. The learner makes a `Step` and calls `method.train(step)` once for
each micro-batch of an epoch in which the method is active; in other epochs it trains on the clean
image. `train` calls `step.run(one)` once for each forward and backward pass, with weights that sum
to 1 and `last=False` on all but the last one. Where it wants a mask it calls `step.mask()`:

1. If `reads_alignment` is true, stage 1 runs: a forward pass without gradient and with dropout off,
   on the image resized by aml.stage1_scale, no deeper than aml.source needs. It is skipped where
   `step.mask` is given the logits or features of a clean pass of the same step. With aml.stage1
   cached it never runs: what the first pass of a step predicts is kept for later epochs, and a
   block without such a prediction may not be hidden. With teacher it always runs, on an average of
   the model's weights.
2. `method.draw(blocks)` gets a `BlockDraw` and returns two tensors (B, G) bool over the G blocks of
   each image: the blocks called weak, and those of them that are hidden. Draws must come from
   `blocks.uniform` or what is built on it, so that a mask is a function of seed, epoch and item.
   With aml.level words the places are the tokens of the sentence in place of blocks.
   `draw` is not called while an automatic scale is being calibrated: nothing is hidden then.
   Of a sample that aml.batch_share leaves out nothing is hidden either, whatever was drawn.

Nothing here imports torch at run time: settings are checked before torch is loaded, which takes
seconds. A method outside this project may import torch at its top.
"""

import math
from typing import TYPE_CHECKING, Any, ClassVar

from aml.errors import UserError

if TYPE_CHECKING:
    import torch

    from aml.masking.config import MaskingConfig
    from aml.masking.drawing import BlockDraw
    from aml.masking.step import Step


class MaskingMethod:
    """Way to mask a training step; the base class of all methods, which hides blocks once.

    A subclass needs `name` and `draw`; the other members have defaults. The instance holds the
    settings as `config` and nothing that a checkpoint would have to keep.
    """

    name: ClassVar[str] = ""
    """The method's name in messages."""
    hides: ClassVar[bool] = True
    """Whether it ever hides anything."""
    selects_by_alignment: ClassVar[bool] = False
    """Whether alignment decides which blocks are hidden.

    Then aml.tau and aml.rho are the method's coordinates, and the scale is logged.
    """

    def __init__(self, config: "MaskingConfig") -> None:
        self.config = config

    @property
    def reads_alignment(self) -> bool:
        """Return whether stage 1 runs before each mask."""
        return self.selects_by_alignment

    @property
    def level(self) -> str:
        """Level at which the method hides: aml.level; image for a method that hides nothing."""
        return self.config.level if self.hides else "image"

    @property
    def share(self) -> float:
        """Share of a masked image's blocks that is hidden, in expectation."""
        if not self.hides:
            return 0.0
        hidden = self.config.tau * self.config.rho
        return hidden + self.config.noise * (1 - hidden)

    @property
    def coordinates(self) -> tuple[float, float]:
        """(tau, rho) in the plane where no masking is (0, 0) and blind masking (1, rate)."""
        if self.selects_by_alignment:
            return self.config.tau, self.config.rho
        return (1.0 if self.share else 0.0, self.share)

    def rate_or(self, default: float) -> float:
        """Return aml.rate, or a method's default where aml.rate is no number."""
        rate = self.config.rate
        return float(rate) if isinstance(rate, (int, float)) else default

    def active(self, epoch: int) -> bool:
        """Return whether the method trains in an epoch (0-based); else the image stays clean."""
        config = self.config
        return config.warmup_epochs <= epoch < (config.last_epoch or math.inf)

    def check(self, model: Any, image_size: int) -> None:
        """Refuse settings that cannot mean anything for a model at this image size.

        Args:
            model: The model, its class or its options: anything with name, sources and fuses.
            image_size: Side of the network's image in pixels.

        Raises:
            UserError: What does not go together, and what to change.
        """
        if self.reads_alignment:
            self.check_source(model)
        if self.config.last_epoch == 1 and self.config.reads_cache:
            raise UserError(
                "aml.last_epoch is 1, but with aml.stage1 cached nothing is hidden before epoch 2; "
                "raise last_epoch, or use aml.mode off"
            )
        self.check_level(model)

    def train(self, step: "Step") -> None:
        """Run the passes of one training step; the default is one masked pass.

        With aml.clean_weight a pass on the clean image comes first. Its logits or features are
        those of stage 1, where they can be: then stage 1 costs nothing.
        """
        logits = features = None
        if self.config.clean_weight:
            weight = self.config.clean_weight
            upto = self._reusable(step.model)
            logits, features = step.run(step.clean(weight=weight, last=False, upto=upto))
        mask = step.mask(logits=logits, features=features)
        step.run(step.masked(mask, weight=1 - self.config.clean_weight))

    def draw(self, blocks: "BlockDraw") -> tuple["torch.Tensor", "torch.Tensor"]:
        """Return which blocks are weak and which of them are hidden, both (B, G) bool."""
        raise NotImplementedError(f"{type(self).__name__} draws no blocks; write its draw method")

    def check_source(self, model: Any) -> None:
        """Refuse an alignment source that the model does not offer."""
        if self.config.source not in model.sources:
            raise UserError(
                f"aml.source {self.config.source} is not offered by model {model.name}; it offers "
                f"{', '.join(model.sources)}"
            )

    def check_level(self, model: Any) -> None:
        """Refuse maps in which the words are read already, and words that nothing tells apart."""
        if self.level == "words":
            self._check_words(model)
        if self.config.level == "feature" and model.fuses:
            raise UserError(
                "aml.level feature masks the maps of an encoder that has read no word, but "
                f"{model.name} reads them inside; use level image or loss"
            )

    def _check_words(self, model: Any) -> None:
        """Refuse settings by which words cannot be hidden."""
        config = self.config
        if not self.share:
            raise UserError(
                f"aml.level words hides a share of {self.share:g} of the words; raise aml.tau, "
                "aml.rho or aml.rate, or use aml.mode off"
            )
        if not self.reads_alignment:
            return
        if config.source == "prediction" or config.score == "sentence":
            of_tokens = [source for source in model.sources if source != "prediction"]
            raise UserError(
                f"aml.level words with aml.source {config.source} and aml.score {config.score}: "
                "there is no number for each word; use score cosine, token_softmax or "
                "patch_softmax and a source with tokens, of which model "
                f"{model.name} has {' and '.join(of_tokens) or 'none'}"
            )
        if config.selection != "block":
            raise UserError(
                f"aml.level words with aml.selection {config.selection}, which draws pixels; use "
                "selection block, which draws words here"
            )

    def check_drop(self, model: Any, image_size: int) -> None:
        """Refuse to drop patches of a model that cannot, or blocks that cut patches."""
        if not model.drops:
            raise UserError(
                f"aml.fill drop leaves patches out of the encoder, and model {model.name} reads "
                "all of them; use fill zero or mean, or a model that drops them: clipseg, or "
                "compose with a plain vision transformer"
            )
        side, patch = self.config.block_side(image_size), model.image_multiple
        if side % patch:
            raise UserError(
                f"aml.fill drop with blocks of {side} pixels, which cut the patches of {patch} "
                f"pixels of model {model.name}; set aml.block to a multiple of {patch}"
            )

    def check_one_block(self, image_size: int) -> None:
        """Refuse a share of which not even one block an image is hidden; words have no such."""
        if self.level == "words":
            return
        side = self.config.block_side(image_size)
        blocks = math.ceil(image_size / side) ** 2
        if self.share * blocks < 1:
            raise UserError(
                f"{self.config.arm} hides tau*rho*n = {self.share:g} * {blocks} = "
                f"{self.share * blocks:.2f} "
                "blocks an image, less than one; raise aml.tau or aml.rho to a product of at least "
                f"{1 / blocks:.4f}, lower aml.block, or use aml.mode off"
            )

    def _reusable(self, model: Any) -> str | None:
        """Return the source whose features the clean pass should bring along; None for none."""
        config = self.config
        own = self.reads_alignment and config.sentence == "own" and config.stage1 != "teacher"
        return config.source if own and config.source != "prediction" and not model.fuses else None
