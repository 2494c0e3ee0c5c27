"""A table of search results: every setting of a grid, trained to its end with several seeds."""

import itertools
import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy import stats

from aml.errors import UserError
from orchestrator import storage

CONFIDENCE = 0.95
"""Of the interval around the best setting."""

Setting = tuple
"""One value of each searched setting, in the order of `SearchTable.space`."""


@dataclass(frozen=True)
class SearchTable:
    """Scores of every setting of an arm's grid, in each epoch and with each of its seeds."""

    arm: str
    metric: str
    space: dict[str, list]
    """The values of each searched setting, by its dotted key."""
    curves: dict[Setting, list[list[float]]]
    """For each setting a list of scores by epoch for each seed; more is better."""

    @property
    def epochs(self) -> int:
        """Epochs of a training."""
        return len(next(iter(self.curves.values()))[0])

    @property
    def trainings(self) -> int:
        """Trainings that the table holds."""
        return sum(len(seeds) for seeds in self.curves.values())

    def score(self, setting: Setting) -> float:
        """Return a setting's score: the mean over its seeds after the last epoch."""
        return statistics.fmean(curve[-1] for curve in self.curves[setting])

    @property
    def best(self) -> Setting:
        """The setting of the best score."""
        return max(self.curves, key=self.score)

    @property
    def margin(self) -> float:
        """Half the width of the interval around the best score.

        It is Student's t of a mean over the best setting's seeds. The spread of a seed is pooled
        over all settings, since two or three seeds of one setting say little about it.
        """
        ends = [[curve[-1] for curve in seeds] for seeds in self.curves.values()]
        freedom = sum(len(scores) - 1 for scores in ends)
        squares = sum(statistics.pvariance(scores) * len(scores) for scores in ends)
        quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom))
        return quantile * math.sqrt(squares / freedom / len(self.curves[self.best]))

    @property
    def good(self) -> set[Setting]:
        """The settings whose score lies within the interval around the best."""
        least = self.score(self.best) - self.margin
        return {setting for setting in self.curves if self.score(setting) >= least}

    def nearest(self, overrides: dict[str, Any]) -> Setting:
        """Return the setting of the table that is nearest to a trial's, in each searched key."""
        return tuple(
            overrides[key]
            if overrides[key] in values
            else min(values, key=lambda value: abs(value - overrides[key]))
            for key, values in self.space.items()
        )


def read_table(path: Path, arm: str | None, metric: str) -> SearchTable:
    """Return the table that the search trials of a ledger make.

    Args:
        path: The ledger of a sweep, ledger.jsonl.
        arm: The arm whose trials are read; None where the ledger has one arm alone.
        metric: A metric of every epoch of which more is better, such as val/mIoU.

    Raises:
        UserError: The trials are no whole grid, were not all trained to the same last epoch, or
            no setting has a second seed.
    """
    if not path.is_file():
        raise UserError(f"{path} is no file; give the ledger of a sweep, ledger.jsonl")
    records = [r for r in storage.read_trials(path)[0] if r["stage"] == "search"]
    arms = sorted({record["arm"] for record in records})
    if arm is None and len(arms) == 1:
        arm = arms[0]
    if arm is None or arm not in arms:
        raise UserError(
            f"{path} has search trials of {', '.join(arms) or 'no arm'}, and "
            f"{'no arm was chosen' if arm is None else arm + ' was asked for'}; give one by --arm"
        )
    records = [record for record in records if record["arm"] == arm]
    keys = sorted({key for record in records for key in record["overrides"]})
    space = {key: _values(records, key) for key in keys}
    curves: dict[Setting, list[list[float]]] = {}
    for record in records:
        setting = tuple(record["overrides"].get(key) for key in keys)
        curve = [epoch.get(metric) for epoch in record["history"]]
        if all(isinstance(score, (int, float)) for score in curve):
            curves.setdefault(setting, []).append(curve)
    _check_dense(path, arm, metric, list(space.values()), curves)
    return SearchTable(arm, metric, space, curves)


def are_numbers(values: list) -> bool:
    """Return whether all values of a searched setting are numbers."""
    return all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)


def _values(records: list[dict], key: str) -> list:
    """Return the values that a key has in any trial, numbers in their order."""
    texts = {json.dumps(record["overrides"].get(key)) for record in records}
    found = [json.loads(text) for text in sorted(texts)]
    return sorted(found) if are_numbers(found) else found


def _check_dense(
    path: Path, arm: str, metric: str, values: list[list], curves: dict[Setting, list[list[float]]]
) -> None:
    """Refuse what is no table.

    Raises:
        UserError: A setting of the grid is missing, was trained once, or was cut short.
    """
    grid = list(itertools.product(*values))
    longest = max((len(curve) for seeds in curves.values() for curve in seeds), default=0)
    whole = {s for s, seeds in curves.items() if all(len(curve) == longest for curve in seeds)}
    has_second_seed = any(len(seeds) > 1 for seeds in curves.values())
    if len(grid) < 2 or len(whole) < len(grid) or not has_second_seed:
        raise UserError(
            f"{path} has {len(whole)} of {len(grid)} combinations of {arm} whole, with {metric}, "
            f"and {'some' if has_second_seed else 'none'} with a second seed; a table needs every "
            "combination of at least two settings, all trained to the same last epoch, and second "
            "seeds (search.scheduler=none, search.trials=null, search.seeds.search=2)"
        )
