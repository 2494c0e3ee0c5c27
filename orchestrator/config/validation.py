"""Refuses, before anything starts, what could not be trained."""

import itertools
from typing import Any

from aml.errors import UserError
from aml.models import MODELS
from aml.own_classes import allow
from orchestrator.config import arms
from orchestrator.config.methods import PbtScheduler, check_installed
from orchestrator.config.resources import ResourcesConfig
from orchestrator.config.schema import Experiment
from orchestrator.config.search import BudgetConfig
from orchestrator.config.space import ROBUST

CHANGEABLE = ("optim.lr", "optim.weight_decay")
"""Settings besides masking's that may change while a model trains."""


def check_sweep(experiment: Experiment) -> None:
    """Refuse a sweep any of whose corners could not train."""
    search = experiment.search
    if experiment.resources.elastic:
        raise UserError(
            "resources.min_workers is for `train`: a sweep's trials must not compete for workers; "
            "leave it out and set resources.workers"
        )
    check_installed(search.method)
    _check_robust_metrics(experiment)
    if isinstance(search.scheduler, PbtScheduler):
        _check_populations(experiment, search.scheduler)
    price = hourly_price(experiment.resources)
    check_budget(search.budget, len(search.arms), experiment.train.epochs, price)
    corners: dict[str, list[Any]] = {
        key: values if isinstance(values, list) else [values["low"], values["high"]]
        for key, values in search.space.items()
    }
    for arm in search.arms:
        seen: list[dict[str, Any]] = []
        for values in itertools.product(*corners.values()):
            one = arms.unbundle(dict(zip(corners, values, strict=True)))
            overrides = arms.active_params(experiment.aml.rate, arm, one)
            if overrides not in seen[-1:]:
                check_run(experiment.for_arm(arm, overrides))
            seen = [overrides]


def _check_robust_metrics(experiment: Experiment) -> None:
    search = experiment.search
    corrupted = {name for name, _ in experiment.evaluate.conditions}
    for objective in search.objectives:
        if not objective.metric.startswith(ROBUST):
            continue
        corruption = objective.metric.removeprefix(ROBUST)
        if not corrupted or (corruption != "mIoU" and corruption not in corrupted):
            raise UserError(
                f"search.metric {objective.metric} is a score under corruption, and "
                f"evaluate.corrupt is {experiment.evaluate.corrupt or 'null'}; name the "
                "corruptions there, as "
                f"evaluate.corrupt={'fog' if corruption == 'mIoU' else corruption}:3"
            )
    if search.objective.metric.startswith(ROBUST) and search.scheduler.name != "none":
        raise UserError(
            f"search.scheduler {search.scheduler.name} compares trials on their way by "
            f"{search.objective.metric}, which is scored at their last epoch only; name another "
            "metric first, as search.metric=[val/mIoU, robust/mIoU], or use scheduler none"
        )


def _check_populations(experiment: Experiment, scheduler: PbtScheduler) -> None:
    search = experiment.search
    if not experiment.resources.light:
        raise UserError(
            "search.scheduler pbt moves checkpoints between light trials; use resources.workers "
            "1 and "
            "driver auto or light, or scheduler asha"
        )
    if search.method.name not in ("grid", "random"):
        raise UserError(
            "search.scheduler pbt chooses settings itself after the first; use search.method "
            "random "
            "or grid with it"
        )
    for key in search.space:
        if not key.startswith("aml.") and key not in CHANGEABLE:
            raise UserError(
                f"search.space {key} cannot change while a model trains, as search.scheduler pbt "
                f"would have it; search aml.*, {' and '.join(CHANGEABLE)}, or use scheduler asha"
            )
    if scheduler.interval >= experiment.train.epochs:
        raise UserError(
            f"search.scheduler.interval is {scheduler.interval} epochs and train.epochs "
            f"{experiment.train.epochs}: no generation would end before; lower one or raise the "
            "other"
        )


