"""Settings of search methods and schedulers, by the names and arguments that Ray Tune gives them.

A method chooses the settings of search trials, a scheduler stops or pauses trials on their way.
Nothing here imports Ray: what Tune's classes do with these settings is in orchestrator.search
(methods) and orchestrator.sweep (schedulers).
"""

from importlib.util import find_spec
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field

from aml.errors import UserError
from aml.schema import Count, Settings, Share, leaf

Grace = Annotated[int, Field(ge=1, le=100_000)]

Reduction = Annotated[int, Field(ge=2, le=1000)]


class GridMethod(Settings):
    """Tries every combination of the listed values."""

    section: ClassVar[str] = "search.method"

    name: Literal["grid"] = leaf("Tries every combination of the listed values.", "grid")


class RandomMethod(Settings):
    """Draws settings from the space."""

    section: ClassVar[str] = "search.method"

    name: Literal["random"] = leaf("Draws settings from the space.", "random")


class TpeMethod(Settings):
    """Proposes settings from the results so far, by Optuna's TPE with this project's defaults."""

    section: ClassVar[str] = "search.method"

    name: Literal["tpe"] = leaf(
        "Proposes settings from the results so far: the same as optuna with the sampler tpe.", "tpe"
    )


class OptunaMethod(Settings):
    """Proposes settings by a sampler of Optuna."""

    section: ClassVar[str] = "search.method"

    name: Literal["optuna"] = leaf("Proposes settings by a sampler of Optuna.", "optuna")
    sampler: Literal["tpe", "gp", "nsga2", "cmaes"] = leaf(
        "Optuna's sampler: tpe (Parzen estimators), gp (Gaussian process), nsga2 (NSGA-II, made "
        "for several metrics) or cmaes (CMA-ES: one metric, ranges only).",
        "tpe",
    )
    startup: Annotated[int, Field(ge=0, le=10_000)] = leaf(
        "Random trials before results are read; for nsga2 the size of a generation.",
        4,
        unit="trials",
    )


class HyperOptMethod(Settings):
    """Proposes settings by hyperopt's TPE, through Tune's HyperOptSearch."""

    section: ClassVar[str] = "search.method"

    name: Literal["hyperopt"] = leaf("Proposes settings by hyperopt's TPE.", "hyperopt")
    n_initial_points: Annotated[int, Field(ge=1, le=10_000)] = leaf(
        "Random trials before results are read.", 4, unit="trials"
    )
    gamma: Annotated[float, Field(gt=0, lt=1)] = leaf(
        "Share of the trials that counts as good.", 0.25, unit="share"
    )


class BayesOptMethod(Settings):
    """Proposes settings by a Gaussian process, through Tune's BayesOptSearch."""

    section: ClassVar[str] = "search.method"

    name: Literal["bayesopt"] = leaf(
        "Proposes settings by a Gaussian process; takes ranges only.", "bayesopt"
    )
    random_search_steps: Annotated[int, Field(ge=1, le=10_000)] = leaf(
        "Random trials before results are read.", 4, unit="trials"
    )


AnyMethod = GridMethod | RandomMethod | TpeMethod | OptunaMethod | HyperOptMethod | BayesOptMethod

Method = Annotated[AnyMethod, Field(discriminator="name")]

METHODS: tuple[str, ...] = tuple(cls.model_fields["name"].default for cls in get_args(AnyMethod))

PACKAGES = {
    "hyperopt": ("hyperopt", "hyperopt"),
    "bayesopt": ("bayes_opt", "bayesian-optimization==1.4.3"),
}
"""Methods that Ray Tune asks a package for: the package's module, and what `pip install` takes."""

SAMPLER_PACKAGES = {"cmaes": ("cmaes", "cmaes==0.13.1")}
"""The same of Optuna's samplers."""

RANGES_ONLY = ("bayesopt", "cmaes")
"""Methods, and samplers of Optuna, that take no lists."""

ONE_METRIC = ("hyperopt", "bayesopt", "cmaes")
"""Methods, and samplers of Optuna, that compare trials by one number."""


