"""Hide the image regions an expression does not talk about: PMME scores patches, AFM turns low scores into a block mask.

The mathematics is in aml.pmme and aml.afm, the settings in aml.masking_config; `Masker` holds what lasts (projections, the calibrated
scale) and is all a training loop needs.

    B samples, C channels, H W network image, h w alignment grid, L tokens, G blocks
"""

import math
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F

from aml.draws import uniform
from aml.masking.alignment import FLAT, Alignment, min_max, patch_scores, similarity, solve_scale
from aml.masking.config import MASKRIS_TEXT, SOFTMAX_SCORES, MaskingConfig
from aml.masking.projections import Projections
from aml.masking.selection import (
    Blocks,
    block_sums,
    blocks_to_pixels,
    hide_pixels,
    rank_blocks,
    real_pixels,
    select_blocks,
    select_pixels,
    select_released,
    to_blocks,
    weak_blocks,
)

CALIBRATION_BATCHES = 8


class Mask(NamedTuple):
    """What was decided for a batch."""

    hidden: torch.Tensor
    """(B, gh, gw) bool"""
    weak: torch.Tensor
    """(B, gh, gw) bool: the blocks called weak; in mode random those that could be drawn."""
    blocks: Blocks
    alignment: Alignment | None
    """None where no stage 1 ran."""
    pixels: torch.Tensor
    """(B, H, W) bool: real pixels."""


class Pass(NamedTuple):
    """One forward and backward of a training step: what the model is given, and what its logits are compared with."""

    x: torch.Tensor
    """(B, C, H, W) normalised"""
    tokens: torch.Tensor
    token_mask: torch.Tensor
    weight: float
    """Of its loss; the weights of a step sum to 1."""
    last: bool = True
    visible: torch.Tensor | None = None
    """(B, H, W) bool: what of the encoder's maps the decoder sees; None: all."""
    counted: torch.Tensor | None = None
    """(B, H, W) bool: the pixels that the loss counts; None: all."""
    soft: torch.Tensor | None = None
    """(B, h, w) probabilities to learn in place of the ground truth."""
    upto: str | None = None
    """Features at this source are wanted beside the logits."""
    mask: Mask | None = None
    """The mask in use, for the diagnostics."""


