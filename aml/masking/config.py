"""Settings of masked learning: what may be set, what cannot mean anything together, the presets."""

from importlib import import_module
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BeforeValidator, Field, model_validator

from aml.errors import UserError
from aml.masking.method import MaskingMethod
from aml.masking.presets import PRESETS
from aml.own_classes import FORMS, load_class, names_own_class
from aml.schema import Count, Epochs, Settings, Share, ShareBelowOne, Wanted, Width, leaf, not_among

Score = Literal["token_softmax", "patch_softmax", "cosine", "sentence", "probability"]

SCORES: tuple[str, ...] = get_args(Score)

Preset = Literal[
    "calibrated",
    "balanced",
    "both",
    "confusable",
    "cached",
    "cached_confusable",
    "paper",
    "release",
]

METHODS = {
    "off": "aml.masking.methods.clean:Off",
    "random": "aml.masking.methods.blind:Random",
    "aml": "aml.masking.methods.aligned:Aml",
    "two_pass": "aml.masking.methods.clean:TwoPass",
    "maskris": "aml.masking.methods.blind:MaskRis",
    "oneref": "aml.masking.methods.referred:OneRef",
    "consistency": "aml.masking.methods.blind:Consistency",
}
"""The masking methods of this project: the name of a mode, and the class that does it."""


def _check_mode(value: Any) -> Any:
    """Return a mode as it was given; name the nearest for one that is neither known nor a class."""
    if isinstance(value, str) and value not in METHODS and not names_own_class(value):
        raise not_among("aml.mode", value, [*METHODS, "package.module:ClassName"])
    return value


OwnMethod = Annotated[str, Field(pattern=":"), Wanted(f"a class of your own, as {FORMS}")]

Mode = Annotated[
    Literal["off", "random", "aml", "two_pass", "maskris", "oneref", "consistency"] | OwnMethod,
    BeforeValidator(_check_mode),
]

MASKRIS_RATE, MASKRIS_TEXT = 0.75, 0.15
"""MaskRIS (2024): share of blocks and of words its second pass changes."""

ONEREF_RATE, ONEREF_REGION = 0.35, 0.75
"""OneRef (2024): share of blocks hidden outside the referred region and inside it."""

TEACHER_DECAY = 0.99
"""How much of its weights a teacher keeps in a step, without aml.teacher_decay."""

SOFTMAX_SCORES = ("token_softmax", "patch_softmax")
"""The scores a scale changes; others are min-max normalised per image or probabilities already."""


