"""Stage 1: the alignment of a step, from a forward pass of its own or from an earlier epoch.

`Stage1` runs the model without gradient and keeps the calibrated scale. `AlignmentCache` keeps what
the model predicted of each item when it trained on it: the foreground probability of a step's first
pass, of the clean image where there is one, of the masked image otherwise. One number a block is
kept, the mean over the block's real pixels, which is what blocks are ranked by; it lies in a byte
as log-odds, since most of a picture is background, whose probabilities a linear scale would call
equal. 14 x 14 blocks of RefCOCO's 42,404 training refs take 8.3 MB, their ids 1.0 MB.

An item is one of `Items`: a ref, or a sentence with data.unit sentence. Of a ref the map of the
sentence drawn last is kept, which names the same referent as the next one.

B samples, C channels, H W network image, h w alignment grid, N = h*w patches, L tokens, gh gw
blocks, n items kept
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from aml.draws import uniform
from aml.masking.alignment import (
    FLAT,
    Alignment,
    patch_scores,
    similarity,
    solve_scale,
    word_scores,
)
from aml.masking.config import SOFTMAX_SCORES, MaskingConfig
from aml.masking.passes import MaskInputs
from aml.masking.selection import block_means, block_sums, blocks_to_pixels
from aml.masking.stage1.projections import Projections

CALIBRATION_BATCHES = 8
"""Batches on which an automatic scale is measured; nothing is hidden of them."""

REACH = 8.0
"""Largest log-odds that are kept: probabilities of 0.0003 to 0.9997."""

LEVELS = 254
"""Steps between the least and the largest log-odds; a step is 0.06."""

UNSEEN = 255
"""The byte of a block that a crop has cut away, or of an item not predicted yet."""

Predictions = tuple[torch.Tensor, torch.Tensor]
"""Ids (n, 3) int64 of items, as `MaskInputs.ids`, and their blocks (n, gh, gw) uint8."""


class Stage1:
    """Computes alignments; keeps the projections and the calibrated scale of a training run."""

    def __init__(self, config: MaskingConfig, seed: int) -> None:
        self.config = config
        self.log_scales: list[float] = []
        self.projections = Projections(config, seed)

    @property
    def scale(self) -> float:
        """Multiplier in use; with `auto` the geometric mean of the first calibration batches."""
        if self.config.scale != "auto":
            return float(self.config.scale)
        return math.exp(sum(self.log_scales) / len(self.log_scales)) if self.log_scales else 1.0

    @property
    def calibrating(self) -> bool:
        """Return whether the scale is still being measured."""
        measured = self.config.scale == "auto" and self.config.score in SOFTMAX_SCORES
        return measured and len(self.log_scales) < CALIBRATION_BATCHES

    def align(
        self,
        inputs: MaskInputs,
        mean_over_ranks: Callable,
        *,
        calibrate: bool = False,
        of_words: bool = False,
    ) -> Alignment:
        """Return the alignment of a batch.

        The model runs with dropout off and without gradient, no deeper than the source needs, on
        the image resized by stage1_scale; it does not run where logits or features are given.

        Args:
            inputs: The batch; its target (B, H, W) trains learned projections.
            mean_over_ranks: Averages a tensor over the workers.
            calibrate: Also measure the automatic scale and train learned projections.
            of_words: Return the alignment of each token with its best patch, (B, 1, L), which a
                prediction has not.
        """
        x = inputs.x
        if self.config.source == "prediction":
            logits = inputs.logits
            if logits is None:
                with frozen(inputs.model):
                    small = self.shrink(inputs.model, x)
                    logits = inputs.model(small, inputs.tokens, inputs.token_mask)
            grid = logits.shape[1:]
            real = _real_cells(inputs.real, x.shape[2:], grid)
            scores = logits.float().sigmoid().flatten(1)
        else:
            features = inputs.features
            if features is None:
                with frozen(inputs.model):
                    features = inputs.model.features(
                        self.shrink(inputs.model, x),
                        inputs.tokens,
                        inputs.token_mask,
                        upto=self.config.source,
                    )
            grid = features.visual.shape[2:]
            real = _real_cells(inputs.real, x.shape[2:], grid)
            # thresholds compare small differences: float32 throughout
            with torch.autocast(x.device.type, enabled=False):
                scores = self._scores(features, real, inputs, mean_over_ranks, calibrate, of_words)
            if of_words:
                real, grid = features.words, torch.Size((1, scores.shape[1]))
        low = scores.masked_fill(~real, math.inf).amin(1)
        high = scores.masked_fill(~real, -math.inf).amax(1)
        return Alignment(scores.unflatten(1, grid), high - low >= FLAT)

    def shrink(self, model: Any, x: torch.Tensor) -> torch.Tensor:
        """Return images (B, C, H, W) resized by stage1_scale, to sides that the model takes.

        With aml.stage1 cached, which keeps predictions of whole images, they stay as they are.
        """
        if self.config.stage1_scale == 1 or self.config.stage1 == "cached":
            return x
        step = model.image_multiple
        size = [
            max(step, round(side * self.config.stage1_scale / step) * step) for side in x.shape[2:]
        ]
        if size == list(x.shape[2:]):
            return x
        return F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=True)

    def state_dict(self) -> dict[str, Any]:
        """Return the measured scales and the learned projections."""
        return {"log_scales": list(self.log_scales), "projections": self.projections.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the state of another run's stage 1."""
        self.log_scales = list(state["log_scales"])
        self.projections.load_state_dict(state["projections"])

    def _scores(
        self,
        features: Any,
        real: torch.Tensor,
        inputs: MaskInputs,
        mean_over_ranks: Callable,
        calibrate: bool,
        of_words: bool,
    ) -> torch.Tensor:
        """Return the scores out of features, float32 (B, N), of words (B, L); real is (B, N)."""
        config = self.config
        kept = {
            "all": torch.ones_like(features.words),
            "words": features.words,
            "words+pooled": features.words | features.pooled,
        }[config.tokens]
        visual = features.visual.float()
        text = features.text.float()
        if inputs.valid is None:
            counted = torch.ones(len(kept), 1, dtype=torch.bool, device=kept.device)
        else:
            counted = inputs.valid[:, None]
        if calibrate and inputs.target is not None:
            target = inputs.target[:, None].float()
            cover = F.adaptive_avg_pool2d(target, visual.shape[2:]).flatten(1)
            self.projections.learn(visual, text, kept, real & counted, cover, mean_over_ranks)
        w_i, w_t, b_t = self.projections.of(visual, text)
        s = similarity(
            visual.flatten(2).mT, text, normalise=config.normalise, w_i=w_i, w_t=w_t, b_t=b_t
        )
        if calibrate and self.calibrating:
            self.log_scales.append(math.log(solve_scale(s, kept & counted, mean_over_ranks)))
        s = self.scale * s
        if of_words:
            return word_scores(s, config.score, kept, features.words, real)
        return patch_scores(s, config.score, kept, features.pooled, real)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Switch dropout and drop-path off and compute no gradient; the model leaves as it came."""
    # each module has a mode of its own: a frozen encoder stays in eval
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def _real_cells(real: torch.Tensor, image: torch.Size, grid: torch.Size) -> torch.Tensor:
    """Return which cells of a grid over the image hold some of the picture.

    Args:
        real: (B, 4), top, left, bottom, right of the picture.
        image: Height and width of the image.
        grid: Rows and columns of the grid.

    Returns:
        (B, rows * columns) bool.
    """
    y = torch.arange(grid[0], device=real.device) * (image[0] / grid[0])
    x = torch.arange(grid[1], device=real.device) * (image[1] / grid[1])
    top, left, bottom, right = real[:, :, None].unbind(1)
    rows = (y + image[0] / grid[0] > top) & (y < bottom)
    columns = (x + image[1] / grid[1] > left) & (x < right)
    return (rows[:, :, None] & columns[:, None]).flatten(1)


class AlignmentCache:
    """Holds the predictions of earlier epochs, the same on every rank.

    Within an epoch each rank collects its own (`predicted`) among the running sums of the epoch;
    when it ends all ranks add those of all of them (`add`). Both are part of a checkpoint.
    """

    def __init__(self, block: int, image_size: int, *, seed: int, any_referent: bool) -> None:
        """Make an empty cache.

        Args:
            block: Side of a block in pixels.
            image_size: Side of the network's image in pixels.
            seed: Of the draws.
            any_referent: Whether an item gets the map of any referent of its picture, drawn anew
                each epoch, its own included; else its own.
        """
        self.block = block
        self.seed = seed
        self.any_referent = any_referent
        side = math.ceil(image_size / block)
        # no item is number -1: its row stands for all that is not known, and sorts first
        self._ids = torch.full((1, 3), -1)
        self._maps = torch.full((1, side, side), UNSEEN, dtype=torch.uint8)

    @torch.no_grad()
    def predicted(
        self, logits: torch.Tensor, inputs: MaskInputs, pixels: torch.Tensor
    ) -> Predictions:
        """Return what is kept of a pass; nothing waits for the device.

        Args:
            logits: (B, h, w) of the pass.
            inputs: The samples; padding gets the number -1.
            pixels: (B, H, W) bool: real pixels.
        """
        odds = logits.float().nan_to_num(0.0)
        fine = F.interpolate(
            odds.sigmoid()[:, None], pixels.shape[1:], mode="bilinear", align_corners=False
        )[:, 0]
        if inputs.view is not None:
            back = _inverse(inputs.view)
            fine = _warp(fine, back)
            pixels = _warp(pixels.float(), back) > 0
        score, count = block_means(fine, pixels, self.block)
        level = (score.logit(1e-6) / REACH).clamp(-1, 1).add(1).mul(LEVELS / 2).round()
        level = torch.where(count > 0, level, float(UNSEEN)).to(torch.uint8)
        ids = _ids(inputs)
        if inputs.valid is not None:
            ids = torch.where(inputs.valid[:, None], ids, -1)
        return ids, level

    def add(self, found: Predictions) -> None:
        """Take over predictions of an epoch, each item once; blocks not seen stay as they were."""
        ids, maps = (tensor.to(self._ids.device) for tensor in found)
        if maps.shape[1:] != self._maps.shape[1:]:  # kept for blocks of another size
            return
        known = ids[:, 0] >= 0
        ids = torch.cat([self._ids, ids[known]])
        maps = torch.cat([self._maps, maps[known]])
        order = ids[:, 0].argsort(stable=True)
        ids, maps = ids[order], maps[order]
        again = ids[1:, 0] == ids[:-1, 0]
        older = maps[:-1][again]
        newer = maps[1:][again]
        maps[1:][again] = torch.where(newer == UNSEEN, older, newer)
        last = F.pad(~again, (0, 1), value=True)
        self._ids, self._maps = ids[last], maps[last]
        for column in (2, 1) if self.any_referent else ():
            order = self._ids[:, column].argsort(stable=True)
            self._ids, self._maps = self._ids[order], self._maps[order]

    def read(self, inputs: MaskInputs, epoch: int, pixels: torch.Tensor) -> Alignment:
        """Return the alignment of blocks, (B, gh, gw), as it was predicted in an earlier epoch.

        Args:
            inputs: The samples.
            epoch: 0-based.
            pixels: (B, H, W) bool: real pixels.
        """
        ids = _ids(inputs)
        if self._ids.device != ids.device:
            self._ids, self._maps = self._ids.to(ids.device), self._maps.to(ids.device)
        rows = self._any_of_picture(inputs, ids, epoch) if self.any_referent else self._own(ids)
        level = self._maps[rows]
        known = level != UNSEEN
        score = (level.float() * (2 / LEVELS) - 1).mul(REACH).sigmoid() * known
        if inputs.view is None:
            known = known & (block_sums(pixels.float(), self.block) > 0)
        else:
            height, width = pixels.shape[1:]
            fine = blocks_to_pixels(score, self.block, height, width)
            seen = blocks_to_pixels(known.float(), self.block, height, width)
            seen = (_warp(seen, inputs.view) > 0) & pixels
            score, count = block_means(_warp(fine, inputs.view), seen, self.block)
            known = count > 0
        low = score.masked_fill(~known, math.inf).flatten(1).amin(1)
        high = score.masked_fill(~known, -math.inf).flatten(1).amax(1)
        return Alignment(score, high - low >= FLAT, known)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return all that is kept."""
        return {"ids": self._ids.cpu(), "maps": self._maps.cpu()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Take over what another cache kept, unless its blocks have another size."""
        if state["maps"].shape[1:] == self._maps.shape[1:]:
            self._ids, self._maps = state["ids"], state["maps"]

    def _own(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the row of each item's own map, (B,); 0 where there is none."""
        kept = self._ids[:, 0].contiguous()
        row = torch.searchsorted(kept, ids[:, 0].contiguous()).clamp(max=len(kept) - 1)
        return torch.where(kept[row] == ids[:, 0], row, 0)

    def _any_of_picture(self, inputs: MaskInputs, ids: torch.Tensor, epoch: int) -> torch.Tensor:
        """Return the row of a map of each item's picture, (B,); 0 with fewer than two referents.

        All rows of a picture are as likely, so that which it is says nothing of the own referent.
        """
        pictures = self._ids[:, 1].contiguous()
        picture = ids[:, 1].contiguous()
        first = torch.searchsorted(pictures, picture)
        end = torch.searchsorted(pictures, picture, right=True)
        draw = uniform(self.seed, epoch, inputs.item, "referent")[:, 0]
        row = first + (draw * (end - first)).long()
        last = (end - 1).clamp(min=0)
        referents = self._ids[:, 2]
        several = (end > first) & (referents[first.clamp(max=len(pictures) - 1)] != referents[last])
        return torch.where(several, row, 0)


def _ids(inputs: MaskInputs) -> torch.Tensor:
    """Return number, picture and referent of each sample, (B, 3) int64."""
    if inputs.ids is not None:
        return inputs.ids
    return (inputs.item & (2**63 - 1))[:, None].expand(-1, 3)


def _inverse(view: torch.Tensor) -> torch.Tensor:
    """Return the way back of a view (B, 4): from the picture to the augmented image."""
    scale, shift = view.chunk(2, 1)
    return torch.cat([1 / scale, -shift / scale], 1)


def _warp(fine: torch.Tensor, view: torch.Tensor) -> torch.Tensor:
    """Return values (B, H, W) at the places view (B, 4) takes them from, nearest; 0 beyond."""
    y, x, shift_y, shift_x = view.unbind(1)
    zero = torch.zeros_like(x)
    theta = torch.stack([x, zero, shift_x, zero, y, shift_y], 1).view(-1, 2, 3)
    places = F.affine_grid(theta, [len(fine), 1, *fine.shape[1:]], align_corners=False)
    return F.grid_sample(fine[:, None], places, mode="nearest", align_corners=False)[:, 0]
