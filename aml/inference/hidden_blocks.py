"""Tell what masked training would hide of one picture for one sentence, at any tau and rho.

Nothing is hidden when a model predicts: this shows what its training does.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from aml.data import fit_image, placement
from aml.errors import UserError
from aml.inference.segmenter import Segmenter, resize_to_original
from aml.masking import Alignment, Masker, MaskingConfig, MaskInputs, preset

Box = tuple[float, float, float, float]
"""Left, top, right and bottom of a block, as shares of the picture's width and height."""


class FixedAlignmentMasker(Masker):
    """Masks by an alignment that is given, so that other thresholds are tried on the same one."""

    alignment: Alignment

    def align(self, *args: Any, **kwargs: Any) -> Alignment:
        """Return the alignment that was given."""
        return self.alignment


@dataclass(frozen=True)
class HiddenBlocks:
    """Holds how one mask changes a picture."""

    weak: list[Box] = field(default_factory=list)
    """The blocks called weak, the hidden ones included."""
    hidden: list[Box] = field(default_factory=list)
    weak_share: float = 0.0
    """Share of the picture's area."""
    hidden_share: float = 0.0
    """Share of the picture's area."""
    refused: str = ""
    """Why training refuses these settings; then no block is weak or hidden."""


def shown_masking(arm: str) -> MaskingConfig:
    """Return the masking that is shown for a checkpoint of an arm.

    It is the arm's own preset where the picture and the sentence alone decide what is hidden, else
    `calibrated`, which reads the model's own prediction.

    Args:
        arm: As a checkpoint names it: off, random, aml/paper; empty where it names none.
    """
    own = preset(arm.removeprefix("aml/")) if arm.startswith("aml/") else preset()
    return own if own.sentence == "own" and not own.balance_target else preset()


class PictureMasking:
    """Masks single pictures of any size as the training of a model would."""

    def __init__(self, segmenter: Segmenter, config: MaskingConfig) -> None:
        """Check the masking against the model.

        Args:
            segmenter: Holds the model, its device and the network image's side.
            config: The masking; `hide` replaces its tau and rho.

        Raises:
            UserError: The masking means nothing for this model.
        """
        self.segmenter = segmenter
        self.config = config
        self.masker = self._masker(config, Masker)

    @torch.inference_mode()
    def align(self, image: np.ndarray, sentence: str) -> Alignment:
        """Return the alignment of a picture with a sentence, a batch of one.

        Args:
            image: (H, W, 3) uint8, RGB.
            sentence: The expression.
        """
        s = self.segmenter
        square = torch.tensor(fit_image(image, s.image_size, s.fit)[None], device=s.device)
        tokens, token_mask = s.tokenise([sentence])
        with s.autocast():
            x = s.model.normalise(square.permute(0, 3, 1, 2))
            inputs = self._inputs(x, tokens, token_mask, image.shape[:2], draw=0)
            return self.masker.align(inputs)

    def full_map(self, alignment: Alignment, size: tuple[int, int]) -> np.ndarray:
        """Return an alignment at the picture's own size, (H, W) float32.

        Args:
            alignment: Of one picture.
            size: Height and width of the picture, H and W.
        """
        s = self.segmenter
        return resize_to_original(alignment.map[0].float(), size, s.image_size, s.fit).cpu().numpy()

    @torch.inference_mode()
    def hide(
        self, alignment: Alignment, size: tuple[int, int], tau: float, rho: float, draw: int = 0
    ) -> HiddenBlocks:
        """Return what would be hidden of a picture.

        Args:
            alignment: Of the picture with a sentence.
            size: Height and width of the picture in pixels.
            tau: The threshold of alignment, in [0, 1].
            rho: The share of the weak blocks that is hidden, in [0, 1].
            draw: Keys the random choice among weak blocks; an epoch of training has its own.

        Raises:
            UserError: tau or rho lies outside [0, 1].
        """
        config = self.config.replace(tau=tau, rho=rho)
        try:
            masker = self._masker(config, FixedAlignmentMasker)
        except UserError as error:
            return HiddenBlocks(refused=str(error))
        masker.alignment = alignment
        side = self.segmenter.image_size
        nothing = torch.zeros(1, 1, dtype=torch.int64, device=self.segmenter.device)
        x = torch.zeros(1, 3, side, side, device=self.segmenter.device)
        inputs = self._inputs(x, nothing, nothing.bool(), size, draw)
        mask = masker.decide(inputs, config.first_epoch, probe=True)
        real = placement(*size, side, self.segmenter.fit)
        area = mask.blocks.real.sum()
        return HiddenBlocks(
            _boxes(mask.weak[0] | mask.hidden[0], masker.block, real),
            _boxes(mask.hidden[0], masker.block, real),
            float((mask.blocks.real * mask.weak).sum() / area),
            float((mask.blocks.real * mask.hidden).sum() / area),
        )

    def _masker(self, config: MaskingConfig, kind: type) -> Any:
        s = self.segmenter
        return kind(config, model=s.model, image_size=s.image_size)

    def _inputs(
        self,
        x: torch.Tensor,
        tokens: torch.Tensor,
        token_mask: torch.Tensor,
        size: tuple[int, ...],
        draw: int,
    ) -> MaskInputs:
        """Return the inputs of a mask of one picture (1, 3, S, S) of an original size."""
        s = self.segmenter
        real = torch.tensor([placement(size[0], size[1], s.image_size, s.fit)], device=s.device)
        item = torch.tensor([draw], device=s.device)
        return MaskInputs(s.model, x, tokens, token_mask, item, real)


def _boxes(chosen: torch.Tensor, block: int, real: tuple[int, int, int, int]) -> list[Box]:
    """Return the chosen blocks (gh, gw) as boxes of the picture that lies at `real` in its square.

    Args:
        chosen: (gh, gw) bool.
        block: Side of a block in pixels of the network image.
        real: Top, left, bottom and right of the picture in the network image.
    """
    top, left, bottom, right = real

    def across(pixel: int) -> float:
        return round((min(max(pixel, left), right) - left) / (right - left), 5)

    def down(pixel: int) -> float:
        return round((min(max(pixel, top), bottom) - top) / (bottom - top), 5)

    return [
        (across(x * block), down(y * block), across((x + 1) * block), down((y + 1) * block))
        for y, x in chosen.nonzero().tolist()
    ]