def method_words(method: "AnyMethod") -> tuple[str, str]:
    """Return what decides a method's abilities, its name or its sampler's, and how it is told."""
    if isinstance(method, OptunaMethod) and method.sampler != "tpe":
        return method.sampler, f"optuna with sampler {method.sampler}"
    return method.name, method.name


def check_installed(method: "AnyMethod") -> None:
    """Refuse a search method whose package is not installed.

    Raises:
        UserError: What is missing, and how it is installed.
    """
    name, words = method_words(method)
    module, package = (PACKAGES | SAMPLER_PACKAGES).get(name, ("", ""))
    if module and find_spec(module) is None:
        other = "sampler tpe" if method.name == "optuna" else "search.method optuna"
        raise UserError(
            f"search.method {words} needs a package that is not installed; install it with "
            f"pip install {package}, or use {other}"
        )


class NoScheduler(Settings):
    """Lets every search trial train to its end."""

    section: ClassVar[str] = "search.scheduler"

    name: Literal["none"] = leaf("Trains every search trial to its end.", "none")


class AshaScheduler(Settings):
    """Holds the rungs of ASHA, inside one arm."""

    section: ClassVar[str] = "search.scheduler"

    name: Literal["asha"] = leaf(
        "Stops the worse search trials of an arm early: async_hyperband with one bracket.", "asha"
    )
    grace: Grace = leaf("The epoch before which no trial is stopped.", 2, unit="epochs")
    reduction: Reduction = leaf("One in so many trials goes on from each rung.", 3, unit="trials")


class AsyncHyperBand(Settings):
    """Holds Tune's AsyncHyperBandScheduler, inside one arm."""

    section: ClassVar[str] = "search.scheduler"

    name: Literal["async_hyperband"] = leaf(
        "Stops the worse search trials of an arm at the rungs of a bracket.",
        "async_hyperband",
    )
    grace_period: Grace = leaf("The epoch before which no trial is stopped.", 1, unit="epochs")
    reduction_factor: Reduction = leaf(
        "One in so many trials goes on from each rung.", 4, unit="trials"
    )


class MedianStopping(Settings):
    """Holds Tune's MedianStoppingRule, inside one arm."""

    section: ClassVar[str] = "search.scheduler"

    name: Literal["median_stopping_rule"] = leaf(
        "Stops a search trial whose best result is below the median of the others' means so far.",
        "median_stopping_rule",
    )
    grace_period: Grace = leaf("The epoch before which no trial is stopped.", 1, unit="epochs")
    min_samples_required: Count = leaf(
        "Trials that must have got as far before one is stopped.", 3, unit="trials"
    )


class HyperBand(Settings):
    """Holds Tune's HyperBandScheduler, inside one arm."""

    section: ClassVar[str] = "search.scheduler"

    name: Literal["hyperband"] = leaf(
        "Pauses search trials at a bracket's rung until all have come to it, then stops the worse.",
        "hyperband",
    )
    reduction_factor: Reduction = leaf(
        "One in so many trials goes on from each rung.", 3, unit="trials"
    )


class PbtScheduler(Settings):
    """Holds the generations of population-based training: an arm's trials are one population."""

    section: ClassVar[str] = "search.scheduler"

    name: Literal["pbt"] = leaf(
        "Lets the worse trials of an arm go on from copies of the better ones.", "pbt"
    )
    interval: Grace = leaf("Length of a generation.", 2, unit="epochs")
    quantile: Annotated[float, Field(gt=0, le=0.5)] = leaf(
        "How many of the members go on from a copy of one of as many best.", 0.25, unit="share"
    )
    resample: Share = leaf(
        "The chance that a setting is then drawn anew instead of moved a little.",
        0.25,
        unit="share",
    )


AnyScheduler = (
    NoScheduler | AshaScheduler | AsyncHyperBand | MedianStopping | HyperBand | PbtScheduler
)

Scheduler = Annotated[AnyScheduler, Field(discriminator="name")]

SCHEDULERS: tuple[str, ...] = tuple(
    cls.model_fields["name"].default for cls in get_args(AnyScheduler)
)
