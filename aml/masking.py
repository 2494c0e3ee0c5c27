"""Hide the image regions an expression does not talk about: PMME scores patches, AFM turns low scores into a block mask.

The mathematics is pure functions; `Masker` holds the settings and the two things that last (the projections and the calibrated
scale) and is all a training loop needs. Formulas: AMLRIS (ICLR 2026), "PMME" and "AFM"; deviations are named where they are made.

    B samples, C channels, H W network image, h w alignment grid, N = h*w patches, L tokens, D features,
    b block side in pixels, G = gh*gw blocks, gh = ceil(H/b), gw = ceil(W/b) (border blocks are cut)
"""

import math
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import NamedTuple

import torch
import torch.nn.functional as F

from aml.draws import uniform
from aml.errors import UserError

MODES = ("off", "random", "aml")
SOURCES = ("encoder", "joint", "prediction")
SCORES = ("token_softmax", "patch_softmax", "cosine", "sentence", "probability")
CHOICES = {
    "mode": MODES,
    "source": SOURCES,
    "score": SCORES,
    "projection": ("gaussian", "shared", "identity"),
    "tokens": ("all", "words", "words+pooled"),
    "threshold_mode": ("absolute", "minmax", "quantile"),
    "selection": ("pixel", "block"),
    "fill": ("zero", "mean"),
}
SOFTMAX_SCORES = ("token_softmax", "patch_softmax")
"""The scores a scale changes; the others are min-max normalised per image or probabilities already."""
FLAT = 1e-6
"""A map whose maximum and minimum differ by less is constant: it says nothing, and no block of it is weak."""
CALIBRATION_BATCHES = 8


