"""Settings of masked learning: what may be set, what cannot mean anything together, and the presets."""

import math
from dataclasses import dataclass, fields
from difflib import get_close_matches

from aml.errors import UserError

MODES = ("off", "random", "aml", "two_pass", "maskris")

SOURCES = ("encoder", "joint", "prediction")

SCORES = ("token_softmax", "patch_softmax", "cosine", "sentence", "probability")

CHOICES = {
    "mode": MODES,
    "source": SOURCES,
    "score": SCORES,
    "projection": ("gaussian", "shared", "identity", "linear", "learned"),
    "tokens": ("all", "words", "words+pooled"),
    "threshold_mode": ("absolute", "minmax", "quantile"),
    "selection": ("pixel", "block", "release"),
    "fill": ("zero", "mean"),
    "level": ("image", "feature", "loss"),
    "sentence": ("own", "other"),
    "weak": ("lowest", "highest"),
}

MASKRIS_RATE, MASKRIS_TEXT = 0.75, 0.15

"""MaskRIS (2024): share of blocks and of words its second pass changes."""

SOFTMAX_SCORES = ("token_softmax", "patch_softmax")

"""The scores a scale changes; the others are min-max normalised per image or probabilities already."""


@dataclass(frozen=True, kw_only=True)
class MaskingConfig:
    """Settings of masked learning; the defaults are the preset `calibrated` (see `preset`)."""

    mode: str = "aml"
    """off: never hide. random: hide blocks drawn blindly. aml: hide blocks that match the expression least. two_pass: the clean image
    twice at half weight. maskris: clean image, then a blindly masked image and sentence against the first pass's own prediction."""
    preset: str = "calibrated"
    """The preset these settings started from; names the arm."""
    source: str = "prediction"
    """Where alignment is read: encoder (last visual stage, token features), joint (the pair the model itself multiplies), prediction."""
    score: str = "probability"
    """How similarities become a score in [0, 1]; `probability` belongs to the source `prediction` and to no other."""
    projection: str = "identity"
    """gaussian: two independent seeded matrices. shared: one. identity: none. linear: an untrained Linear with bias on the text alone
    (released code). learned: two maps trained beside the model to tell target patches from others."""
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
    """random: share of blocks hidden; None: tau * rho; match: per sample as many blocks as aml would hide, elsewhere.
    maskris: share of blocks hidden in its second pass; None: 0.75."""
    block: int | None = None
    """Side of a block in pixels; None: 1/14 of the image side, rounded."""
    selection: str = "block"
    """block: floor(rho k + u) of the k weak blocks. pixel: each weak pixel with probability rho hides its block (paper).
    release: as the released code draws, whose pixel offsets are taken for block numbers."""
    fill: str = "zero"
    """zero: the data mean in normalised units. mean: the mean of this image."""
    level: str = "image"
    """Where blocks are hidden: image; feature (the encoder sees all of it, its maps are masked); loss (hidden blocks leave the loss)."""
    sentence: str = "own"
    """Whose sentence stage 1 reads. other: that of the batch's item before, so the mask knows the picture and not the answer (an item alone
    in a batch keeps its own). With weak highest it hides what some other expression would name."""
    weak: str = "lowest"
    """Which end of the alignment is weak. highest: the places most like the expression, with protect_target the confusable objects."""
    noise: float = 0.0
    """Share of blocks hidden blindly besides: holes that carry no information."""
    balance_target: bool = False
    """Blocks with target pixels are hidden blindly, at the share tau * rho of the others, so that holes do not avoid the target."""
    protect_target: bool = False
    """Blocks with target pixels are never hidden, in `random` too. It gives the target away: for ablations."""
    clean_weight: float = 0.0
    """Weight of the loss on the clean image; the masked image gets the rest. Above 0 the clean pass is stage 1 as well."""
    warmup_epochs: int = 0
    """First epochs trained as `off`."""
    ramp_epochs: int = 0
    """After them, rho (or the rate) rises linearly over so many epochs."""
    last_epoch: int | None = None
    """Epochs after this one (1-based) train as `off`; None: all are masked."""
    stage1_scale: float = 0.375
    """Stage 1 sees the image resized by this share, rounded to the model's image_multiple: at 3/8 a whole forward pass costs 1/20 of a step."""

    def __post_init__(self):
        for name, known in CHOICES.items():
            _check_choice(name, getattr(self, name), known)
        for name in ("tau", "rho", "clean_weight", "noise"):
            _check_share(name, getattr(self, name))
        if isinstance(self.rate, str) and self.rate != "match":
            raise UserError(
                f"aml.rate is {self.rate!r}; it must be a number in [0, 1], null (tau * rho) or match"
            )
        if isinstance(self.rate, (int, float)):
            _check_share("rate", self.rate)
        if (self.source == "prediction") != (self.score == "probability"):
            raise UserError(
                f"aml.source {self.source} with aml.score {self.score}: the prediction is scored by probability and nothing else is; "
                "set both or neither"
            )
        if self.scale != "auto" and not (
            isinstance(self.scale, (int, float)) and 0 < self.scale < math.inf
        ):
            raise UserError(f"aml.scale is {self.scale!r}; it must be a number above 0 or auto")
        if self.block is not None and self.block < 1:
            raise UserError(
                f"aml.block is {self.block} pixels; it must be 1 or more, or null for 1/14 of the side"
            )
        if not 0 < self.stage1_scale <= 1:
            raise UserError(f"aml.stage1_scale is {self.stage1_scale}; it must lie in (0, 1]")
        if self.clean_weight == 1:
            raise UserError(
                "aml.clean_weight is 1, which leaves nothing for the masked image; give less than 1, or use aml.mode off"
            )
        for name in ("warmup_epochs", "ramp_epochs"):
            if getattr(self, name) < 0:
                raise UserError(f"aml.{name} is {getattr(self, name)}; it must be 0 or more")
        if self.last_epoch is not None and self.last_epoch <= self.warmup_epochs:
            raise UserError(
                f"aml.last_epoch is {self.last_epoch} and aml.warmup_epochs is {self.warmup_epochs}, which leaves no masked epoch; "
                "raise last_epoch, or use aml.mode off"
            )
        if self.width is not None and self.width < 1:
            raise UserError(
                f"aml.width is {self.width}; it must be 1 or more, or null for the model's width"
            )
        self._check_together()

    def _check_together(self) -> None:
        if self.width is not None and self.projection in ("identity", "linear"):
            raise UserError(
                f"aml.width is {self.width} but aml.projection {self.projection} keeps the model's width; drop one of them"
            )
        if self.source == "prediction" and self.projection != "identity":
            raise UserError(
                f"aml.projection is {self.projection} but aml.source prediction has no features to project; use identity"
            )
        if self.selection == "release" and (
            self.threshold_mode == "quantile" or self.level != "image"
        ):
            raise UserError(
                f"aml.selection release with aml.threshold_mode {self.threshold_mode} and aml.level {self.level}: the released code compares "
                "pixels with a threshold and blanks the image; use threshold_mode absolute or minmax, and level image"
            )
        if self.fill == "mean" and self.level != "image":
            raise UserError(
                f"aml.fill mean says what hidden pixels become, but aml.level {self.level} leaves the image whole; use fill zero"
            )
        if self.sentence == "other" and self.projection == "learned":
            raise UserError(
                "aml.sentence other with aml.projection learned: a projection learns from a picture with its own sentence; use another one"
            )
        if self.protect_target and self.balance_target:
            raise UserError(
                "aml.protect_target and aml.balance_target exclude each other: target blocks are hidden never, or as often as others"
            )

    @property
    def arm(self) -> str:
        """The name under which runs with these settings are compared: off, random, aml/calibrated, aml/paper."""
        return f"aml/{self.preset}" if self.mode == "aml" else self.mode

    @property
    def share(self) -> float:
        """Share of blocks that a sample is meant to lose (exact in expectation for quantile and block)."""
        if self.mode in ("off", "two_pass"):
            return 0.0
        if self.mode in ("random", "maskris") and isinstance(self.rate, (int, float)):
            return float(self.rate)
        return (
            MASKRIS_RATE
            if self.mode == "maskris"
            else self.tau * self.rho + self.noise * (1 - self.tau * self.rho)
        )

    @property
    def coordinates(self) -> tuple[float, float]:
        """(tau, rho) of the run in the plane where off is (0, 0) and random is (1, rate): what those arms are.
        two_pass hides nothing, so (0, 0); maskris hides blindly in its second pass, so (1, rate)."""
        return (
            (self.tau, self.rho) if self.mode == "aml" else (1.0 if self.share else 0.0, self.share)
        )

    def block_side(self, image_size: int) -> int:
        return self.block or max(1, round(image_size / 14))

    def share_at(self, epoch: int) -> float:
        """Factor of rho or rate in an epoch (0-based): below 1 while it ramps up."""
        return (
            min(1.0, (epoch - self.warmup_epochs + 1) / self.ramp_epochs)
            if self.ramp_epochs
            else 1.0
        )

    def check(self, model, image_size: int) -> None:
        """Refuse settings that cannot mean anything for this model at this image size (UserError)."""
        if self.mode == "aml" and self.source not in model.sources:
            raise UserError(
                f"aml.source {self.source} is not offered by model {model.name}; it offers {', '.join(model.sources)}"
            )
        if self.level == "feature" and model.fuses and self.mode in ("random", "aml"):
            raise UserError(
                f"aml.level feature masks the maps of an encoder that has read no word, but {model.name} reads them inside; use level image or loss"
            )
        side = self.block_side(image_size)
        if self.mode == "aml" and self.selection == "release" and image_size % side:
            raise UserError(
                f"aml.selection release needs an image side that aml.block divides; {image_size} and {side} do not go together"
            )
        blocks = math.ceil(image_size / side) ** 2
        counted = self.mode in ("random", "maskris") or (
            self.mode == "aml" and self.threshold_mode == "quantile" and self.selection == "block"
        )
        if counted and self.share * blocks < 1:
            raise UserError(
                f"{self.arm} hides tau*rho*n = {self.share:g} * {blocks} = {self.share * blocks:.2f} blocks an image, less than one; "
                f"raise aml.tau or aml.rho to a product of at least {1 / blocks:.4f}, lower aml.block, or use aml.mode off"
            )


