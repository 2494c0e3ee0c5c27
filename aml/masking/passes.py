"""Data of masking: the inputs of a mask, the mask, and one pass of a training step."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from aml.masking.alignment import Alignment
from aml.masking.selection import Blocks


@dataclass(frozen=True)
class MaskInputs:
    """Inputs of a mask's decision, for B samples of H x W network images."""

    model: Any
    """The bare module, never a DDP wrapper."""
    x: torch.Tensor
    """(B, C, H, W) normalised images."""
    tokens: torch.Tensor
    """(B, L) int64"""
    token_mask: torch.Tensor
    """(B, L) bool"""
    item: torch.Tensor
    """(B,) int64: keys the draws."""
    real: torch.Tensor
    """(B, 4) int64: top, left, bottom, right of the picture inside its letterbox."""
    target: torch.Tensor | None = None
    """(B, H, W) bool; read in mode oneref and with protect_target, balance_target and learned
    projections only."""
    valid: torch.Tensor | None = None
    """(B,) bool: False for padding, which calibrates nothing."""
    logits: torch.Tensor | None = None
    """(B, h, w) of a clean pass already made: then no stage 1 runs for source prediction."""
    features: Any = None
    """Features of a clean pass already made: then no stage 1 runs for the other sources."""
    ids: torch.Tensor | None = None
    """(B, 3) int64: number of the item, its picture and its referent, by which aml.stage1 cached
    keeps alignments; None: `item` is all three."""
    view: torch.Tensor | None = None
    """(B, 4) float: how the image was flipped and cropped, see aml.data.Batch."""

    def with_sentence_of_the_sample_before(self) -> "MaskInputs":
        """Return the inputs with the sentences moved on by one sample, so that stage 1 runs."""
        return replace(
            self,
            tokens=self.tokens.roll(1, 0),
            token_mask=self.token_mask.roll(1, 0),
            logits=None,
            features=None,
        )


def whole_image(x: torch.Tensor) -> torch.Tensor:
    """Return the place of pictures that fill the images x (B, C, H, W): (B, 4) int64."""
    return torch.tensor([[0, 0, x.shape[2], x.shape[3]]], device=x.device).expand(len(x), 4)


class Mask(NamedTuple):
    """Decision for a batch: which blocks are hidden, and how it came about."""

    hidden: torch.Tensor
    """(B, gh, gw) bool"""
    weak: torch.Tensor
    """(B, gh, gw) bool: the blocks called weak; in mode random those that could be drawn."""
    blocks: Blocks
    alignment: Alignment | None
    """None where no stage 1 ran."""
    pixels: torch.Tensor
    """(B, H, W) bool: real pixels."""
    words: bool = False
    """Whether words are hidden, with aml.level words: hidden, weak, blocks and the alignment's map
    are then (B, 1, L), of the L tokens."""


class Pass(NamedTuple):
    """One forward and backward of a training step: the model's inputs and the loss's target."""

    x: torch.Tensor
    """(B, C, H, W) normalised"""
    tokens: torch.Tensor
    token_mask: torch.Tensor
    weight: float
    """Weight of this pass's loss; the weights of a step sum to 1."""
    last: bool = True
    """Whether it is the step's last pass, in which gradients are summed over the ranks."""
    visible: torch.Tensor | None = None
    """(B, H, W) bool: what of the encoder's maps the decoder sees; None: all."""
    drop: bool = False
    """Whether the encoder reads the visible patches alone."""
    counted: torch.Tensor | None = None
    """(B, H, W) bool: the pixels that the loss counts; None: all."""
    soft: torch.Tensor | None = None
    """(B, h, w) probabilities to learn in place of the ground truth."""
    soft_share: float = 1.0
    """How much of the loss is that against `soft`; the rest is that against the ground truth."""
    upto: str | None = None
    """Source of which features are wanted beside the logits; None: no features."""
    mask: Mask | None = None
    """The mask in use, for the diagnostics."""