@dataclass(frozen=True, kw_only=True)
class MaskingConfig:
    """Settings of masked learning; the defaults are the preset `calibrated` (see `preset`)."""

    mode: str = "aml"
    """off: never hide. random: hide blocks drawn blindly. aml: hide blocks that match the expression least."""
    preset: str = "calibrated"
    """The preset these settings started from; names the arm."""
    source: str = "prediction"
    """Where alignment is read: encoder (last visual stage, token features), joint (the pair the model itself multiplies), prediction."""
    score: str = "probability"
    """How similarities become a score in [0, 1]; `probability` belongs to the source `prediction` and to no other."""
    projection: str = "identity"
    """gaussian: two independent seeded matrices. shared: one. identity: none."""
    width: int | None = None
    """Alignment width D_a of a projection; None: the model's feature width."""
    normalise: bool = True
    """l2-normalise features before the product."""
    scale: float | str = "auto"
    """Multiplies similarities before a softmax. auto: where mean(token-softmax entropy / log tokens) is 0.5, measured then fixed."""
    tokens: str = "words"
    """Tokens that take part: all (padding too), words, words+pooled."""
    threshold_mode: str = "quantile"
    """absolute: weak iff score < tau. minmax: after per-image min-max. quantile: the lowest tau share of blocks."""
    tau: float = 0.5
    """Threshold in [0, 1]."""
    rho: float = 0.5
    """Share of the weak set that is hidden, in [0, 1]."""
    rate: float | str | None = None
    """mode random: share of blocks hidden; None: tau * rho; match: per sample as many blocks as aml would hide, elsewhere."""
    block: int | None = None
    """Side of a block in pixels; None: 1/14 of the image side, rounded."""
    selection: str = "block"
    """block: floor(rho k + u) of the k weak blocks. pixel: each weak pixel with probability rho hides its block (paper)."""
    fill: str = "zero"
    """zero: the data mean in normalised units. mean: the mean of this image."""
    protect_target: bool = False
    """Blocks with target pixels are never hidden, in `random` too. It gives the target away: for ablations."""
    clean_weight: float = 0.0
    """Weight of the loss on the clean image; the masked image gets the rest. Above 0 the clean pass is stage 1 as well."""
    warmup_epochs: int = 0
    """First epochs trained as `off`."""
    stage1_scale: float = 0.5
    """Stage 1 sees the image resized by this share, rounded to the model's image_multiple."""

    def __post_init__(self):
        for name, known in CHOICES.items():
            _check_choice(name, getattr(self, name), known)
        for name in ("tau", "rho", "clean_weight"):
            _check_share(name, getattr(self, name))
        if isinstance(self.rate, str) and self.rate != "match":
            raise UserError(f"aml.rate is {self.rate!r}; it must be a number in [0, 1], null (tau * rho) or match")
        if isinstance(self.rate, (int, float)):
            _check_share("rate", self.rate)
        if (self.source == "prediction") != (self.score == "probability"):
            raise UserError(
                f"aml.source {self.source} with aml.score {self.score}: the prediction is scored by probability and nothing else is; "
                "set both or neither"
            )
        if self.scale != "auto" and not (isinstance(self.scale, (int, float)) and 0 < self.scale < math.inf):
            raise UserError(f"aml.scale is {self.scale!r}; it must be a number above 0 or auto")
        if self.block is not None and self.block < 1:
            raise UserError(f"aml.block is {self.block} pixels; it must be 1 or more, or null for 1/14 of the side")
        if not 0 < self.stage1_scale <= 1:
            raise UserError(f"aml.stage1_scale is {self.stage1_scale}; it must lie in (0, 1]")
        if self.clean_weight == 1:
            raise UserError("aml.clean_weight is 1, which leaves nothing for the masked image; give less than 1, or use aml.mode off")
        if self.warmup_epochs < 0:
            raise UserError(f"aml.warmup_epochs is {self.warmup_epochs}; it must be 0 or more")
        if self.width is not None and self.width < 1:
            raise UserError(f"aml.width is {self.width}; it must be 1 or more, or null for the model's width")
        if self.width is not None and self.projection == "identity":
            raise UserError(f"aml.width is {self.width} but aml.projection identity keeps the model's width; drop one of them")

    @property
    def arm(self) -> str:
        """The name under which runs with these settings are compared: off, random, aml/calibrated, aml/paper."""
        return f"aml/{self.preset}" if self.mode == "aml" else self.mode

    @property
    def share(self) -> float:
        """Share of blocks that a sample is meant to lose (exact in expectation for quantile and block)."""
        if self.mode == "off":
            return 0.0
        if self.mode == "random" and isinstance(self.rate, (int, float)):
            return float(self.rate)
        return self.tau * self.rho

    @property
    def coordinates(self) -> tuple[float, float]:
        """(tau, rho) of the run in the plane where off is (0, 0) and random is (1, rate): what those arms are."""
        return {"off": (0.0, 0.0), "random": (1.0, self.share)}.get(self.mode, (self.tau, self.rho))

    def block_side(self, image_size: int) -> int:
        return self.block or max(1, round(image_size / 14))

    def check(self, model, image_size: int) -> None:
        """Refuse settings that cannot mean anything for this model at this image size (UserError)."""
        if self.mode == "aml" and self.source not in model.sources:
            raise UserError(f"aml.source {self.source} is not offered by model {model.name}; it offers {', '.join(model.sources)}")
        side = self.block_side(image_size)
        blocks = math.ceil(image_size / side) ** 2
        counted = self.mode == "random" or (self.mode == "aml" and self.threshold_mode == "quantile" and self.selection == "block")
        if counted and self.share * blocks < 1:
            raise UserError(
                f"{self.arm} hides tau*rho*n = {self.share:g} * {blocks} = {self.share * blocks:.2f} blocks an image, less than one; "
                f"raise aml.tau or aml.rho to a product of at least {1 / blocks:.4f}, lower aml.block, or use aml.mode off"
            )


PRESETS = {
    "calibrated": {},
    "paper": {
        "source": "encoder",
        "score": "token_softmax",
        "projection": "gaussian",
        "width": 2048,
        "scale": 1.0,
        "tokens": "all",
        "threshold_mode": "absolute",
        "tau": 0.4,
        "rho": 0.25,
        "selection": "pixel",
        "stage1_scale": 1.0,
    },
}
"""calibrated: this project's defaults. paper: the formulas as printed (tau 0.4, rho 0.25, D_a 2048, block 32 at 448 px)."""


def preset(name: str = "calibrated", **overrides) -> MaskingConfig:
    """The settings called `name`, some of them replaced. UserError names an unknown preset or setting and its nearest known one."""
    _check_choice("preset", name, tuple(PRESETS))
    known = tuple(f.name for f in fields(MaskingConfig))
    for key in overrides:
        if key not in known:
            raise UserError(f"aml.{key} is not a masking setting{_nearest(key, known)}; known: {', '.join(known)}")
    return MaskingConfig(**{"preset": name, **PRESETS[name], **overrides})


# ---- PMME: alignment ------------------------------------------------------------------------------------------------


class Alignment(NamedTuple):
    map: torch.Tensor
    """(B, h, w) float in [0, 1]: how well a patch matches the expression."""
    informative: torch.Tensor
    """(B,) bool: the map is not constant over the image."""


