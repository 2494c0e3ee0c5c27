"""Settings of training, of its optimiser and of the validation at each epoch's end."""

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from aml.conditions import CORRUPTIONS, Condition, parse_corruptions
from aml.errors import UserError
from aml.schema import NotNegative, Positive, Settings, Share, Threshold, Wanted, Whole, leaf, shown

LONGEST_WARMUP = {"steps": 1e9, "epochs": 1e5}


def canonical_warmup(value: Any) -> Any:
    """Return a warm-up as it is kept: 0, "500steps" or "1.5epochs"."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value == 0:
        return 0
    found = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,12})?) ?(step|epoch)s?", str(value)[:40])
    if not isinstance(value, str) or not found:
        raise _not_a_warmup(value)
    number, unit = float(found[1]), f"{found[2]}s"
    if number > LONGEST_WARMUP[unit] or (unit == "steps" and number % 1):
        raise _not_a_warmup(value)
    return f"{number:.12g}{unit}" if number else 0


def _not_a_warmup(value: Any) -> UserError:
    return UserError(
        f"optim.warmup is {shown(value)}; it must be a number of steps or epochs, as 500steps or "
        "1.5epochs, or 0 for none"
    )


Warmup = Annotated[
    Literal[0] | str,
    BeforeValidator(canonical_warmup),
    Wanted("a number of steps or epochs, as 500steps or 1.5epochs, or 0"),
]


class OptimConfig(Settings):
    """Holds the settings of AdamW: warm-up, then decay of the rate."""

    section: ClassVar[str] = "optim"

    lr: Annotated[float, Field(gt=0, le=1e6)] = leaf("Learning rate.", 1e-3, unit="rate")
    encoder_lr: NotNegative = leaf(
        "Learning rate of the parameters in the model's encoders, in units of lr.",
        0.1,
        unit="factor",
    )
    weight_decay: NotNegative = leaf(
        "Weight decay; norms, biases, scales and what the model exempts have none.",
        0.01,
        unit="rate",
    )
    warmup: Warmup = leaf(
        "How long the rate rises linearly from a thousandth of it, as 500steps or 1.5epochs.", 0
    )
    power: NotNegative = leaf(
        "Exponent of the decay (1 - step/steps)^power, for schedule poly.", 0.9, unit="exponent"
    )
    schedule: Literal["poly", "steps"] = leaf(
        "poly lowers the rate at each step; steps multiplies it by gamma after each milestone.",
        "poly",
    )
    milestones: Annotated[list[Annotated[int, Field(ge=1, le=100_000)]], Field(max_length=1000)] = (
        leaf("Epochs after which the rate falls, for schedule steps.", [], unit="epochs")
    )
    gamma: Positive = leaf("Factor of the rate at each milestone.", 0.1, unit="factor")
    clip: Positive | None = leaf("Largest gradient norm; null sets no limit.", 1.0, unit="norm")
    loss: Literal["ce", "bce", "ce+dice"] = leaf(
        "ce is cross-entropy with weights 0.9 (background) and 1.1, bce the same without "
        "weights, ce+dice ce plus 1 - Dice.",
        "ce",
    )

    @model_validator(mode="after")
    def _check_together(self):
        if (self.schedule == "steps") != bool(self.milestones):
            raise UserError(
                f"optim.schedule is {self.schedule} and optim.milestones is "
                f"{shown(self.milestones)}; steps needs epochs in milestones, poly takes none"
            )
        if self.milestones != sorted(set(self.milestones)):
            raise UserError(
                f"optim.milestones is {shown(self.milestones)}; it must name rising epochs, each "
                "once"
            )
        return self

    def warmup_steps(self, steps: int) -> int:
        """Return how many steps the warm-up takes, where an epoch has `steps`."""
        if not self.warmup:
            return 0
        if self.warmup.endswith("steps"):
            return int(self.warmup.removesuffix("steps"))
        return round(float(self.warmup.removesuffix("epochs")) * steps)


class TrainConfig(Settings):
    """Holds length and arithmetic of training."""

    section: ClassVar[str] = "train"

    epochs: Annotated[int, Field(ge=1, le=100_000)] = leaf(
        "How many times training goes through the data.", 10, unit="epochs"
    )
    batch: Annotated[int, Field(ge=1, le=10**6)] = leaf(
        "Samples of one optimiser step over all workers.", 32, unit="samples"
    )
    accumulate: Annotated[int, Field(ge=1, le=10**6)] = leaf(
        "Into how many micro-steps a worker's part of a step is cut.", 1, unit="micro-steps"
    )
    precision: Literal["fp32", "bf16", "fp16"] = leaf(
        "Arithmetic of the model; fp16 trains with a loss scaler.", "fp32"
    )
    compile: bool = leaf(
        "Whether training goes through torch.compile: minutes at the start, faster steps on a "
        "GPU; evaluation and stage 1 run uncompiled.",
        False,
    )
    max_skipped: Share = leaf(
        "How many of an epoch's steps may be skipped for a non-finite loss or gradient before "
        "the run stops.",
        0.2,
        unit="share",
    )

    def check_workers(self, workers: int) -> None:
        """Refuse a batch of which some worker would get nothing in any step."""
        if self.batch < workers * self.accumulate:
            raise UserError(
                f"train.batch {self.batch} is less than an item for each of {workers} workers x "
                f"{self.accumulate} micro-steps; raise it, or lower resources.workers or "
                "train.accumulate"
            )


def canonical_corruptions(value: Any) -> Any:
    """Return a list of corruptions as it is kept: "fog:all" as "fog:1,fog:2,...,fog:5"."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise UserError(
            f"evaluate.corrupt is {shown(value)}; it must be a text such as fog:3,low_light:all, "
            "or null for no corruption"
        )
    try:
        pairs = parse_corruptions(value)
    except UserError as error:
        raise UserError(f"evaluate.corrupt is {shown(value)}: {error}") from None
    return ",".join(f"{name}:{severity}" for name, severity in pairs if severity) or None


