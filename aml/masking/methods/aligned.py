"""Alignment-aware masked learning: the blocks that match the expression least are hidden.

All presets (aml.masking.PRESETS) are settings of this method.
"""

from typing import TYPE_CHECKING, Any

from aml.errors import UserError
from aml.masking.method import MaskingMethod

if TYPE_CHECKING:
    import torch

    from aml.masking.drawing import BlockDraw


class Aml(MaskingMethod):
    """Hides a share rho of the blocks whose alignment with the expression is weak (AMLRIS 2026)."""

    name = "aml"
    selects_by_alignment = True

    def check(self, model: Any, image_size: int) -> None:
        """Refuse what `MaskingMethod.check` names, and blocks that do not fit the image."""
        super().check(model, image_size)
        config = self.config
        side = config.block_side(image_size)
        if config.selection == "release" and image_size % side:
            raise UserError(
                f"aml.selection release needs an image side that aml.block divides; {image_size} "
                f"and {side} do not go together"
            )
        if config.threshold_mode == "quantile" and config.selection == "block":
            self.check_one_block(image_size)

    def draw(self, blocks: "BlockDraw") -> tuple["torch.Tensor", "torch.Tensor"]:
        """Return the weak blocks, and the hidden ones among them."""
        return blocks.by_alignment()