PRESETS = {
    "calibrated": {},
    "balanced": {"balance_target": True},
    "both": {"clean_weight": 0.5},
    "confusable": {"sentence": "other", "weak": "highest"},
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
    "release": {
        "source": "encoder",
        "score": "token_softmax",
        "projection": "linear",
        "normalise": False,
        "scale": 1.0,
        "tokens": "all",
        "threshold_mode": "absolute",
        "tau": 0.4,
        "rho": 0.25,
        "selection": "release",
        "clean_weight": 0.5,
        "stage1_scale": 1.0,
    },
}

"""calibrated: this project's defaults; balanced and both: the same hiding target and background alike, and training the clean image too.
confusable: what the prediction for another item's sentence finds likeliest is hidden: objects, whether or not they are the referent.
paper: the formulas as printed (tau 0.4, rho 0.25, D_a 2048, block 32 at 448 px). release: what the
released code computes (PMME, AFM, draws, both passes back-propagated at 0.5), without its third run of the backbone."""


def preset(name: str = "calibrated", **overrides) -> MaskingConfig:
    """The settings called `name`, some of them replaced. UserError names an unknown preset or setting and its nearest known one."""
    _check_choice("preset", name, tuple(PRESETS))
    known = tuple(f.name for f in fields(MaskingConfig))
    for key in overrides:
        if key not in known:
            raise UserError(
                f"aml.{key} is not a masking setting{_nearest(key, known)}; known: {', '.join(known)}"
            )
    return MaskingConfig(**{"preset": name, **PRESETS[name], **overrides})


def _check_choice(name: str, value, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UserError(
            f"aml.{name} is {value!r}{_nearest(value, known)}; known: {', '.join(known)}"
        )


def _check_share(name: str, value) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise UserError(f"aml.{name} is {value!r}; it must be a number in [0, 1]")


def _nearest(value, known) -> str:
    near = get_close_matches(str(value), known, n=1)
    return f" (did you mean {near[0]}?)" if near else ""
