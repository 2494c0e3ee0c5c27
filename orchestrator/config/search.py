"""Settings of a search: arms, space, method, scheduler, seeds, budget."""

from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field, field_validator, model_validator

from aml.errors import UserError
from aml.schema import (
    Count,
    Positive,
    Settings,
    Text,
    Wanted,
    leaf,
    shown,
)
from orchestrator.config import arms
from orchestrator.config.methods import (
    ONE_METRIC,
    RANGES_ONLY,
    GridMethod,
    Method,
    NoScheduler,
    Scheduler,
    method_words,
)
from orchestrator.config.space import ROBUST, check_metric

Trials = Annotated[int, Field(ge=1, le=10**6)]

Mode = Literal["max", "min"]

MOST_METRICS = 3
"""Metrics that a search is judged by at most: of more, nearly every trial is on the front."""


class Objective(NamedTuple):
    """A metric that trials are judged by."""

    metric: str
    mode: Mode

    def gain(self, value: float) -> float:
        """Return the value so that more is better."""
        return value if self.mode == "max" else -value


class SeedsConfig(Settings):
    """Holds how many seeds a sweep trains with."""

    section: ClassVar[str] = "search.seeds"

    search: Annotated[int, Field(ge=1, le=100_000)] = leaf(
        "With how many seeds each setting is searched: seed, seed + 1, ...", 1, unit="seeds"
    )
    confirm: Annotated[int, Field(ge=0, le=100_000)] = leaf(
        "With how many fresh seeds each arm's best setting is trained again. A sweep that is given "
        "again with more goes on to them.",
        2,
        unit="seeds",
    )


class BudgetConfig(Settings):
    """Holds where a sweep stops with the best so far; null sets no limit.

    A sweep that is continued counts what it has used before.
    """

    section: ClassVar[str] = "search.budget"

    trials: Trials | None = leaf("The most trials of the whole sweep.", None, unit="trials")
    epochs: Count | None = leaf("The most epochs of all trials together.", None, unit="epochs")
    hours: Positive | None = leaf("The longest wall-clock time of the sweep.", None, unit="hours")
    cost: Positive | None = leaf(
        "The most money, reckoned with resources.price_per_gpu_hour and price_per_cpu_hour.",
        None,
        unit="currency",
    )
    trial_hours: Positive | None = leaf(
        "The longest time of one trial, which stops at the end of the epoch in which it passes it.",
        None,
        unit="hours",
    )

    @property
    def limits(self) -> dict[str, float]:
        """The limits of the whole sweep that are set."""
        whole = {name: getattr(self, name) for name in ("trials", "epochs", "hours", "cost")}
        return {name: value for name, value in whole.items() if value is not None}