class Masker:
    """Decides what to hide. One a training run: it owns the projections and the calibrated scale, never touches the model.

    mask = masker(model, x, tokens, token_mask, epoch=e, item=ids)      stage 1, forward only
    loss = criterion(model(masker.hide(x, mask), tokens, token_mask))   stage 2, the training step

    `passes` is the whole step in any mode and at any level, as this project's loop drives it.
    """

    def __init__(
        self,
        config: MaskingConfig,
        *,
        model,
        image_size: int,
        seed: int = 0,
        mean_over_ranks=lambda x: x,
    ):
        """mean_over_ranks averages a tensor over the workers: for the calibration of the scale, and for learned projections."""
        config.check(model, image_size)
        self.config, self.seed = config, seed
        self.block = config.block_side(image_size)
        self.mean_over_ranks = mean_over_ranks
        self.log_scales: list[float] = []
        self.projections = Projections(config, seed)

    @property
    def scale(self) -> float:
        """The multiplier in use; with `auto` the geometric mean of the first calibration batches."""
        if self.config.scale != "auto":
            return float(self.config.scale)
        return math.exp(sum(self.log_scales) / len(self.log_scales)) if self.log_scales else 1.0

    @property
    def calibrating(self) -> bool:
        softmax = self.config.score in SOFTMAX_SCORES
        return (
            self.config.scale == "auto" and softmax and len(self.log_scales) < CALIBRATION_BATCHES
        )

    def active(self, epoch: int) -> bool:
        config = self.config
        return config.mode != "off" and config.warmup_epochs <= epoch < (
            config.last_epoch or math.inf
        )

    def passes(self, model, x, batch, epoch: int):
        """The passes of a training step on x = model.normalise(batch.image), in order; send each one's (logits, features or None) back.

        batch: tokens, token_mask, item, real, mask, valid as aml.data.Batch names them.
        """
        config = self.config
        clean = Pass(x, batch.tokens, batch.token_mask, 1.0)
        if not self.active(epoch):
            yield clean
        elif config.mode == "two_pass":
            yield clean._replace(weight=0.5, last=False)
            yield clean._replace(weight=0.5)
        elif config.mode == "maskris":
            logits, _ = yield clean._replace(weight=0.5, last=False)
            mask = self(
                model,
                x,
                batch.tokens,
                batch.token_mask,
                epoch=epoch,
                item=batch.item,
                real=batch.real,
            )
            tokens = change_words(
                model, batch.tokens, batch.token_mask, self.seed, epoch, batch.item
            )
            yield clean._replace(
                x=self.hide(x, mask),
                tokens=tokens,
                weight=0.5,
                soft=logits.float().sigmoid(),
                mask=mask,
            )
        else:
            logits = features = None
            if config.clean_weight:
                reuse = (
                    config.source
                    if self._looks
                    and config.sentence == "own"
                    and config.source != "prediction"
                    and not model.fuses
                    else None
                )
                logits, features = yield clean._replace(
                    weight=config.clean_weight, last=False, upto=reuse
                )
            mask = self(
                model, x, batch.tokens, batch.token_mask, epoch=epoch, item=batch.item, real=batch.real, target=batch.mask, valid=batch.valid,
                logits=logits, features=features,
            )  # fmt: skip
            shown, visible = self.view(x, mask)
            counted = ~self._spread(mask) if config.level == "loss" else None
            yield clean._replace(
                x=shown, weight=1 - config.clean_weight, visible=visible, counted=counted, mask=mask
            )

    def view(self, x, mask: Mask):
        """What the model is given under a mask.   -> x (B, C, H, W), visible (B, H, W) bool or None"""
        if self.config.level == "image":
            return self.hide(x, mask), None
        return x, ~self._spread(mask) if self.config.level == "feature" else None

    def _spread(self, mask: Mask):
        return blocks_to_pixels(mask.hidden, self.block, *mask.pixels.shape[1:])

    @property
    def _looks(self) -> bool:
        """Whether the mask depends on the alignment."""
        return self.config.mode == "aml" or (
            self.config.mode == "random" and self.config.rate == "match"
        )

    @torch.no_grad()
    def __call__(
        self,
        model,
        x,
        tokens,
        token_mask,
        *,
        epoch: int,
        item,
        real=None,
        target=None,
        valid=None,
        logits=None,
        features=None,
        probe=False,
    ) -> Mask:
        """Decide what is hidden of x (B, C, H, W) normalised in this epoch; model is the bare module, never a DDP wrapper.

        item (B,) int64 keys the draws; real (B, 4) the picture inside its letterbox, None: all of it; target (B, H, W) bool is read
        with protect_target, balance_target and learned projections only; valid (B,) bool: False for padding, which calibrates nothing; logits (B, h, w) and features: of a clean pass already made,
        then no stage 1 is run. probe runs stage 1 and the draws of any mode whatever the epoch, without calibrating: for diagnostics.
        """
        config, height, width = self.config, x.shape[2], x.shape[3]
        if real is None:
            real = torch.tensor([[0, 0, height, width]], device=x.device).expand(len(x), 4)
        pixels = real_pixels(real, height, width)
        count = block_sums(pixels.float(), self.block)
        nothing = torch.zeros_like(count, dtype=torch.bool)
        if not probe and not self.active(epoch):
            return Mask(nothing, nothing, Blocks(count.new_zeros(count.shape), count), None, pixels)
        looks = self._looks or probe
        if config.sentence == "other":
            tokens, token_mask, logits, features = (
                tokens.roll(1, 0),
                token_mask.roll(1, 0),
                None,
                None,
            )
        alignment = (
            self.align(
                model,
                x,
                tokens,
                token_mask,
                real,
                logits,
                features,
                None if probe else target,
                valid,
                calibrate=not probe,
            )
            if looks
            else None
        )
        blocks = (
            to_blocks(alignment.map, pixels, self.block)
            if looks
            else Blocks(count.new_zeros(count.shape), count)
        )
        if (self.calibrating and self._looks) or config.mode in ("off", "two_pass"):
            return Mask(nothing, nothing, blocks, alignment, pixels)
        on_target = (
            torch.zeros_like(nothing)
            if target is None
            else block_sums((target & pixels).float(), self.block) > 0
        )
        weak, hidden = self._draw(blocks, count > 0, on_target, alignment, pixels, epoch, item)
        return Mask(hidden.view_as(nothing), weak.view_as(nothing), blocks, alignment, pixels)

    def align(
        self,
        model,
        x,
        tokens,
        token_mask,
        real,
        logits=None,
        features=None,
        target=None,
        valid=None,
        *,
        calibrate=False,
    ) -> Alignment:
        """Stage 1: dropout off, no gradient, no deeper than the source needs, at stage1_scale, unless logits or features are at hand.

        With calibrate it also sets the automatic scale and trains learned projections (on target (B, H, W) bool).
        """
        config = self.config
        if config.source == "prediction":
            if logits is None:
                with frozen(model):
                    logits = model(self._shrink(model, x), tokens, token_mask)
            grid = logits.shape[1:]
            real_patches = _real_cells(real, x.shape[2:], grid)
            scores = logits.float().sigmoid().flatten(1)
        else:
            if features is None:
                with frozen(model):
                    features = model.features(
                        self._shrink(model, x), tokens, token_mask, upto=config.source
                    )
            grid = features.visual.shape[2:]
            real_patches = _real_cells(real, x.shape[2:], grid)
            with torch.autocast(
                x.device.type, enabled=False
            ):  # thresholds compare small differences: float32 throughout
                scores = self._scores(features, real_patches, target, valid, calibrate)
        low = scores.masked_fill(~real_patches, math.inf).amin(1)
        high = scores.masked_fill(~real_patches, -math.inf).amax(1)
        return Alignment(scores.unflatten(1, grid), high - low >= FLAT)

    def _scores(self, f, real_patches, target, valid, calibrate: bool):
        """Features to scores (B, N)."""
        config = self.config
        kept = {
            "all": torch.ones_like(f.words),
            "words": f.words,
            "words+pooled": f.words | f.pooled,
        }[config.tokens]
        visual, text = f.visual.float(), f.text.float()
        counted = (
            torch.ones(len(kept), 1, dtype=torch.bool, device=kept.device)
            if valid is None
            else valid[:, None]
        )
        if calibrate and target is not None:
            cover = F.adaptive_avg_pool2d(target[:, None].float(), visual.shape[2:]).flatten(1)
            self.projections.learn(
                visual, text, kept, real_patches & counted, cover, self.mean_over_ranks
            )
        w_i, w_t, b_t = self.projections.of(visual, text)
        s = similarity(
            visual.flatten(2).mT, text, normalise=config.normalise, w_i=w_i, w_t=w_t, b_t=b_t
        )
        if calibrate and self.calibrating:
            self.log_scales.append(math.log(solve_scale(s, kept & counted, self.mean_over_ranks)))
        return patch_scores(self.scale * s, config.score, kept, f.pooled, real_patches)

    def hide(self, x, mask: Mask) -> torch.Tensor:
        return hide_pixels(x, mask.hidden, self.block, self.config.fill, mask.pixels)

    def state_dict(self) -> dict:
        return {"log_scales": list(self.log_scales), "projections": self.projections.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.log_scales = list(state["log_scales"])
        self.projections.load_state_dict(state["projections"])

    def _draw(self, blocks, candidate, on_target, alignment, pixels, epoch, item):
        """The weak and the hidden blocks, both (B, G) bool.   candidate, on_target (B, gh, gw) bool"""
        config, ramp = self.config, self.config.share_at(epoch)
        flat, on_target = candidate.flatten(1), on_target.flatten(1)
        if config.protect_target:
            flat = flat & ~on_target

        def u(what, count=1):
            return uniform(self.seed, epoch, item, what, count)

        def blindly(among, share, what):
            return select_blocks(
                among, rho=share, order=u(what, flat.shape[1]), u=u(f"{what}-round")
            )

        if not self._looks and config.mode != "aml":
            return flat, blindly(flat, config.share * ramp, "select")
        weak, hidden = self._aligned(
            flat & ~on_target if config.balance_target else flat, blocks, alignment, pixels, ramp, u
        )
        if config.balance_target:
            hidden |= blindly(flat & on_target, config.tau * config.rho * ramp, "balance")
        if config.noise:
            hidden |= blindly(flat, config.noise * ramp, "noise")
        if config.mode == "random":  # match: as many blocks, anywhere
            others = u("match", flat.shape[1]).masked_fill(~flat, math.inf)
            return flat, flat & (rank_blocks(others) < hidden.sum(1, keepdim=True))
        return weak, hidden

    def _aligned(self, candidate, blocks, alignment, pixels, ramp: float, u):
        """Weak and hidden blocks by alignment among the candidates (B, G)."""
        config, places = self.config, candidate.shape[1]
        candidate = candidate & alignment.informative[:, None]
        score = blocks.score.flatten(1)
        score = 1 - score if config.weak == "highest" else score
        weak = weak_blocks(
            score,
            candidate,
            tau=config.tau,
            mode=config.threshold_mode,
            tie=u("tie", places),
            u=u("weak-round"),
        )
        if config.selection == "block":
            return weak, select_blocks(
                weak, rho=config.rho * ramp, order=u("select", places), u=u("select-round")
            )
        fine = self._weak_pixels(alignment, weak, candidate, pixels)
        if config.selection == "release":
            hidden = select_released(
                fine, rho=config.rho * ramp, order=u("release", fine[0].numel()), block=self.block
            )
            return weak, hidden.flatten(1)
        return weak, select_pixels(
            block_sums(fine.float(), self.block).flatten(1),
            rho=config.rho * ramp,
            order=u("select", places),
        )

    def _weak_pixels(self, alignment, weak, candidate, pixels):
        """(B, H, W) bool. A quantile is taken over blocks, so there a weak block is weak throughout."""
        config, (height, width) = self.config, pixels.shape[1:]
        grid = (len(pixels), -(-height // self.block), -(-width // self.block))
        if config.threshold_mode == "quantile":
            return blocks_to_pixels(weak.view(grid), self.block, height, width) & pixels
        fine = F.interpolate(
            alignment.map[:, None].float(), (height, width), mode="bilinear", align_corners=False
        )[:, 0]
        fine = 1 - fine if config.weak == "highest" else fine
        if config.threshold_mode == "minmax":
            fine = min_max(fine.flatten(1), pixels.flatten(1)).view_as(fine)
        return (
            (fine < config.tau)
            & pixels
            & blocks_to_pixels(candidate.view(grid), self.block, height, width)
        )

    def _shrink(self, model, x):
        if self.config.stage1_scale == 1:
            return x
        step = model.image_multiple
        size = [
            max(step, round(side * self.config.stage1_scale / step) * step) for side in x.shape[2:]
        ]
        return (
            F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=True)
            if size != list(x.shape[2:])
            else x
        )


def change_words(model, tokens, token_mask, seed: int, epoch: int, item) -> torch.Tensor:
    """MaskRIS's second sentence: 15 % of the words changed, of these 80 % to the mask token, 10 % to a random word, 10 % kept.

    tokens (B, L) int64 -> (B, L) int64. A tokenizer without a mask token gets a random word in its place.
    """
    special = torch.zeros_like(token_mask)
    for token in model.special_tokens:
        special |= tokens == token
    length, (first, end) = tokens.shape[1], model.word_ids
    chosen = (uniform(seed, epoch, item, "word", length) < MASKRIS_TEXT) & token_mask & ~special
    how = uniform(seed, epoch, item, "word-how", length)
    other = first + (uniform(seed, epoch, item, "word-which", length) * (end - first)).long()
    masked = other if model.mask_token is None else torch.full_like(tokens, model.mask_token)
    return torch.where(
        chosen, torch.where(how < 0.8, masked, torch.where(how < 0.9, other, tokens)), tokens
    )


@contextmanager
def frozen(model):
    """Dropout and drop-path off, no gradient; the model leaves as it came."""
    modes = [
        (module, module.training) for module in model.modules()
    ]  # each its own: a frozen encoder stays in eval
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def _real_cells(real, image: tuple[int, int], grid: tuple[int, int]) -> torch.Tensor:
    """Cells of a grid over the image that hold some of the picture.   real (B, 4) -> (B, h*w) bool"""
    y = torch.arange(grid[0], device=real.device) * (image[0] / grid[0])
    x = torch.arange(grid[1], device=real.device) * (image[1] / grid[1])
    top, left, bottom, right = real[:, :, None].unbind(1)
    rows, columns = (
        (y + image[0] / grid[0] > top) & (y < bottom),
        (x + image[1] / grid[1] > left) & (x < right),
    )
    return (rows[:, :, None] & columns[:, None]).flatten(1)