def similarity(visual, text, *, normalise: bool = True, scale: float = 1.0, w_i=None, w_t=None) -> torch.Tensor:
    """s_nl = scale <v'_n, t'_l> (paper, PMME).   visual (B, N, D_v), text (B, L, D_t) -> (B, N, L) float32

    w_i (D_a, D_v) and w_t (D_a, D_t) project after the l2 norm, as the paper writes it; None leaves the features as they are.
    """
    visual, text = visual.float(), text.float()
    if normalise:
        visual, text = F.normalize(visual, dim=-1), F.normalize(text, dim=-1)
    if w_i is not None:
        visual, text = visual @ w_i.mT, text @ w_t.mT
    return scale * visual @ text.mT


def patch_scores(s, score: str, kept, pooled, real) -> torch.Tensor:
    """Similarities to one score a patch in [0, 1].   s (B, N, L); kept, pooled (B, L) bool; real (B, N) bool -> (B, N)"""
    if score == "sentence":
        return _min_max((s * pooled[:, None]).sum(-1), real)
    s = s.masked_fill(~kept[:, None], -math.inf)
    if score == "token_softmax":
        return s.softmax(-1).amax(-1).nan_to_num(0.0)  # no kept token at all: a softmax over nothing
    if score == "patch_softmax":
        p = s.masked_fill(~real[..., None], -math.inf).softmax(1)
        return (p / p.amax(1, keepdim=True)).nan_to_num(0.0).amax(-1)
    return _min_max(s.amax(-1).nan_to_num(neginf=0.0), real)  # cosine


def token_entropy(s, kept) -> torch.Tensor:
    """Mean over patches and samples of entropy(softmax over kept tokens) / log(tokens).   s (B, N, L), kept (B, L) -> ()

    Samples with fewer than two kept tokens have no entropy to speak of and are left out.
    """
    total, several = _token_entropies(s, kept)
    return total / several.clamp(min=1)


def _token_entropies(s, kept) -> torch.Tensor:
    """Sum over the samples with two kept tokens or more, and their number.   -> (2,)"""
    log_p = s.masked_fill(~kept[:, None], -math.inf).log_softmax(-1)
    entropy = -(log_p.exp() * log_p.masked_fill(~kept[:, None], 0)).sum(-1).mean(1)
    tokens = kept.sum(1)
    several = tokens >= 2
    share = entropy / tokens.clamp(min=2).float().log()
    return torch.stack([torch.where(several, share, 0.0).sum(), several.sum().float()])


def solve_scale(s, kept, mean: Callable[[torch.Tensor], torch.Tensor] = lambda x: x) -> float:
    """The scale at which `token_entropy` is 0.5, by bisection in log scale.   s (B, N, L) at scale 1; `mean` averages a tensor over ranks."""
    low, high = math.log(1e-3), math.log(1e5)
    for _ in range(40):
        middle = (low + high) / 2
        total, several = mean(_token_entropies(s * math.exp(middle), kept)).tolist()
        too_flat = total > 0.5 * several  # ranks may hold different numbers of such samples: sums meet, not means
        low, high = (middle, high) if too_flat else (low, middle)
    return math.exp((low + high) / 2)


def _min_max(x, real):
    low = x.masked_fill(~real, math.inf).amin(1, keepdim=True)
    high = x.masked_fill(~real, -math.inf).amax(1, keepdim=True)
    span = high - low
    return ((x - low) / span.clamp(min=FLAT)).clamp(0, 1) * (span >= FLAT)  # a constant row stays constant: no stretched rounding


# ---- AFM: from alignment to a block mask ----------------------------------------------------------------------------


class Blocks(NamedTuple):
    """An image cut into blocks."""

    score: torch.Tensor
    """(B, gh, gw) mean alignment over a block's real pixels."""
    real: torch.Tensor
    """(B, gh, gw) real pixels of a block; 0 for a block of letterbox only."""


def real_pixels(real, height: int, width: int) -> torch.Tensor:
    """real (B, 4) int64 top, left, bottom, right of the picture inside its letterbox -> (B, H, W) bool"""
    y, x = torch.arange(height, device=real.device), torch.arange(width, device=real.device)
    top, left, bottom, right = real[:, :, None].unbind(1)
    return ((y >= top) & (y < bottom))[:, :, None] & ((x >= left) & (x < right))[:, None]


