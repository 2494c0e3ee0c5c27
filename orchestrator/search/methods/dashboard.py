"""Write a sweep's search as studies of Optuna, which its dashboard opens."""

import contextlib
import datetime
import json
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aml.files import DRAFT, writing
from aml.training import ENDED
from orchestrator.config import Experiment, active_params, unbundle
from orchestrator.search.methods.space import optuna_distribution
from orchestrator.search.trial_spec import value_of

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

STUDIES = "optuna.journal"
"""Name of the file in the run's folder: a journal storage of Optuna, with a study for each arm."""


def write_studies(folder: Path, experiment: Experiment, records: Iterable[dict]) -> None:
    """Write the search trials of each arm as a study of Optuna, whatever the search method was.

    `optuna-dashboard FILE` opens the file. An earlier one is replaced; without any search trial
    there is no file.

    Args:
        folder: The folder of the run.
        experiment: The settings of the sweep.
        records: Ledger records.

    Raises:
        NotSaved: The disk takes no more.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    search = experiment.search
    path = folder / STUDIES
    draft = path.with_name(STUDIES + DRAFT)
    searched = sorted((r for r in records if r["stage"] == "search"), key=lambda r: r["trial"])
    if not searched:
        path.unlink(missing_ok=True)
        return
    with writing(path):
        draft.unlink(missing_ok=True)
        storage = JournalStorage(JournalFileBackend(str(draft)))
        for arm in search.arms:
            study = optuna.create_study(
                storage=storage,
                study_name=arm,
                directions=[
                    "maximize" if objective.mode == "max" else "minimize"
                    for objective in search.objectives
                ],
            )
            with warnings.catch_warnings():  # Optuna calls the names experimental
                warnings.simplefilter("ignore")
                study.set_metric_names([objective.metric for objective in search.objectives])
            own = [record for record in searched if record["arm"] == arm]
            space = _space(experiment, arm, own)
            study.add_trials([_frozen(experiment, record, space) for record in own])
        os.replace(draft, path)


def _space(experiment: Experiment, arm: str, records: list[dict]) -> "dict[str, BaseDistribution]":
    """Return the distribution of each setting that the arm searches.

    Optuna's choices are numbers, texts and booleans; other values, and those that population-based
    training has moved to between the listed ones, are choices of their own.
    """
    found: dict[str, Any] = {}
    for key, values in experiment.search.space.items():
        if "." in key:
            found[key] = values
            continue
        for one in values:
            for name, value in unbundle({key: one}).items():
                found.setdefault(name, []).append(value)
    found = active_params(experiment.aml.rate, arm, found)
    space = {}
    for key, values in found.items():
        if isinstance(values, list):
            every = [*values, *(r["overrides"][key] for r in records if key in r["overrides"])]
            values = list(dict.fromkeys(map(_choice, every)))
        space[key] = optuna_distribution(values)
    return space


def _choice(value: Any) -> Any:
    plain = value is None or isinstance(value, (bool, int, float, str))
    return value if plain else json.dumps(value, sort_keys=True)


def _frozen(
    experiment: Experiment, record: dict, space: "Mapping[str, BaseDistribution]"
) -> "FrozenTrial":
    """Return a trial of the ledger as Optuna keeps it.

    One that was stopped is a pruned trial; its epochs are intermediate values where a search has
    one metric, as Optuna has them for studies of one objective only.
    """
    from optuna.distributions import CategoricalDistribution
    from optuna.trial import TrialState, create_trial

    objectives = experiment.search.objectives
    found = [value_of(record, objective.metric) for objective in objectives]
    values = [value for value in found if value is not None]
    state = TrialState.COMPLETE if len(values) == len(objectives) else TrialState.FAIL
    if record["state"] == "stopped":
        state = TrialState.PRUNED
    params, distributions = {}, {}
    for key, distribution in space.items():
        if key not in record["overrides"]:
            continue
        value = record["overrides"][key]
        is_choice = isinstance(distribution, CategoricalDistribution)
        params[key] = _choice(value) if is_choice else value
        distributions[key] = distribution
    metric = objectives[0].metric
    epochs = {
        epoch["epoch"]: float(epoch[metric])
        for epoch in record["history"]
        if len(objectives) == 1 and epoch.get(metric) is not None
    }
    trial = create_trial(
        state=state,
        values=values if state == TrialState.COMPLETE else None,
        params=params,
        distributions=distributions,
        user_attrs={"trial": record["trial"], "seed": record["seed"], "epochs": record["epochs"]},
        intermediate_values=epochs,
    )
    with contextlib.suppress(KeyError, IndexError, TypeError):  # older records have no such time
        ended = record["history"][-1][ENDED]
        trial.datetime_complete = datetime.datetime.fromtimestamp(ended)
        trial.datetime_start = datetime.datetime.fromtimestamp(ended - record["seconds"])
    return trial
