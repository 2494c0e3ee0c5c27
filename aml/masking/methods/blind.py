"""Methods that hide blocks drawn blindly: `random`, and MaskRIS, which also changes words."""

from typing import TYPE_CHECKING, Any

from aml.masking.config import MASKRIS_RATE
from aml.masking.method import MaskingMethod

if TYPE_CHECKING:
    import torch

    from aml.masking.drawing import BlockDraw
    from aml.masking.step import Step


class Random(MaskingMethod):
    """Hides blocks anywhere: tau * rho of them, at aml.rate, or as many as alignment would hide.

    With `aml.rate: match` stage 1 runs, and the number of hidden blocks of each sample is what the
    method `aml` would hide of it.
    """

    name = "random"

    @property
    def reads_alignment(self) -> bool:
        """Return whether the number of hidden blocks depends on the alignment."""
        return self.config.rate == "match"

    @property
    def share(self) -> float:
        """Share of blocks that is hidden: aml.rate, or what tau, rho and noise give."""
        rate = self.config.rate
        return float(rate) if isinstance(rate, (int, float)) else super().share

    def check(self, model: Any, image_size: int) -> None:
        """Refuse what `MaskingMethod.check` names, and a share of less than one block."""
        self.check_level(model)
        self.check_one_block(image_size)

    def draw(self, blocks: "BlockDraw") -> tuple["torch.Tensor", "torch.Tensor"]:
        """Return all blocks that may be hidden, and those drawn among them."""
        if not self.reads_alignment:
            share = self.share * blocks.ramp
            return blocks.candidate, blocks.blindly(blocks.candidate, share, "select")
        _, hidden = blocks.by_alignment()
        return blocks.candidate, blocks.as_many(hidden, "match")


class MaskRis(MaskingMethod):
    """Trains on the clean image, then on a masked image and sentence against its own prediction.

    MaskRIS (2024): in the second pass three quarters of the blocks are hidden blindly, 15 % of the
    words are changed, and the first pass's probabilities are learned in place of the ground truth.
    """

    name = "maskris"

    @property
    def share(self) -> float:
        """Share of blocks that the second pass hides: aml.rate, else three quarters."""
        rate = self.config.rate
        return float(rate) if isinstance(rate, (int, float)) else MASKRIS_RATE

    def check(self, model: Any, image_size: int) -> None:
        """Refuse a share of less than one block."""
        self.check_one_block(image_size)

    def train(self, step: "Step") -> None:
        """Run a clean pass, then a masked one that learns the first one's probabilities."""
        logits, _ = step.run(step.clean(weight=0.5, last=False))
        mask = step.mask(see_target=False)
        step.run(
            step.clean(
                x=step.hide(mask),
                tokens=step.changed_words(),
                weight=0.5,
                soft=logits.float().sigmoid(),
                mask=mask,
            )
        )

    def draw(self, blocks: "BlockDraw") -> tuple["torch.Tensor", "torch.Tensor"]:
        """Return all blocks that may be hidden, and those drawn among them."""
        share = self.share * blocks.ramp
        return blocks.candidate, blocks.blindly(blocks.candidate, share, "select")