class SearchConfig(Settings):
    """Holds what a sweep searches; `train` does not read it."""

    section: ClassVar[str] = "search"

    arms: Annotated[list[Text], Field(max_length=100)] = leaf(
        "The arms that are compared: the modes off, random, two_pass, maskris, oneref and "
        "consistency, and aml/PRESET; settings of masking in brackets, as random(rate=0.1), are "
        "fixed in that arm; one that ends in +colour also trains with the augmentation colour, one "
        "that ends in @compute trains for as many epochs as the costliest arm's FLOPs would pay "
        "for.",
        ["off", "random", "aml/calibrated"],
    )
    space: Annotated[
        dict[str, Any],
        Wanted("a mapping of dotted keys to lists of values, or to {low, high, log}"),
    ] = leaf(
        "What is searched: a dotted key to a list of values, or to {low, high, log} for all "
        "methods but grid; or a section to a list of mappings whose keys go together.",
        {"aml.tau": [0.25, 0.5], "aml.rho": [0.5, 1.0]},
    )
    method: Method = leaf("How settings are chosen.", GridMethod())
    scheduler: Scheduler = leaf("What stops or moves search trials on their way.", NoScheduler())
    metric: Annotated[Text | list[Text], Wanted("a metric, or a list of two or three")] = leaf(
        "The number of an epoch that trials are judged by, or a list of two or three, whose first "
        "is the one that schedulers and the champion go by; robust/mIoU is the mean over the "
        "corruptions of evaluate.corrupt, scored at a search trial's last epoch.",
        "val/mIoU",
    )
    mode: Annotated[Mode | list[Mode], Wanted("max or min, or a list of them")] = leaf(
        "Whether more or less of the metric is better; a list says it of each metric.", "max"
    )
    trials: Annotated[int, Field(ge=0, le=10**6)] | None = leaf(
        "Search trials of every arm; null takes the whole grid, 0 confirms the one setting of each "
        "arm without a search.",
        None,
        unit="trials",
    )
    max_concurrent: Annotated[int, Field(ge=1, le=100_000)] | None = leaf(
        "The most trials at a time; null takes as many as the cluster holds.", None, unit="trials"
    )
    seeds: SeedsConfig = leaf("How many seeds are trained.", SeedsConfig())
    equal: Literal["epochs", "compute", "seconds"] = leaf(
        "What arms are compared at: epochs; compute or seconds, then each arm trains for the "
        "epochs "
        "that the costliest one's FLOPs (or time) would pay for.",
        "epochs",
    )
    budget: BudgetConfig = leaf("Where the sweep stops.", BudgetConfig())

    @property
    def objectives(self) -> list[Objective]:
        """Return the metrics that trials are judged by, in the order given."""
        metrics = [self.metric] if isinstance(self.metric, str) else self.metric
        modes = [self.mode] * len(metrics) if isinstance(self.mode, str) else self.mode
        return [Objective(*pair) for pair in zip(metrics, modes, strict=True)]

    @property
    def objective(self) -> Objective:
        """Return the first metric, by which schedulers, populations and the champion are judged."""
        return self.objectives[0]

    @property
    def needs_corruption(self) -> bool:
        """Whether search trials are scored under evaluate.corrupt, as a metric asks for it."""
        return any(objective.metric.startswith(ROBUST) for objective in self.objectives)

    @property
    def dimensions(self) -> set[str]:
        """Dotted keys that the search varies."""
        bundles = {key: values for key, values in self.space.items() if "." not in key}
        found = set(self.space) - set(bundles)
        for key, values in bundles.items():
            found |= {f"{key}.{name}" for value in values for name in value}
        return found

    @field_validator("method", "scheduler", mode="before")
    @classmethod
    def _take_a_bare_name(cls, given: Any) -> Any:
        return {"name": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _check_together(self):
        for arm in self.arms:
            arms.check_arm(arm)
        if not self.arms or len({arms.meaning(arm) for arm in self.arms}) < len(self.arms):
            raise UserError(
                f"search.arms is {shown(self.arms)}; it must name at least one arm, each once, "
                "out of "
                f"{', '.join(arms.ARMS)}"
            )
        self._check_metrics()
        if self.method.name != "grid" and self.trials is None:
            raise UserError(
                f"search.method {self.method.name} needs search.trials, the number of trials of "
                "every "
                "arm; set it"
            )
        self._check_method()
        if self.trials == 0:
            self._check_nothing_to_search()
        return self

    def _check_metrics(self) -> None:
        metrics = [self.metric] if isinstance(self.metric, str) else self.metric
        for metric in metrics:
            check_metric(metric)
        is_list = not isinstance(self.metric, str)
        if is_list and not (1 < len(set(metrics)) == len(metrics) <= MOST_METRICS):
            raise UserError(
                f"search.metric is {shown(self.metric)}; name one metric, or list two or three, "
                "each once"
            )
        if not isinstance(self.mode, str) and len(self.mode) != len(metrics):
            raise UserError(
                f"search.mode is {shown(self.mode)} for {len(metrics)} metric(s); give max or min "
                "for all of them, or a list with one for each"
            )

    def _check_method(self) -> None:
        name, words = method_words(self.method)
        lists = [key for key, values in self.space.items() if isinstance(values, list)]
        if name in RANGES_ONLY and lists:
            other = "sampler tpe" if self.method.name == "optuna" else "method optuna"
            raise UserError(
                f"search.method {words} takes ranges only, and search.space has a list for "
                f"{', '.join(lists)}; give low and high, or use {other}"
            )
        if name in ONE_METRIC and len(self.objectives) > 1:
            raise UserError(
                f"search.method {words} compares trials by one number, and search.metric lists "
                f"{len(self.objectives)}; use search.method optuna (sampler tpe, gp or nsga2), "
                "grid or random, or name one metric"
            )

    def _check_nothing_to_search(self) -> None:
        if several := [key for key, values in self.space.items() if not _is_one_value(values)]:
            raise UserError(
                "search.trials is 0, which confirms one setting an arm without a search, but "
                f"search.space has several for {', '.join(several)}; give one, or raise "
                "search.trials"
            )
        if not self.seeds.confirm:
            raise UserError(
                "search.trials and search.seeds.confirm are both 0, so nothing is trained; raise "
                "one"
            )


def _is_one_value(values: Any) -> bool:
    return isinstance(values, list) and len(values) == 1
