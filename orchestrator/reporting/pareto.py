"""Compare the settings of a search by several metrics: the Pareto front, and what is confirmed.

Gains are metrics with a sign such that more is better. This module reads and writes no files.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from orchestrator.config import Objective
from orchestrator.reporting import wording
from orchestrator.reporting.numbers import Trial, by_seed, epochs_of, last
from orchestrator.reporting.significance import Interval, mean_interval

Name = TypeVar("Name")


def undominated(gains: Mapping[Name, Sequence[float]]) -> list[Name]:
    """Return the names of the points that no other point dominates, in the order given.

    A point dominates another if it is at least as good in every number, and better in one.

    Args:
        gains: Numbers of each point, as many of each; more is better.
    """
    return [
        name
        for name, own in gains.items()
        if not any(
            tuple(other) != tuple(own) and all(o >= x for o, x in zip(other, own, strict=True))
            for other in gains.values()
        )
    ]


def best_compromise(gains: Mapping[Name, Sequence[float]]) -> Name:
    """Return the name of the point of the front that dominates the largest volume alone.

    The volume is the product, over the numbers, of the point's distance to the worst value that
    any point has. No unit matters to it, and what is worst in one number has none. Of equal
    volumes the larger first number wins, then the point that is named first.

    Args:
        gains: Numbers of each point, as many of each; more is better.
    """
    worst = [min(column) for column in zip(*gains.values(), strict=True)]

    def rank(name: Name) -> tuple[float, float]:
        own = gains[name]
        return math.prod(x - w for x, w in zip(own, worst, strict=True)), own[0]

    return max(undominated(gains), key=rank)


def setting_key(trial: Trial) -> str:
    """Return a text that is the same for trials of one setting, changes on the way included."""
    return json.dumps([trial.get("overrides"), trial.get("path") or []], sort_keys=True)


def searched_settings(
    trials: Iterable[Trial], objectives: Sequence[Objective]
) -> dict[str, list[Trial]]:
    """Return the search trials of each setting of one arm that can be compared by all metrics.

    These are the trials that got furthest and have every metric in their last epoch.

    Args:
        trials: Records of one arm in the ledger.
        objectives: The metrics.
    """
    searched = [t for t in trials if t["stage"] == "search" and t["state"] != "failed"]
    furthest = max(map(epochs_of, searched), default=0)
    found: dict[str, list[Trial]] = {}
    for trial in sorted(searched, key=lambda t: t["trial"]):
        has_all = all(math.isfinite(last(trial, o.metric)) for o in objectives)
        if epochs_of(trial) == furthest and has_all:
            found.setdefault(setting_key(trial), []).append(trial)
    return found


def mean_gains(trials: Sequence[Trial], objectives: Sequence[Objective]) -> tuple[float, ...]:
    """Return the mean over some trials of each metric of the last epoch; more is better."""
    return tuple(
        o.gain(math.fsum(last(t, o.metric) for t in trials) / len(trials)) for o in objectives
    )


@dataclass(frozen=True)
class SearchedSetting:
    """A setting that was searched by several metrics. A row of pareto.csv."""

    arm: str
    trials: Sequence[Trial]
    """Its search trials that got furthest; one or more."""
    values: tuple[float, ...]
    """Mean of each metric over these."""
    on_front: bool
    """Whether no other setting of the arm dominates it."""
    confirmed: tuple[Interval, ...]
    """Each metric over the seeds of its confirmation; () where it was not confirmed."""

    @property
    def seeds(self) -> int:
        """Seeds of its confirmation."""
        return max((interval.n for interval in self.confirmed), default=0)

    @property
    def text(self) -> str:
        """The setting in words."""
        params = self.trials[0].get("params") or {}
        own = {k.removeprefix("aml."): v for k, v in params.items() if v is not None}
        return ", ".join(f"{name} {wording.brief(value)}" for name, value in own.items())

    def row(self, objectives: Sequence[Objective]) -> dict[str, Any]:
        """Return the row of pareto.csv."""
        columns = {"arm": self.arm, "setting": self.text, "on_front": int(self.on_front)}
        columns["search_trials"] = len(self.trials)
        columns |= {o.metric: v for o, v in zip(objectives, self.values, strict=True)}
        columns["confirmed_seeds"] = self.seeds
        missing = [Interval(0, math.nan, math.nan, math.nan, math.nan)] * len(objectives)
        for o, i in zip(objectives, self.confirmed or missing, strict=True):
            columns |= {
                f"confirmed {o.metric}": i.mean,
                f"confirmed {o.metric} low": i.low,
                f"confirmed {o.metric} high": i.high,
            }
        return columns


def objectives_of(meta: Mapping[str, Any]) -> list[Objective]:
    """Return the metrics of a search by several; [] of a search by one.

    Args:
        meta: Content of sweep.json.
    """
    found = [Objective(*pair) for pair in meta.get("objectives") or ()]
    return found if len(found) > 1 else []


def search_fronts(
    trials: Sequence[Trial], counted: Sequence[Trial], meta: Mapping[str, Any]
) -> list[SearchedSetting]:
    """Return the settings of a search by several metrics; [] of any other.

    Args:
        trials: Records of the ledger, with their scores under corruption (`add_robustness`).
        counted: The same with the epochs up to the one that counts.
        meta: Content of sweep.json.
    """
    objectives = objectives_of(meta)
    found: list[SearchedSetting] = []
    for arm in dict.fromkeys(t["arm"] for t in trials if objectives):
        own = [t for t in trials if t["arm"] == arm]
        settings = searched_settings(own, objectives)
        gains = {key: mean_gains(members, objectives) for key, members in settings.items()}
        front = set(undominated(gains))
        confirmed: dict[str, list[Trial]] = {}
        for trial, short in zip(trials, counted, strict=True):
            if (trial["arm"], trial["stage"], trial["state"]) == (arm, "confirm", "done"):
                confirmed.setdefault(setting_key(trial), []).append(_with_last(short, trial))
        found += [
            SearchedSetting(
                arm=arm,
                trials=members,
                values=tuple(o.gain(g) for o, g in zip(objectives, gains[key], strict=True)),
                on_front=key in front,
                confirmed=tuple(
                    mean_interval(by_seed(confirmed[key], o.metric).values()) for o in objectives
                )
                if key in confirmed
                else (),
            )
            for key, members in settings.items()
        ]
    return found


def _with_last(counted: Trial, whole: Trial) -> Trial:
    """Return a trial up to the epoch that counts, with the scores that are its checkpoint's."""
    if not counted["history"]:
        return counted
    robust = {k: v for k, v in whole["history"][-1].items() if k.startswith("robust/")}
    return counted | {"history": [*counted["history"][:-1], counted["history"][-1] | robust]}


