"""Methods that hide blocks drawn blindly: `random`, MaskRIS and consistency between two masks."""

from typing import TYPE_CHECKING, Any

from aml.errors import UserError
from aml.masking.config import MASKRIS_RATE
from aml.masking.method import MaskingMethod

if TYPE_CHECKING:
    import torch

    from aml.masking.drawing import BlockDraw
    from aml.masking.step import Step


class Blind(MaskingMethod):
    """Hides blocks drawn blindly, the share `share` of those that may be hidden."""

    @property
    def share(self) -> float:
        """Share of blocks that is hidden: aml.rate, or what tau, rho and noise give."""
        return self.rate_or(super().share)

    def check(self, model: Any, image_size: int) -> None:
        """Refuse what `MaskingMethod.check` names, and a share of less than one block."""
        self.check_level(model)
        self.check_one_block(image_size)

    def draw(self, blocks: "BlockDraw") -> tuple["torch.Tensor", "torch.Tensor"]:
        """Return all blocks that may be hidden, and those drawn among them."""
        share = self.share * blocks.ramp
        return blocks.candidate, blocks.blindly(blocks.candidate, share, "select")


class Random(Blind):
    """Hides blocks anywhere: tau * rho of them, at aml.rate, or as many as alignment would hide.

    With `aml.rate: match` stage 1 runs, and the number of hidden blocks of each sample is what the
    method `aml` would hide of it.
    """

    name = "random"

    @property
    def reads_alignment(self) -> bool:
        """Return whether the number of hidden blocks depends on the alignment."""
        return self.config.rate == "match"

    def draw(self, blocks: "BlockDraw") -> tuple["torch.Tensor", "torch.Tensor"]:
        """Return all blocks that may be hidden, and those drawn among them."""
        if not self.reads_alignment:
            return super().draw(blocks)
        _, hidden = blocks.by_alignment()
        return blocks.candidate, blocks.as_many(hidden, "match")


class MaskRis(Blind):
    """Trains on the clean image, then on a masked image and sentence against its own prediction.

    MaskRIS (2024): in the second pass three quarters of the blocks are hidden blindly, 15 % of the
    words are changed, and the first pass's probabilities are learned in place of the ground truth.
    """

    name = "maskris"

    @property
    def level(self) -> str:
        """The image; besides it hides words of its own."""
        return "image"

    @property
    def share(self) -> float:
        """Share of blocks that the second pass hides: aml.rate, else three quarters."""
        return self.rate_or(MASKRIS_RATE)

    def check(self, model: Any, image_size: int) -> None:
        """Refuse a share of less than one block."""
        self.check_one_block(image_size)

    def train(self, step: "Step") -> None:
        """Run a clean pass, then a masked one that learns the first one's probabilities."""
        logits, _ = step.run(step.clean(weight=0.5, last=False))
        mask = step.mask(see_target=False)
        step.run(
            step.masked(
                mask,
                level="image",
                tokens=step.changed_words(),
                weight=0.5,
                soft=logits.float().sigmoid(),
            )
        )


class Consistency(Blind):
    """Trains on the image under a blind mask, then under another, partly against the first answer.

    The first pass learns the ground truth; the second, under a mask drawn independently, half the
    ground truth and half the first pass's probabilities, through which no gradient flows. That is
    MaskRIS's distillation between two masked images, with the sentence as it is.
    """

    name = "consistency"

    def check(self, model: Any, image_size: int) -> None:
        """Refuse what `Blind.check` names, and levels loss and words, which mask no picture."""
        super().check(model, image_size)
        level = self.config.level
        if level in ("loss", "words"):
            raise UserError(
                f"aml.mode consistency with aml.level {level}: it compares predictions of two "
                f"masked pictures, and level {level} masks none; use level image or feature"
            )

    def train(self, step: "Step") -> None:
        """Run a pass under each of two masks of the batch."""
        logits, _ = step.run(step.masked(step.mask(), weight=0.5, last=False))
        soft = logits.float().sigmoid()
        mask = step.mask(name="second-")
        step.run(step.masked(mask, weight=0.5, soft=soft, soft_share=0.5))