def block_sums(pixels, block: int) -> torch.Tensor:
    """Sum over each block, border blocks cut.   pixels (B, H, W) float -> (B, gh, gw)"""
    height, width = pixels.shape[1:]
    padded = F.pad(pixels, (0, -width % block, 0, -height % block))
    return padded.unflatten(2, (-1, block)).unflatten(1, (-1, block)).sum((2, 4))


def to_blocks(alignment, pixels, block: int) -> Blocks:
    """alignment (B, h, w) float, pixels (B, H, W) bool -> Blocks; the map is resized bilinearly to the image first (paper, AFM)."""
    fine = F.interpolate(alignment[:, None].float(), pixels.shape[1:], mode="bilinear", align_corners=False)[:, 0]
    count = block_sums(pixels.float(), block)
    return Blocks(block_sums(fine * pixels, block) / count.clamp(min=1), count)


def weak_blocks(score, candidate, *, tau: float, mode: str, tie, u) -> torch.Tensor:
    """Which blocks match the expression too little.   score (B, G), candidate (B, G) bool, tie (B, G), u (B, 1) draws -> (B, G) bool

    absolute: score < tau. minmax: the same after min-max over the candidates. quantile: the floor(tau n + u) lowest of the n
    candidates, equal scores in the order of `tie`, so that the expected share is exactly tau.
    """
    if mode == "absolute":
        return candidate & (score < tau)
    if mode == "minmax":
        return candidate & (_min_max(score, candidate) < tau)
    count = (tau * candidate.sum(1, keepdim=True) + u).floor()
    return candidate & (_rank(score.masked_fill(~candidate, math.inf), tie) < count)


def select_blocks(weak, *, rho: float, order, u) -> torch.Tensor:
    """floor(rho k + u) of the k weak blocks, those of smallest draw.   weak (B, G) bool, order (B, G), u (B, 1) -> (B, G) bool"""
    count = (rho * weak.sum(1, keepdim=True) + u).floor()
    return weak & (_rank(order.masked_fill(~weak, math.inf)) < count)


def select_pixels(weak_pixels, *, rho: float, order) -> torch.Tensor:
    """Paper's rule: each weak pixel is drawn with probability rho and hides its block.   weak_pixels (B, G) counts, order (B, G) -> bool

    One draw a block against P(some pixel drawn) = 1 - (1 - rho)^n has the same distribution as n draws.
    """
    return order < 1 - (1 - rho) ** weak_pixels


def _rank(x, tie=None) -> torch.Tensor:
    """Position of each entry in its row's ascending order; equal entries in the order of `tie`, else of place."""
    first = tie.argsort(1) if tie is not None else torch.arange(x.shape[1], device=x.device).expand_as(x)
    order = first.gather(1, x.gather(1, first).argsort(dim=1, stable=True))
    return torch.empty_like(order).scatter_(1, order, torch.arange(x.shape[1], device=x.device).expand_as(order))


def hide(x, hidden, block: int, fill: str = "zero", pixels=None) -> torch.Tensor:
    """Blank hidden blocks.   x (B, C, H, W) normalised, hidden (B, gh, gw) bool, pixels (B, H, W) bool real ones -> (B, C, H, W)

    fill zero is the data mean in normalised units; mean is the mean over this image's real pixels.
    """
    mask = spread(hidden, block, x.shape[2], x.shape[3])[:, None]
    if fill == "zero":
        return x.masked_fill(mask, 0.0)
    weight = torch.ones_like(mask) if pixels is None else pixels[:, None]
    mean = (x * weight).sum((2, 3), keepdim=True) / weight.sum((2, 3), keepdim=True).clamp(min=1)
    return torch.where(mask, mean.to(x.dtype), x)


def spread(blocks, block: int, height: int, width: int) -> torch.Tensor:
    """Blocks to pixels, border blocks cut.   (B, gh, gw) -> (B, H, W)"""
    return blocks.repeat_interleave(block, 1)[:, :height].repeat_interleave(block, 2)[:, :, :width]


# ---- what a loop holds ----------------------------------------------------------------------------------------------


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