class MaskingConfig(Settings):
    """Holds the settings of masked learning; the defaults are the preset `calibrated`.

    A preset that is named fills in what is not said beside it.
    """

    section: ClassVar[str] = "aml"

    mode: Mode = leaf(
        "off never hides; random hides blocks drawn blindly; aml hides the blocks that match the "
        "expression least; two_pass trains on the clean image twice at half weight; maskris on the "
        "clean image, then on a blindly masked image and sentence against the first pass's own "
        "prediction; oneref hides the referred region more than the rest; consistency trains on "
        "two blind masks of the image, the second half against the first one's prediction; a class "
        "of your own says what it does itself.",
        "aml",
    )
    preset: Preset = leaf(
        "The preset these settings start from, which names the arm.", "calibrated"
    )
    source: Literal["encoder", "joint", "prediction"] = leaf(
        "Where alignment is read: encoder is the last visual stage and the token features, joint "
        "the "
        "pair the model itself multiplies, prediction its own answer.",
        "prediction",
    )
    score: Score = leaf(
        "How similarities become a score in [0, 1]; probability belongs to the source prediction "
        "and to no other.",
        "probability",
    )
    projection: Literal["gaussian", "shared", "identity", "linear", "learned"] = leaf(
        "What features go through before they are compared: gaussian is two independent seeded "
        "matrices, shared one, identity none, linear an untrained map with bias on the text alone "
        "(released code), learned two maps trained beside the model to tell target patches from "
        "others.",
        "identity",
    )
    width: Width | None = leaf(
        "Alignment width of a projection; null is the model's feature width.", None, unit="channels"
    )
    normalise: bool = leaf("Whether features are l2-normalised before the product.", True)
    scale: Annotated[float, Field(gt=0, le=1e9), Wanted("a number above 0")] | Literal["auto"] = (
        leaf(
            "Multiplies similarities before a softmax; auto measures, once, where the mean "
            "entropy of a "
            "softmax over tokens is half of that of an even one.",
            "auto",
            unit="factor",
        )
    )
    tokens: Literal["all", "words", "words+pooled"] = leaf(
        "Which tokens take part: all of them with the padding, the words, or the words and the "
        "token the sentence is pooled into.",
        "words",
    )
    threshold_mode: Literal["absolute", "minmax", "quantile"] = leaf(
        "absolute calls weak what scores below tau; minmax does so after each image's scores were "
        "stretched over [0, 1]; quantile calls the lowest tau share of blocks weak.",
        "quantile",
    )
    tau: Share = leaf("The threshold below which alignment is weak.", 0.5, unit="share")
    rho: Share = leaf("How much of what is weak is hidden.", 0.5, unit="share")
    rate: Share | Literal["match"] | None = leaf(
        "Of random, the share of blocks hidden: null is tau * rho, match as many in each sample as "
        "aml would hide, elsewhere; of consistency, that of each mask; of maskris, the share "
        "hidden in its second pass: null is 0.75; of oneref, the share hidden outside the referred "
        "region, of which 0.75 is hidden: null is 0.35.",
        None,
        unit="share",
    )
    block: Count | None = leaf(
        "Side of a block; null is 1/14 of the image side, rounded.", None, unit="pixels"
    )
    selection: Literal["pixel", "block", "release"] = leaf(
        "block hides floor(rho k + u) of the k weak blocks; pixel lets each weak pixel hide its "
        "block "
        "with probability rho (paper); release draws as the released code does, whose pixel "
        "offsets "
        "are taken for block numbers.",
        "block",
    )
    fill: Literal["zero", "mean", "drop"] = leaf(
        "What hidden pixels become: zero is the data mean in normalised units, mean the mean of "
        "this image; drop leaves hidden patches out of the encoder, where the model can.",
        "zero",
    )
    level: Literal["image", "feature", "loss", "words"] = leaf(
        "Where blocks are hidden: in the image, in the encoder's maps (feature), or by leaving "
        "them out of the loss; words hides words of the sentence in their place, by the alignment "
        "of each with its best patch, and leaves the picture whole.",
        "image",
    )
    sentence: Literal["own", "other"] = leaf(
        "Whose sentence stage 1 reads: its own, or that of the batch's item before, so that the "
        "mask knows the picture and not the answer. With stage1 cached other takes what was "
        "predicted for any referent of the picture, drawn anew each epoch.",
        "own",
    )
    weak: Literal["lowest", "highest"] = leaf(
        "Which end of the alignment is weak; highest hides the places most like the expression, "
        "with protect_target the confusable objects.",
        "lowest",
    )
    noise: Share = leaf(
        "How many blocks are hidden blindly besides, as holes that carry no information.",
        0.0,
        unit="share",
    )
    batch_share: Annotated[float, Field(gt=0, le=1)] = leaf(
        "How many samples are masked, drawn anew each epoch; the others train on the clean image, "
        "and every other share is meant of a masked sample.",
        1.0,
        unit="share",
    )
    balance_target: bool = leaf(
        "Whether blocks with target pixels are hidden blindly, at the share tau * rho of the "
        "others, so that holes do not avoid the target.",
        False,
    )
    protect_target: bool = leaf(
        "Whether blocks with target pixels are never hidden, in random too, which gives the "
        "target away and is for ablations.",
        False,
    )
    clean_weight: ShareBelowOne = leaf(
        "Weight of the loss on the clean image, whose pass then is stage 1 as well; the masked "
        "image gets the rest.",
        0.0,
        unit="share",
    )
    warmup_epochs: Epochs = leaf("How many first epochs are trained as off.", 0, unit="epochs")
    ramp_epochs: Epochs = leaf(
        "Over how many epochs after them rho (or the rate) rises linearly.", 0, unit="epochs"
    )
    ramp: Literal["rho", "tau"] = leaf(
        "What rises where alignment selects: rho, or tau, which hides the least aligned blocks "
        "first and better aligned ones, the target last, as it grows.",
        "rho",
    )
    last_epoch: Epochs | None = leaf(
        "The last masked epoch, counted from 1, after which training goes on as off; null masks "
        "all.",
        None,
        unit="epochs",
    )
    stage1_scale: Annotated[float, Field(gt=0, le=1)] = leaf(
        "By which share the image is resized for stage 1, rounded to what the model takes: at "
        "3/8 a whole forward pass costs 1/20 of a step.",
        0.375,
        unit="share",
    )

    stage1: Literal["fresh", "cached", "teacher"] = leaf(
        "Where alignment comes from: fresh is a forward pass before each masked step, cached what "
        "the model predicted in an earlier epoch when it trained on the item, which costs "
        "nothing; items not predicted yet are trained clean; teacher a forward pass of the moving "
        "average of the model's weights.",
        "fresh",
    )
    teacher_decay: ShareBelowOne = leaf(
        "How much of its weights the teacher of aml.stage1 teacher keeps in each optimizer step; "
        "the rest is the model's.",
        TEACHER_DECAY,
        unit="share",
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, given: Any) -> Any:
        if given is None:
            return {}
        name = given.get("preset", "calibrated") if isinstance(given, dict) else None
        return {**PRESETS[name], **given} if isinstance(name, str) and name in PRESETS else given

    @model_validator(mode="after")
    def _check_together(self):
        if (self.source == "prediction") != (self.score == "probability"):
            raise UserError(
                f"aml.source {self.source} with aml.score {self.score}: the prediction is scored "
                "by probability and nothing else is; set both or neither"
            )
        if self.stage1 == "cached" and (self.source, self.selection) != ("prediction", "block"):
            raise UserError(
                f"aml.stage1 cached with aml.source {self.source} and aml.selection "
                f"{self.selection}: the prediction of each block is kept and nothing else; use "
                "source prediction, score probability and selection block, or stage1 fresh"
            )
        if self.last_epoch is not None and self.last_epoch <= self.warmup_epochs:
            raise UserError(
                f"aml.last_epoch is {self.last_epoch} and aml.warmup_epochs is "
                f"{self.warmup_epochs}, "
                "which leaves no masked epoch; raise last_epoch, or use aml.mode off"
            )
        if self.width is not None and self.projection in ("identity", "linear"):
            raise UserError(
                f"aml.width is {self.width} but aml.projection {self.projection} keeps the "
                "model's width; drop one of them"
            )
        if self.source == "prediction" and self.projection != "identity":
            raise UserError(
                f"aml.projection is {self.projection} but aml.source prediction has no features "
                "to project; use identity"
            )
        if self.selection == "release" and (
            self.threshold_mode == "quantile" or self.level != "image"
        ):
            raise UserError(
                f"aml.selection release with aml.threshold_mode {self.threshold_mode} and "
                "aml.level "
                f"{self.level}: the released code compares pixels with a threshold and blanks the "
                "image; use threshold_mode absolute or minmax, and level image"
            )
        if self.fill != "zero" and self.level != "image":
            raise UserError(
                f"aml.fill {self.fill} says what becomes of hidden pixels, but aml.level "
                f"{self.level} leaves the image whole; use fill zero"
            )
        self._check_words()
        if self.teacher_decay != TEACHER_DECAY and self.stage1 != "teacher":
            raise UserError(
                f"aml.teacher_decay is {self.teacher_decay}, but aml.stage1 {self.stage1} has no "
                "teacher; set aml.stage1 to teacher, or drop it"
            )
        if self.sentence == "other" and self.projection == "learned":
            raise UserError(
                "aml.sentence other with aml.projection learned: a projection learns from a "
                "picture with its own sentence; use another one"
            )
        if self.protect_target and self.balance_target:
            raise UserError(
                "aml.protect_target and aml.balance_target exclude each other: target blocks are "
                "hidden never, or as often as others"
            )
        return self

    def _check_words(self) -> None:
        """Refuse what says where in a picture is hidden, or whose words, with aml.level words."""
        if self.level != "words":
            return
        for name, unfit, wanted in (
            ("sentence", "other", "own"),
            ("protect_target", True, "false"),
            ("balance_target", True, "false"),
        ):
            if getattr(self, name) == unfit:
                raise UserError(
                    f"aml.level words with aml.{name} {str(unfit).lower()}: words of the item's "
                    f"own sentence are hidden, and nothing of the picture; set it to {wanted}"
                )

    @property
    def arm(self) -> str:
        """The name these settings are compared under: off, random, aml/calibrated, aml/paper."""
        return f"aml/{self.preset}" if self.mode == "aml" else self.mode

    @property
    def method(self) -> MaskingMethod:
        """The masking method of this mode, made with these settings."""
        return find_method(self.mode)(self)

    @property
    def share(self) -> float:
        """Share of blocks a sample is to lose, in expectation exactly for quantile and block.

        It is that of a masked sample: those that aml.batch_share leaves clean do not count.
        """
        return self.method.share

    @property
    def coordinates(self) -> tuple[float, float]:
        """(tau, rho) in the plane where off is (0, 0) and random (1, rate): what those arms are.

        two_pass hides nothing, so (0, 0); the other methods hide without looking at the alignment,
        so (1, rate).
        """
        return self.method.coordinates

    def block_side(self, image_size: int) -> int:
        """Return the side of a block in pixels, for an image of this side."""
        return self.block or max(1, round(image_size / 14))

    @property
    def first_epoch(self) -> int:
        """The first epoch (0-based) that hides anything: none is predicted before the first."""
        return max(self.warmup_epochs, int(self.reads_cache))

    @property
    def reads_cache(self) -> bool:
        """Whether masks are made of the predictions of earlier epochs."""
        return self.stage1 == "cached" and self.method.reads_alignment

    @property
    def reads_teacher(self) -> bool:
        """Whether masks are made by a moving average of the model."""
        return self.stage1 == "teacher" and self.method.reads_alignment

    def share_at(self, epoch: int) -> float:
        """Return the factor of the share in an epoch (0-based): below 1 while it ramps up."""
        if not self.ramp_epochs:
            return 1.0
        return min(1.0, (epoch - self.first_epoch + 1) / self.ramp_epochs)

    def check(self, model: Any, image_size: int) -> None:
        """Refuse settings that cannot mean anything for a model at this image size.

        `model` is the model, its class, its options or its traits.
        """
        method = self.method
        method.check(model, image_size)
        if method.hides and self.fill == "drop":
            method.check_drop(model, image_size)


def preset(name: str = "calibrated", **overrides) -> MaskingConfig:
    """Return the settings called `name`, some of them replaced."""
    if name not in PRESETS:
        raise not_among("aml.preset", name, get_args(Preset))
    return MaskingConfig(preset=name, **overrides)


def find_method(mode: str) -> type[MaskingMethod]:
    """Return the class of a mode, this project's or one's own; raise UserError for none."""
    if mode in METHODS:
        module, _, class_name = METHODS[mode].partition(":")
        return getattr(import_module(module), class_name)
    found: type[MaskingMethod] = load_class(mode, "aml.mode", MaskingMethod)
    inherits = (found.draw, found.train) == (MaskingMethod.draw, MaskingMethod.train)
    if found.hides and inherits:
        raise UserError(
            f"aml.mode is {mode}, but {found.__name__} has neither draw nor train; write its draw "
            "method, which says what is hidden"
        )
    return found