def check_run(experiment: Experiment) -> None:
    """Refuse settings that cannot be trained with.

    A registered model is known by its options; one that is made of parts, and a class outside this
    project, have to be looked up.
    """
    name = experiment.model["name"]
    built_in = MODELS.get(name)
    model: Any  # the options of a built-in model, or the class of one's own
    if built_in and not built_in.needs_lookup(experiment.model):
        model, multiple = built_in, built_in.image_multiple
    else:
        from aml.models import find_class, make_options  # imports torch, as the class itself may

        cls: Any = find_class(name)
        given = make_options(name, {k: v for k, v in experiment.model.items() if k != "name"})
        if built_in:
            model = cls.traits(given)
            multiple = model.image_multiple
        else:
            model, multiple = cls, cls.image_multiple
            allow(name)
    if experiment.data.size % multiple:
        raise UserError(
            f"data.size is {experiment.data.size}, but model {model.name} needs a multiple of "
            f"{multiple}; choose one"
        )
    experiment.aml.check(model, experiment.data.size)
    r = experiment.resources
    if r.workers > 1 and 0 < r.gpus_per_worker <= 0.5:
        raise UserError(
            f"resources.workers is {r.workers} and gpus_per_worker {r.gpus_per_worker:g}, so "
            "that two "
            "workers of a run might lie on one GPU, over which NCCL joins none; give "
            "gpus_per_worker=1, or workers=1, of which several trials share a GPU"
        )


def check_budget(limits: BudgetConfig, trial_arms: int, epochs: int, price: float) -> None:
    """Refuse a budget under which no arm could be compared, or whose money has no price.

    Args:
        limits: The budget.
        trial_arms: How many arms need a trial.
        epochs: Of a trial.
        price: Of an hour of a trial.
    """
    if limits.trials is not None and limits.trials < trial_arms:
        raise UserError(
            f"search.budget.trials is {limits.trials}, but {trial_arms} arms need a trial each; "
            "raise "
            "it or name fewer search.arms"
        )
    if limits.epochs is not None and limits.epochs < trial_arms * epochs:
        raise UserError(
            f"search.budget.epochs is {limits.epochs}, but a trial of each of {trial_arms} arms "
            "takes "
            f"{trial_arms} x {epochs} = {trial_arms * epochs}; raise it, or lower train.epochs "
            "or the "
            "number of search.arms"
        )
    if limits.cost is not None and not price:
        raise UserError(
            "search.budget.cost needs prices: set resources.price_per_gpu_hour, "
            "resources.price_per_cpu_hour or both"
        )


def hourly_price(resources: ResourcesConfig) -> float:
    """Return the price of an hour of one trial: workers x (GPUs x price + CPUs x price)."""
    gpus = resources.gpus_per_worker * resources.price_per_gpu_hour
    return resources.workers * (gpus + resources.cpus_per_worker * resources.price_per_cpu_hour)


def setting_warnings(experiment: Experiment, trial_arms: list[str]) -> list[str]:
    """Return what a person should know of settings that say less than they seem to."""
    return [*_several_metrics(experiment), *_idle_two_pass(experiment, trial_arms)]


def _several_metrics(experiment: Experiment) -> list[str]:
    search = experiment.search
    if len(search.objectives) < 2 or search.scheduler.name == "none":
        return []
    text = (
        f"search.scheduler {search.scheduler.name} compares trials by {search.objective.metric}, "
        "the first of search.metric"
    )
    if search.needs_corruption and search.scheduler.name != "pbt":
        text += "; a trial that it stops has no score under corruption and is on no front"
    return [text]


def _idle_two_pass(experiment: Experiment, trial_arms: list[str]) -> list[str]:
    noise = max(float(experiment.model.get(name, 0) or 0) for name in ("dropout", "drop_path"))
    twice = [arm for arm in trial_arms if arms.masking_arm(arm) == "two_pass"]
    if not twice or noise:
        return []
    return [
        f"{twice[0]}: {experiment.model['name']} has no dropout here, so two passes are one at "
        "twice "
        "the cost: the arm repeats `off`"
    ]