class Masker:
    """Decides what to hide. One a training run: it owns the projections and the calibrated scale, never touches the model.

    mask = masker(model, x, tokens, token_mask, epoch=e, item=ids)      stage 1, forward only
    loss = criterion(model(masker.hide(x, mask), tokens, token_mask))   stage 2, the training step
    """

    def __init__(self, config: MaskingConfig, *, model, image_size: int, seed: int = 0, mean_over_ranks=lambda x: x):
        """mean_over_ranks averages a tensor over the workers; only the calibration of the scale uses it."""
        config.check(model, image_size)
        self.config, self.seed = config, seed
        self.block = config.block_side(image_size)
        self.mean_over_ranks = mean_over_ranks
        self.log_scales: list[float] = []
        self._matrices = {}

    @property
    def scale(self) -> float:
        """The multiplier in use; with `auto` the geometric mean of the first calibration batches."""
        if self.config.scale != "auto":
            return float(self.config.scale)
        return math.exp(sum(self.log_scales) / len(self.log_scales)) if self.log_scales else 1.0

    @property
    def calibrating(self) -> bool:
        softmax = self.config.score in SOFTMAX_SCORES
        return self.config.scale == "auto" and softmax and len(self.log_scales) < CALIBRATION_BATCHES

    def active(self, epoch: int) -> bool:
        return self.config.mode != "off" and epoch >= self.config.warmup_epochs

    @torch.no_grad()
    def __call__(self, model, x, tokens, token_mask, *, epoch: int, item, real=None, target=None, logits=None, probe=False) -> Mask:
        """Decide what is hidden of x (B, C, H, W) normalised in this epoch; model is the bare module, never a DDP wrapper.

        item (B,) int64 keys the draws; real (B, 4) the picture inside its letterbox, None: all of it; target (B, H, W) bool is read
        with protect_target only; logits (B, h, w): a clean pass already made, then the source `prediction` costs nothing. probe runs
        stage 1 and the draws of any mode whatever the epoch, without calibrating: for diagnostics.
        """
        config, height, width = self.config, x.shape[2], x.shape[3]
        if real is None:
            real = torch.tensor([[0, 0, height, width]], device=x.device).expand(len(x), 4)
        pixels = real_pixels(real, height, width)
        count = block_sums(pixels.float(), self.block)
        nothing = torch.zeros_like(count, dtype=torch.bool)
        if not probe and not self.active(epoch):
            return Mask(nothing, nothing, Blocks(count.new_zeros(count.shape), count), None, pixels)
        looks = config.mode == "aml" or config.rate == "match" or probe
        alignment = self.align(model, x, tokens, token_mask, real, logits, calibrate=not probe) if looks else None
        blocks = to_blocks(alignment.map, pixels, self.block) if looks else Blocks(count.new_zeros(count.shape), count)
        waits = self.calibrating and (config.mode == "aml" or config.rate == "match")
        if waits or config.mode == "off":
            return Mask(nothing, nothing, blocks, alignment, pixels)
        candidate = count > 0
        if config.protect_target:
            candidate &= block_sums(target.float(), self.block) == 0
        weak, hidden = self._draw(blocks, candidate, alignment, pixels, epoch, item)
        return Mask(hidden.view_as(nothing), weak.view_as(nothing), blocks, alignment, pixels)

    def align(self, model, x, tokens, token_mask, real, logits=None, *, calibrate=False) -> Alignment:
        """Stage 1: dropout off, no gradient, no deeper than the source needs, at stage1_scale unless `logits` are at hand."""
        config = self.config
        if config.source == "prediction":
            if logits is None:
                with frozen(model):
                    logits = model(self._shrink(model, x), tokens, token_mask)
            scores, (h, w) = logits.float().sigmoid().flatten(1), logits.shape[1:]
            real_patches = _real_cells(real, x.shape[2:], (h, w))
        else:
            with frozen(model):
                f = model.features(self._shrink(model, x), tokens, token_mask, upto=config.source)
            h, w = f.visual.shape[2:]
            real_patches = _real_cells(real, x.shape[2:], (h, w))
            kept = {"all": torch.ones_like(f.words), "words": f.words, "words+pooled": f.words | f.pooled}[config.tokens]
            w_i, w_t = self._projections(f.visual.shape[1], f.text.shape[2], x.device)
            with torch.autocast(x.device.type, enabled=False):  # thresholds compare small differences: float32 throughout
                s = similarity(f.visual.flatten(2).mT, f.text, normalise=config.normalise, w_i=w_i, w_t=w_t)
                if calibrate and self.calibrating:
                    self.log_scales.append(math.log(solve_scale(s, kept, self.mean_over_ranks)))
                scores = patch_scores(self.scale * s, config.score, kept, f.pooled, real_patches)
        low = scores.masked_fill(~real_patches, math.inf).amin(1)
        high = scores.masked_fill(~real_patches, -math.inf).amax(1)
        return Alignment(scores.unflatten(1, (h, w)), high - low >= FLAT)

    def hide(self, x, mask: Mask) -> torch.Tensor:
        return hide(x, mask.hidden, self.block, self.config.fill, mask.pixels)

    def state_dict(self) -> dict:
        return {"log_scales": list(self.log_scales)}

    def load_state_dict(self, state: dict) -> None:
        self.log_scales = list(state["log_scales"])

    def _draw(self, blocks, candidate, alignment, pixels, epoch, item):
        """The weak and the hidden blocks, both (B, G) bool."""
        config, flat = self.config, candidate.flatten(1)

        def u(what, count=1):
            return uniform(self.seed, epoch, item, what, count)

        order = u("select", flat.shape[1])
        if config.mode == "random" and config.rate != "match":
            return flat, select_blocks(flat, rho=config.share, order=order, u=u("select-round"))
        candidate_aml = flat & alignment.informative[:, None]
        ties, rounding = u("tie", flat.shape[1]), u("weak-round")
        score = blocks.score.flatten(1)
        weak = weak_blocks(score, candidate_aml, tau=config.tau, mode=config.threshold_mode, tie=ties, u=rounding)
        if config.selection == "block":
            hidden = select_blocks(weak, rho=config.rho, order=order, u=u("select-round"))
        else:
            hidden = select_pixels(self._weak_pixels(alignment, blocks, weak, candidate_aml, pixels), rho=config.rho, order=order)
        if config.mode == "random":  # match: as many blocks, anywhere
            others = u("match", flat.shape[1]).masked_fill(~flat, math.inf)
            return flat, flat & (_rank(others) < hidden.sum(1, keepdim=True))
        return weak, hidden

    def _weak_pixels(self, alignment, blocks, weak, candidate, pixels):
        """Weak pixels of each block (B, G). A quantile is taken over blocks, so there a weak block is weak throughout."""
        if self.config.threshold_mode == "quantile":
            return blocks.real.flatten(1) * weak
        fine = F.interpolate(alignment.map[:, None].float(), pixels.shape[1:], mode="bilinear", align_corners=False)[:, 0]
        if self.config.threshold_mode == "minmax":
            fine = _min_max(fine.flatten(1), pixels.flatten(1)).view_as(fine)
        return block_sums(((fine < self.config.tau) & pixels).float(), self.block).flatten(1) * candidate

    def _shrink(self, model, x):
        if self.config.stage1_scale == 1:
            return x
        step = model.image_multiple
        size = [max(step, round(side * self.config.stage1_scale / step) * step) for side in x.shape[2:]]
        return F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=True) if size != list(x.shape[2:]) else x

    def _projections(self, d_v: int, d_t: int, device):
        """W_i (D_a, D_v), W_t (D_a, D_t), entries N(0, 1/D_a), equal on all ranks, in no checkpoint; None for identity."""
        config = self.config
        if config.projection != "gaussian" and d_v != d_t:
            raise UserError(
                f"aml.projection {config.projection} needs equal widths, but {config.source} gives {d_v} (image) and {d_t} (text); "
                "use aml.projection gaussian or another aml.source"
            )
        if config.projection == "identity":
            return None, None
        if (d_v, d_t, device) not in self._matrices:
            generator, width = torch.Generator().manual_seed(self.seed), config.width or d_v
            w_i = torch.randn(width, d_v, generator=generator) / math.sqrt(width)
            w_t = w_i if config.projection == "shared" else torch.randn(width, d_t, generator=generator) / math.sqrt(width)
            self._matrices[d_v, d_t, device] = w_i.to(device), w_t.to(device)
        return self._matrices[d_v, d_t, device]


@contextmanager
def frozen(model):
    """Dropout and drop-path off, no gradient; the model leaves as it came."""
    modes = [(module, module.training) for module in model.modules()]  # each its own: a frozen encoder stays in eval
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
    rows, columns = (y + image[0] / grid[0] > top) & (y < bottom), (x + image[1] / grid[1] > left) & (x < right)
    return (rows[:, :, None] & columns[:, None]).flatten(1)


def _check_choice(name: str, value, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UserError(f"aml.{name} is {value!r}{_nearest(value, known)}; known: {', '.join(known)}")


def _check_share(name: str, value) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise UserError(f"aml.{name} is {value!r}; it must be a number in [0, 1]")


def _nearest(value, known) -> str:
    near = get_close_matches(str(value), known, n=1)
    return f" (did you mean {near[0]}?)" if near else ""
