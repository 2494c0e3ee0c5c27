"""Stage 1: the forward pass without gradient that gives the alignment, and its calibrated scale.

B samples, C channels, H W network image, h w alignment grid, N = h*w patches, L tokens
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from aml.masking.alignment import FLAT, Alignment, patch_scores, similarity, solve_scale
from aml.masking.config import SOFTMAX_SCORES, MaskingConfig
from aml.masking.passes import MaskInputs
from aml.masking.projections import Projections

CALIBRATION_BATCHES = 8
"""Batches on which an automatic scale is measured; nothing is hidden of them."""


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
        self, inputs: MaskInputs, mean_over_ranks: Callable, *, calibrate: bool = False
    ) -> Alignment:
        """Return the alignment of a batch.

        The model runs with dropout off and without gradient, no deeper than the source needs, on
        the image resized by stage1_scale; it does not run where logits or features are given.

        Args:
            inputs: The batch; its target (B, H, W) trains learned projections.
            mean_over_ranks: Averages a tensor over the workers.
            calibrate: Also measure the automatic scale and train learned projections.
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
                scores = self._scores(features, real, inputs, mean_over_ranks, calibrate)
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
    ) -> torch.Tensor:
        """Return the scores of the patches out of features, float32 (B, N); real is (B, N) bool."""
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
        return patch_scores(self.scale * s, config.score, kept, features.pooled, real)


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
