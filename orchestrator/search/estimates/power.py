"""How many confirmation seeds a difference between two arms needs, and what they cost.

Arms are compared by a paired t test over seeds. How far the paired differences of two arms spread
is known from confirmed trials of the same experiment, or is a stated guess. Nothing is trained.
"""

import logging
import math
from pathlib import Path
from typing import NamedTuple

from aml.errors import UserError
from orchestrator import reporting, storage
from orchestrator.config import Experiment

logger = logging.getLogger(__name__)

DIFFERENCES = (0.5, 1.0, 2.0, 3.0)
"""Differences that are asked about where none is named, points."""

SHIPPED = "results"
"""Folder beside an experiment's file with ledgers of earlier runs, NAME.ledger.jsonl."""

METRICS = ("val/mIoU", "robust/mean")
"""What is planned for, if an earlier run has it."""


class PowerQuestion(NamedTuple):
    """Differences that a person wants a sweep to show, and the guessed spread of seeds."""

    differences: tuple[float, ...] = DIFFERENCES
    """Differences in mIoU between two arms, points."""
    spread: float | None = None
    """Guessed standard deviation of two arms' paired differences, points; None takes what earlier
    runs of the experiment showed."""
    shipped: Path | None = None
    """Folder of the experiment's file, whose `SHIPPED` may hold its ledger; None if unknown."""


ANY_DIFFERENCE = PowerQuestion()
"""What a plan answers where nobody asks."""


class SeedSpread(NamedTuple):
    """Standard deviation of the paired differences of two arms, from confirmed trials."""

    metric: str
    sd: float
    """Points."""
    source: str
    """Where it is from, in words."""
    freedom: int = 0
    """Degrees of freedom that it rests on; 0 for a guess."""


def power_question(
    differences: list[float], spread: float | None, experiment_file: str
) -> PowerQuestion:
    """Return a person's question to the plan of a sweep.

    Args:
        differences: In points; an empty list asks about `DIFFERENCES`.
        spread: Guessed spread in points; None takes what earlier runs showed.
        experiment_file: Path of the experiment's YAML file.

    Raises:
        UserError: A number of points is not above 0 and at most 100.
    """
    for name, values in (("--difference", differences), ("--seed-spread", [spread])):
        for value in values:
            if value is not None and not 0 < value <= 100:
                raise UserError(
                    f"{name} is {value:g}; it must be above 0 and at most 100 points of mIoU"
                )
    return PowerQuestion(tuple(differences) or DIFFERENCES, spread, Path(experiment_file).parent)


def describe_power(experiment: Experiment, question: PowerQuestion, seed_hours: float) -> list[str]:
    """Return lines that say how many seeds differences need, and which the plan's seeds would show.

    Args:
        experiment: The settings of the sweep.
        question: What is asked.
        seed_hours: Wall clock of one more confirmation seed of every arm; NaN where unknown.
    """
    if len(experiment.search.arms) < 2:
        return []
    spreads = find_spreads(experiment, question)
    if not spreads:
        return [
            f"power: no earlier run of {experiment.name} has two arms with two confirmed seeds in "
            "common, which would say how far a difference spreads; state a guess in points, as "
            "--seed-spread 1.5"
        ]
    lines = []
    for spread in spreads:
        lines += [_spread_words(spread), _seen_words(spread, experiment.search.seeds.confirm)]
        lines += _table(experiment, spread, question.differences, seed_hours)
    return [
        *lines,
        f"  (one comparison, two-sided paired t test at {100 * reporting.LEVEL:g} %, power "
        f"{100 * reporting.POWER:g} %; correction for several comparisons takes more)",
    ]


def find_spreads(experiment: Experiment, question: PowerQuestion) -> list[SeedSpread]:
    """Return the spread of each metric that is known: of a guess, an earlier run, a shipped ledger.

    Trials count at the epoch that evaluate.select names. Of several runs the one whose spread rests
    on the most degrees of freedom is taken, the newest of equals.
    """
    if question.spread is not None:
        return [SeedSpread(METRICS[0], question.spread, "guessed")]
    found: list[SeedSpread] = []
    select = experiment.evaluate.select
    for run in storage.list_runs(storage.storage_root(experiment.storage.root)):
        if run.kind == "sweep" and run.state.get("name") == experiment.name:
            trials = reporting.counted(run.ledger(), select)
            found += _spreads(reporting.add_robustness(trials, run.state), f"run {run.name}")
    shipped = question.shipped and question.shipped / SHIPPED / f"{experiment.name}.ledger.jsonl"
    if not found and shipped and shipped.is_file():
        trials, problems = storage.read_trials(shipped)
        for problem in problems:
            logger.info(f"note: {shipped}: {problem}")
        found = _spreads(reporting.counted(trials, select), str(shipped))
    by_metric = [[s for s in found if s.metric == metric] for metric in METRICS]
    return [max(known, key=lambda spread: spread.freedom) for known in by_metric if known]


def _spreads(trials: list[dict], source: str) -> list[SeedSpread]:
    """Return the spread of each metric that confirmed trials of several arms and seeds show."""
    done = [t for t in trials if t["stage"] == "confirm" and t["state"] == "done"]
    spreads = []
    for metric in METRICS:
        scores = {
            arm: reporting.by_seed((t for t in done if t["arm"] == arm), metric)
            for arm in dict.fromkeys(t["arm"] for t in done)
        }
        sd, freedom = reporting.paired_spread(list(scores.values()))
        if freedom > 0 and sd > 0:
            seeds = len({seed for by_seed in scores.values() for seed in by_seed})
            source_words = f"{source}: {len(scores)} arms, {seeds} seeds"
            spreads.append(SeedSpread(metric, 100 * sd, source_words, freedom))
    return spreads


def _spread_words(spread: SeedSpread) -> str:
    sd = f"power: the difference of two arms in {spread.metric} spreads by {spread.sd:.2f} points"
    if not spread.freedom:
        return f"{sd} from seed to seed ({spread.source})"
    low, high = (spread.sd * factor for factor in reporting.deviation_factors(spread.freedom))
    return f"{sd} (95% {low:.2f} to {high:.2f}) from seed to seed ({spread.source})"


def _seen_words(spread: SeedSpread, seeds: int) -> str:
    """Say which difference the seeds of the plan would show."""
    if seeds < 2:
        return f"  {seeds} confirmation seed(s) of each arm show no difference: a test needs two"
    seen = reporting.smallest_detectable_difference(spread.sd, seeds)
    return (
        f"  with search.seeds.confirm={seeds} a true difference of {seen:.2f} points would be "
        "found four times in five"
    )


def _table(
    experiment: Experiment, spread: SeedSpread, differences: tuple[float, ...], seed_hours: float
) -> list[str]:
    """Return the table of differences: seeds needed, trainings and hours beyond the plan's."""
    search = experiment.search
    lines = ["  difference   seeds of an arm   more trainings   more hours"]
    for difference in differences:
        needed = reporting.pairs_needed(spread.sd, difference)
        if needed is None:
            lines.append(f"  {difference:>10g}   more than {reporting.MOST_PAIRS}")
            continue
        more = max(0, needed - search.seeds.confirm)
        hours = "?" if math.isnan(seed_hours) else f"{more * seed_hours:.2f}"
        trainings = more * len(search.arms)
        lines.append(f"  {difference:>10g}   {needed:>15}   {trainings:>14}   {hours:>10}")
    return lines