def metric_label(metric: str) -> str:
    """Return a metric's name with its unit."""
    return f"{metric} (%)" if wording.is_score(metric) else metric


def front_table(
    settings: Sequence[SearchedSetting], objectives: Sequence[Objective]
) -> tuple[list[str], list[list[str]]]:
    """Return headers and cells of the table of the settings on the fronts, the first best first."""
    names = [metric_label(o.metric) for o in objectives]
    headers = ["arm", "setting", *names, "seeds confirmed", *(f"confirmed {n}" for n in names)]
    first = objectives[0]
    rows = []
    for s in sorted(settings, key=lambda s: -first.gain(s.values[0])):
        if not s.on_front:
            continue
        searched = [wording.shown(o.metric, v) for o, v in zip(objectives, s.values, strict=True)]
        pairs = zip(objectives, s.confirmed, strict=False)
        means = [wording.shown(o.metric, interval.mean) for o, interval in pairs]
        seeds = str(s.seeds or "")
        rows.append([s.arm, s.text, *searched, seeds, *(means or [""] * len(objectives))])
    return headers, rows


def front_lines(settings: Sequence[SearchedSetting], objectives: Sequence[Objective]) -> list[str]:
    """Return a line on how many settings are on each arm's front, and what was confirmed."""
    if not settings:
        return []
    counts = []
    for arm in dict.fromkeys(s.arm for s in settings):
        own = [s for s in settings if s.arm == arm]
        counts.append(f"{arm} {sum(s.on_front for s in own)} of {len(own)} settings")
    text = f"Pareto front of {' and '.join(o.metric for o in objectives)}: {', '.join(counts)}"
    chosen = []
    for s in settings:
        if s.seeds:
            pairs = zip(objectives, s.confirmed, strict=True)
            means = " and ".join(wording.shown(o.metric, interval.mean) for o, interval in pairs)
            chosen.append(f"{s.arm} {means}")
    return [f"{text}; confirmed, as the best compromise: {', '.join(chosen)}" if chosen else text]
