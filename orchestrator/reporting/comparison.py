"""Is A better than B: two or more arms or trainings over their seeds, or evaluations of checkpoints over their images.

    RUN        a sweep (each of its confirmed arms), or a training; trainings that differ in nothing but the seed are one side
    RUN:ARM    one arm of a sweep, its finished confirmation trials
    DIR        what `evaluate --out DIR` wrote: only with others of its kind

Every pair is tested; Holm's correction is over all tests that are printed. What was not measured alike is refused.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import combinations
from pathlib import Path

from aml.errors import UserError
from orchestrator import storage
from orchestrator.config import Experiment
from orchestrator.reporting import numbers, wording
from orchestrator.reporting.comparison_by_image import _evaluations, _no_nan, _row
from orchestrator.reporting.significance import Difference, holm, mean_interval, seed_difference
from orchestrator.reporting.wording import _sure, _verdict_words


def compare_runs(
    names: list[str], root: Path, *, metric: str = "val/mIoU", say: Callable = print
) -> dict:
    """Compare and say it.   -> {"kind": "seeds" or "images", "comparisons": [...], ...}; NaN is None

    UserError: fewer than two sides, one that is not there or not finished, or sides that were not measured alike.
    """
    folders = [(Path(name) / "per_sentence.jsonl").is_file() for name in names]
    if any(folders) and not all(folders):
        raise UserError(
            f"{names[folders.index(True)]} is an evaluation and {names[folders.index(False)]} is not; compare evaluations with evaluations, runs with runs"
        )
    return _evaluations(names, say) if names and all(folders) else _runs(names, root, metric, say)


@dataclass
class ComparisonGroup:
    """One arm or training setting with its seeds."""

    label: str
    arm: str
    run: storage.Run
    experiment: Experiment
    trials: list[dict] = field(default_factory=list)
    """Ledger lines, done."""
    flops: float = math.nan
    """Of a training step, a sample."""
    also: list[storage.Run] = field(default_factory=list)
    """The trainings of the same setting on other seeds."""

    @property
    def epochs(self) -> int:
        return max(map(numbers.epochs_of, self.trials))

    @property
    def compute(self) -> float:
        """FLOPs of the training, an item of the data."""
        return self.epochs * self.flops


def _runs(names: list[str], root: Path, metric: str, say: Callable) -> dict:
    sides, whole = _sides(names, root)
    pairs = list(combinations(range(len(sides)), 2))
    if whole:  # several sweeps, none with an arm named: arm against the same arm
        pairs = [
            (i, j)
            for i, j in pairs
            if sides[i].arm == sides[j].arm and sides[i].run.folder != sides[j].run.folder
        ]
    if not pairs:
        what = (
            "no arm is confirmed in both sweeps"
            if whole
            else f"{len(sides)} side{'' if len(sides) == 1 else 's'} to compare"
        )
        raise UserError(
            f"{what}; name two or more arms as RUN:ARM, trainings that differ in more than their seed, or a sweep with several confirmed arms"
        )
    for i, j in pairs:
        _check_alike(sides[i], sides[j])
    scores = [numbers.by_seed(side.trials, metric) for side in sides]
    for side, found in zip(sides, scores, strict=True):
        if not found:
            known = sorted(k for k in side.trials[0]["history"][-1] if k.startswith("val/"))
            raise UserError(
                f"{side.label} has no {metric} in its last epoch; choose --metric out of {', '.join(known)}"
            )
        i = mean_interval(found.values())
        interval = (
            f"95% t interval {wording.pct(i.low)} to {wording.pct(i.high)}, deviation {wording.pct(i.sd)}, {i.n} seeds"
            if i.n > 1
            else "one seed, no interval"
        )
        say(f"{side.label}: {metric} {wording.pct(i.mean)}% ({interval}), {side.epochs} epochs")
    found = [seed_difference(scores[i], scores[j]) for i, j in pairs]
    adjusted = holm([d.p for d in found])
    tests = sum(not math.isnan(d.p) for d in found)
    rows = []
    for (i, j), d, p in zip(pairs, found, adjusted, strict=True):
        text = seed_words(sides[i].label, sides[j].label, d, p, tests, metric)
        equal = equality(sides[i], sides[j])
        say(f"{text} {equal}")
        rows.append(
            _row(sides[i].label, sides[j].label, d, p)
            | {"metric": metric, "equality": equal, "words": text}
        )
    for note in _notes([sides[k] for k in sorted({k for pair in pairs for k in pair})]):
        say(note)
    return _no_nan(
        {
            "kind": "seeds",
            "metric": metric,
            "tests": tests,
            "sides": [_described(*s) for s in zip(sides, scores, strict=True)],
            "comparisons": rows,
        }
    )


def _sides(names: list[str], root: Path) -> tuple[list[ComparisonGroup], bool]:
    """The sides that the names mean, and whether they are two or more whole sweeps."""
    sides: dict[str, ComparisonGroup] = {}
    kinds = []
    for name in names:
        run_name, _, arm = name.partition(":")
        run = find_run_or_part(root, run_name, arm)
        kinds.append("arm" if arm else run.kind)
        if run.kind == "sweep":
            for side in _arms(run, arm):
                sides[side.label] = side
        elif arm:
            raise UserError(f"{run.name} is a training, which has no arms; name it without :{arm}")
        else:
            side = _training(run)
            of = sides.setdefault(_setting(side.experiment, run), side)
            if run.folder not in [r.folder for r in (of.run, *of.also)]:
                of.trials += side.trials
                of.also.append(run)
                of.label = f"{of.run.name} (and {len(of.also)} more seeds)"
    return list(sides.values()), kinds.count("sweep") == len(kinds) > 1


def find_run_or_part(root: Path, name: str, part: str) -> storage.Run:
    """A run by its folder or its name; where a `part` of it (an arm, a trial) is named too, a sweep."""
    folder = Path(name)
    for kind in storage.KINDS:
        if name and (folder / f"{kind}.json").is_file():
            return storage.Run(folder, kind)
    return storage.find_run(root, name, "sweep" if part else None)


def _arms(run: storage.Run, arm: str) -> list[ComparisonGroup]:
    experiment, ledger = run.experiment(), run.ledger()
    done: dict[str, list[dict]] = {}
    for record in ledger:
        if record["stage"] == "confirm" and record["state"] == "done":
            done.setdefault(record["arm"], []).append(record)
    if arm and arm not in done:
        near = get_close_matches(arm, done, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        have = (
            ", ".join(done)
            or "none; the search's scores are of chosen settings and are not compared"
        )
        raise UserError(
            f"{run.name} has no finished confirmation trial of arm {arm!r}{hint}; confirmed there: {have}"
        )
    if not done:
        raise UserError(
            f"{run.name} has no finished confirmation trial; let it finish, with search.seeds.confirm of 2 or more"
        )
    cost = run.state.get("cost") or {}
    return [
        ComparisonGroup(
            f"{run.name}:{name}",
            name,
            run,
            experiment,
            done[name],
            numbers.number((cost.get(name) or {}).get("flops_per_item")),
        )
        for name in ([arm] if arm else done)
    ]


def _training(run: storage.Run) -> ComparisonGroup:
    if not run.finished:
        raise UserError(
            f"{run.name} is not finished (state: {run.state.get('state', 'unknown')}); let it end, then compare"
        )
    trial = {"history": run.state["history"], "seed": run.state["seed"]}
    return ComparisonGroup(
        run.name, run.state.get("arm") or "training", run, run.experiment(), [trial]
    )


def _setting(experiment: Experiment, run: storage.Run) -> str:
    """What a training is besides its seed, its name and where it ran."""
    tree = {
        k: v
        for k, v in experiment.to_dict().items()
        if k not in ("name", "seed", "search", "resources", "tracking", "storage")
    }
    return json.dumps(
        [tree, run.state["data"]["fingerprint"], run.state.get("init")], sort_keys=True
    )


def _check_alike(a: ComparisonGroup, b: ComparisonGroup) -> None:
    """UserError where two sides were not validated on the same sentences in the same way."""

    def facts(side: ComparisonGroup) -> list[tuple[str, object, str]]:
        data = side.experiment.data
        elsewhere = (
            "evaluate both on the same data with --protocol original and compare those folders"
        )
        return [
            ("data fingerprint", side.run.state["data"]["fingerprint"], elsewhere),
            ("validation split", data.val_split, elsewhere),
            ("data.val_limit", data.val_limit, elsewhere),
            ("protocol", f"square at {data.size} px, {data.fit}", elsewhere),
            ("threshold", side.experiment.evaluate.threshold, elsewhere),
        ]

    for (what, one, remedy), (_, two, _) in zip(facts(a), facts(b), strict=True):
        if one != two:
            raise UserError(
                f"{a.label} and {b.label} cannot be compared: the {what} is {one} and {two}; {remedy}"
            )


def equality(a: ComparisonGroup, b: ComparisonGroup) -> str:
    """Which equality holds between two sides: epochs, compute (FLOPs, to within half an epoch), both or neither."""
    epochs = "equal epochs" if a.epochs == b.epochs else f"{a.epochs} and {b.epochs} epochs"
    ratio = a.compute / b.compute
    if not math.isfinite(ratio):
        return f"Compared at {epochs}; what a step costs was not recorded."
    if abs(math.log(ratio)) <= 0.5 / min(a.epochs, b.epochs) and (
        a.epochs != b.epochs or abs(ratio - 1) < 5e-3
    ):
        return f"Compared at {epochs} and equal compute (FLOPs x{ratio:.3f})."
    return f"Compared at {epochs}, not at equal compute: the first took x{ratio:.3f} the FLOPs of the second."


def seed_words(a: str, b: str, d: Difference, p: float, tests: int, metric: str) -> str:
    """One sentence: how much, how sure, never more than the seeds carry. `p`: Holm-adjusted over `tests`."""
    lead = f"{a} is {wording.pct(abs(d.difference))} points {'above' if d.difference >= 0 else 'below'} {b} in {metric}"
    if d.test == "none":
        return f"{lead}: not distinguishable, as one seed says nothing of noise; train both on two or more common seeds."
    seeds = (
        f"{d.n[0]} paired seeds"
        if d.test == "paired t"
        else f"{d.n[0]} and {d.n[1]} seeds, none or one in common"
    )
    return f"{lead} ({_sure(d, p, tests)}, {d.test} test, {seeds}): {_verdict_words(d, p, tests, 'seed noise', 'these seeds')}"


def _notes(sides: list[ComparisonGroup]) -> list[str]:
    """What else differs between the sides."""
    notes = []
    if (
        len(
            versions := {
                s.run.state.get("code_version") or s.run.state.get("git_sha") for s in sides
            }
        )
        > 1
    ):
        notes.append(
            f"note: they were computed by different versions of the code ({', '.join(sorted(map(str, versions)))})"
        )
    leaves = [s.experiment.leaves() for s in sides]
    skipped = ("name", "seed", "search", "resources", "tracking", "storage")
    changed = [
        k
        for k in leaves[0]
        if k.split(".")[0] not in skipped and any(other.get(k) != leaves[0][k] for other in leaves)
    ]
    if changed:
        notes.append(
            f"the experiments differ in {', '.join(changed[:12])}{' ...' if len(changed) > 12 else ''}"
        )
    if any(
        s.run.kind == "sweep" and (s.run.state.get("settings_tried") or {}).get(s.arm, 1) > 1
        for s in sides
    ):
        tried = ", ".join(
            f"{s.label} {(s.run.state.get('settings_tried') or {}).get(s.arm, '?')}" for s in sides
        )
        notes.append(
            f"each arm stands with the best setting of its search; settings tried: {tried}"
        )
    return notes


def _described(side: ComparisonGroup, scores: dict[int, float]) -> dict:
    i = mean_interval(scores.values())
    seeds = {str(seed): value for seed, value in sorted(scores.items())}
    return {
        "label": side.label,
        "arm": side.arm,
        "epochs": side.epochs,
        "flops_per_item": side.compute,
        "seeds": seeds,
    } | i._asdict()