Corruptions = Annotated[
    str | None,
    BeforeValidator(canonical_corruptions),
    Wanted(f"NAME:SEVERITY,... with names of {', '.join(CORRUPTIONS)} and 1 to 5 or all; or null"),
]


Select = Literal["last", "best_mIoU", "best_oIoU"] | None
"""Which epoch of a run counts; of the best ones the first."""


def judged_by(select: str | None) -> str:
    """Return the validation metric by which the checkpoint best/ is chosen."""
    return "val/oIoU" if select == "best_oIoU" else "val/mIoU"


def counted_epochs(history: list[dict], select: str | None) -> list[dict]:
    """Return the epochs of a run up to the one that counts, which is the last of the result.

    Args:
        history: Metrics of each epoch, in order.
        select: The setting evaluate.select; null counts the last epoch.
    """
    if not (select or "").startswith("best"):
        return history
    key = judged_by(select)
    scores = [-1.0 if epoch.get(key) is None else epoch[key] for epoch in history]
    return history[: scores.index(max(scores)) + 1] if scores else history


class EvalConfig(Settings):
    """Holds the settings of the validation at each epoch's end."""

    section: ClassVar[str] = "evaluate"

    batch: Annotated[int, Field(ge=1, le=10**6)] = leaf(
        "How many sentences a worker answers at a time.", 64, unit="sentences"
    )
    threshold: Threshold = leaf(
        "From which probability on a pixel is the referent's.", 0.5, unit="share"
    )
    select: Select = leaf(
        "Which epoch counts: of a training its checkpoint, of a sweep's confirmed trials their "
        "score and checkpoint. null: a training's best mIoU and a trial's last epoch.",
        None,
    )
    probe: Whole = leaf(
        "On how many validation sentences, always the same, the mask is diagnosed.",
        128,
        unit="sentences",
    )
    pictures: Annotated[int, Field(ge=0, le=10_000)] = leaf(
        "How many validation sentences, always the same, are drawn.", 8, unit="sentences"
    )
    corrupt: Corruptions = leaf(
        "Under which corruptions of the validation pictures a sweep scores every confirmed "
        "checkpoint at its end, as fog:3,low_light:all; null under none. A finished sweep that is "
        "given again with others scores under these. A search by robust/mIoU scores its trials "
        "under them, too.",
        None,
    )

    def checkpoint(self, default: str) -> str:
        """Return the folder of the checkpoint that counts, "last" or "best".

        Args:
            default: The folder where `select` is null.
        """
        return default if self.select is None else self.select.partition("_")[0]

    @property
    def conditions(self) -> list[Condition]:
        """The corruptions of `corrupt`, each with its severity."""
        return parse_corruptions(self.corrupt) if self.corrupt else []
