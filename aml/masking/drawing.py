"""Draw which blocks are hidden: blindly, or by alignment. Masking methods build on `BlockDraw`.

B samples, H W network image, G blocks of an image
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from aml.draws import uniform, uniforms
from aml.masking.alignment import Alignment, min_max
from aml.masking.config import MaskingConfig
from aml.masking.selection import (
    Blocks,
    block_sums,
    blocks_to_pixels,
    rank_blocks,
    select_blocks,
    select_pixels,
    select_released,
    weak_blocks,
)


@dataclass(frozen=True)
class BlockDraw:
    """The blocks of a batch, and the draws that may hide them; words with aml.level words.

    Every draw is a function of seed, epoch, item and the draw's name: the same on any number of
    workers and after a resume.
    """

    config: MaskingConfig
    block: int
    """Side of a block in pixels."""
    seed: int
    epoch: int
    item: torch.Tensor
    """(B,) int64: keys the draws."""
    candidate: torch.Tensor
    """(B, G) bool: blocks that may be hidden: with real pixels and, where protected, no target.
    With aml.level words G is the number of tokens, and words may be hidden."""
    on_target: torch.Tensor
    """(B, G) bool: blocks that hold pixels of the target."""
    blocks: Blocks
    """Alignment and number of real pixels of each block, both (B, gh, gw)."""
    alignment: Alignment | None
    """The alignment of stage 1; None where none ran."""
    pixels: torch.Tensor
    """(B, H, W) bool: real pixels."""
    name: str = ""
    """Comes before the names of the draws: masks of other names are independent."""

    @property
    def ramp(self) -> float:
        """Factor of the hidden share in this epoch: below 1 while it rises."""
        return self.config.share_at(self.epoch)

    def uniform(self, what: str, count: int = 1) -> torch.Tensor:
        """Return draws in [0, 1) named `what`, float32 (B, count)."""
        return uniform(self.seed, self.epoch, self.item, self.name + what, count)

    def uniforms(self, counts: dict[str, int]) -> tuple[torch.Tensor, ...]:
        """Return draws of several names, (B, count) each, by as few kernels as one takes."""
        named = {self.name + what: count for what, count in counts.items()}
        return uniforms(self.seed, self.epoch, self.item, named)

    def blindly(self, among: torch.Tensor, share: float, what: str) -> torch.Tensor:
        """Return a share of some blocks drawn without looking at the alignment.

        Args:
            among: (B, G) bool, the blocks to draw from.
            share: How many of them, in expectation exactly.
            what: Name of the draw.

        Returns:
            (B, G) bool.
        """
        order, u = self.uniforms({what: among.shape[1], f"{what}-round": 1})
        return select_blocks(among, rho=share, order=order, u=u)

    def as_many(self, hidden: torch.Tensor, what: str) -> torch.Tensor:
        """Return as many candidates of each sample as `hidden` (B, G) holds, drawn blindly."""
        order = self.uniform(what, hidden.shape[1]).masked_fill(~self.candidate, math.inf)
        return self.candidate & (rank_blocks(order) < hidden.sum(1, keepdim=True))

    def around_target(self, margin: int = 0) -> torch.Tensor:
        """Return the blocks in the target's bounding box, (B, G) bool; none without a target.

        Args:
            margin: Blocks by which the box is larger on each side; the image's border cuts it.
        """
        target = self.on_target.view_as(self.blocks.real)
        spans = []
        for line in (target.any(2), target.any(1)):
            wide = F.max_pool1d(line.float(), 2 * margin + 1, stride=1, padding=margin)
            from_first, to_last = wide.cummax(1)[0], wide.flip(1).cummax(1)[0].flip(1)
            spans.append((from_first * to_last).bool())
        return (spans[0][:, :, None] & spans[1][:, None]).flatten(1)

    def by_alignment(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the weak blocks by alignment and the hidden ones, both (B, G) bool.

        With balance_target blocks of the target are hidden blindly at the share tau * rho; with
        noise blocks are hidden blindly besides.
        """
        config = self.config
        among = self.candidate & ~self.on_target if config.balance_target else self.candidate
        weak, hidden = self._select(among)
        if config.balance_target:
            share = config.tau * config.rho * self.ramp
            hidden |= self.blindly(self.candidate & self.on_target, share, "balance")
        if config.noise:
            hidden |= self.blindly(self.candidate, config.noise * self.ramp, "noise")
        return weak, hidden

    def _select(self, candidate: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return weak and hidden blocks by alignment among the candidates (B, G)."""
        if self.alignment is None:
            raise RuntimeError("by_alignment needs stage 1: set reads_alignment in the method")
        config = self.config
        tau, rho = config.tau, config.rho
        if config.ramp == "tau":
            tau *= self.ramp
        else:
            rho *= self.ramp
        places = candidate.shape[1]
        candidate = candidate & self.alignment.informative[:, None]
        score = self.blocks.score.flatten(1)
        tie, weak_u, order, u = self.uniforms(
            {"tie": places, "weak-round": 1, "select": places, "select-round": 1}
        )
        weak = weak_blocks(
            1 - score if config.weak == "highest" else score,
            candidate,
            tau=tau,
            mode=config.threshold_mode,
            tie=tie,
            u=weak_u,
        )
        if config.selection == "block":
            return weak, select_blocks(weak, rho=rho, order=order, u=u)
        fine = self._weak_pixels(self.alignment, weak, candidate, tau)
        if config.selection == "release":
            rows = self.uniform("release", fine[0].numel())
            hidden = select_released(fine, rho=rho, order=rows, block=self.block)
            return weak, hidden.flatten(1)
        count = block_sums(fine.float(), self.block).flatten(1)
        return weak, select_pixels(count, rho=rho, order=order)

    def _weak_pixels(
        self, alignment: Alignment, weak: torch.Tensor, candidate: torch.Tensor, tau: float
    ) -> torch.Tensor:
        """Return the weak pixels, (B, H, W) bool.

        A quantile is taken over blocks, so there a weak block is weak throughout.
        """
        config = self.config
        height, width = self.pixels.shape[1:]
        grid = (len(self.pixels), -(-height // self.block), -(-width // self.block))
        if config.threshold_mode == "quantile":
            return blocks_to_pixels(weak.view(grid), self.block, height, width) & self.pixels
        fine = F.interpolate(
            alignment.map[:, None].float(), (height, width), mode="bilinear", align_corners=False
        )[:, 0]
        fine = 1 - fine if config.weak == "highest" else fine
        if config.threshold_mode == "minmax":
            fine = min_max(fine.flatten(1), self.pixels.flatten(1)).view_as(fine)
        among = blocks_to_pixels(candidate.view(grid), self.block, height, width)
        return (fine < tau) & self.pixels & among
