"""Methods that place the mask by the referred region: OneRef's dynamic image masking."""

from typing import TYPE_CHECKING, Any

from aml.errors import UserError
from aml.masking.config import ONEREF_RATE, ONEREF_REGION
from aml.masking.method import MaskingMethod

if TYPE_CHECKING:
    import torch

    from aml.masking.drawing import BlockDraw


class OneRef(MaskingMethod):
    """Hides three quarters of the blocks in the referred region, and about a third of the others.

    The referring-aware dynamic image masking of OneRef (Xiao et al., NeurIPS 2024): patches in the
    target's bounding box and one patch around it are masked at the ratio gamma = 0.75, those
    outside it at the lower ratio beta = 0.35 (defaults of the released code), each set drawn
    without replacement. Here that places the mask of a training step of segmentation.

    What does not carry over: OneRef masks so in a pre-training, Mask Referring Modeling, where
    hidden patches become a learned token, words are hidden as well, and both are reconstructed
    together with scores of their relation to the target. Here hidden blocks are blanked as aml.fill
    says, the sentence is whole, and the loss is that of all arms. Blocks take the place of patches;
    the box is that of the blocks with pixels of the target and is wider by one on all four sides
    (the released code cuts coordinates down to whole patches, which takes most of the margin away
    on the right and below); and the number of hidden blocks is rounded by a draw, so that ratios
    hold exactly in expectation.

    The mask is drawn from the ground truth, so the holes give the target away by construction: the
    diagnostics hidden_target, lift and mask_auroc show how far.
    """

    name = "oneref"

    @property
    def share(self) -> float:
        """Share of blocks hidden outside the region: aml.rate, else beta; an image loses more."""
        return self.rate_or(ONEREF_RATE)

    def check(self, model: Any, image_size: int) -> None:
        """Refuse to hide words, and places of maps in which the words are read already."""
        if self.config.level == "words":
            raise UserError(
                "aml.mode oneref with aml.level words: it hides the referred region of a picture; "
                "use level image, feature or loss"
            )
        self.check_level(model)

    def draw(self, blocks: "BlockDraw") -> tuple["torch.Tensor", "torch.Tensor"]:
        """Return all blocks that may be hidden, and those drawn in the region and outside it."""
        region = blocks.around_target(margin=1)
        hidden = blocks.blindly(blocks.candidate & region, ONEREF_REGION * blocks.ramp, "region")
        outside = blocks.candidate & ~region
        return blocks.candidate, hidden | blocks.blindly(
            outside, self.share * blocks.ramp, "select"
        )
