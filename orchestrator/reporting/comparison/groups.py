"""Load the groups of seeds that a comparison names, and check that they are comparable."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from aml.errors import UserError
from orchestrator import storage
from orchestrator.config import Experiment
from orchestrator.reporting import numbers, robust_arms
from orchestrator.reporting.numbers import Trial

NOT_TRAINING = ("name", "seed", "search", "resources", "tracking", "storage")
"""Sections of the settings in which trainings of one group may differ."""


@dataclass
class ComparisonGroup:
    """One arm or one training setting with its seeds."""

    label: str
    arm: str
    run: storage.Run
    experiment: Experiment
    trials: list[Trial] = field(default_factory=list)
    """Ledger lines of finished trials."""
    step_flops: float = math.nan
    """FLOPs of a training step per sample."""
    other_seeds: list[storage.Run] = field(default_factory=list)
    """Trainings of the same setting on other seeds."""

    @property
    def epochs(self) -> int:
        """Return the most epochs that one of the trials finished."""
        return max(map(numbers.epochs_of, self.trials))

    @property
    def compute(self) -> float:
        """Return the FLOPs of the whole training per item of the data."""
        return self.epochs * self.step_flops

    @property
    def settings_tried(self) -> int | None:
        """Return how many settings the sweep's search tried for the arm; None if unknown."""
        return (self.run.state.get("settings_tried") or {}).get(self.arm)


def load_groups(names: list[str], root: Path) -> tuple[list[ComparisonGroup], bool]:
    """Load the groups that a comparison names.

    Trainings that differ in nothing but their seed become one group.

    Args:
        names: RUN or RUN:ARM.
        root: Folder of all runs.

    Returns:
        The groups, and whether the names are two or more whole sweeps.
    """
    groups: dict[str, ComparisonGroup] = {}
    kinds = []
    for name in names:
        run_name, _, arm = name.partition(":")
        run = find_run_or_part(root, run_name, arm)
        kinds.append("arm" if arm else run.kind)
        if run.kind == "sweep":
            groups |= {group.label: group for group in _arm_groups(run, arm)}
        elif arm:
            raise UserError(f"{run.name} is a training, which has no arms; name it without :{arm}")
        else:
            group = _training_group(run)
            _add_seed(groups.setdefault(_setting_key(group.experiment, run), group), group)
    return list(groups.values()), kinds.count("sweep") == len(kinds) > 1


def find_run_or_part(root: Path, name: str, part: str) -> storage.Run:
    """Find a run by its folder or its name.

    Args:
        root: Folder of all runs.
        name: Folder or name of the run.
        part: Name of an arm or a trial, or ""; with one only a sweep can be meant.
    """
    folder = Path(name)
    for kind in storage.KINDS:
        if name and (folder / f"{kind}.json").is_file():
            return storage.Run(folder, kind)
    return storage.find_run(root, name, "sweep" if part else None)


def _add_seed(group: ComparisonGroup, training: ComparisonGroup) -> None:
    """Add a training of the same setting to a group, unless the group has it already."""
    if training.run.folder in [run.folder for run in (group.run, *group.other_seeds)]:
        return
    group.trials += training.trials
    group.other_seeds.append(training.run)
    group.label = f"{group.run.name} (and {len(group.other_seeds)} more seeds)"


def _arm_groups(run: storage.Run, arm: str) -> list[ComparisonGroup]:
    """Return the confirmed arms of a sweep, or only `arm` if it is not ""."""
    experiment = run.experiment()
    done: dict[str, list[Trial]] = {}
    records = numbers.counted(run.ledger(), experiment.evaluate.select)
    for record in robust_arms.add_robustness(records, run.state):
        if record["stage"] == "confirm" and record["state"] == "done":
            done.setdefault(record["arm"], []).append(record)
    if arm and arm not in done:
        near = get_close_matches(arm, done, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        none = "none; the search's scores are of chosen settings and are not compared"
        raise UserError(
            f"{run.name} has no finished confirmation trial of arm {arm!r}{hint}; "
            f"confirmed there: {', '.join(done) or none}"
        )
    if not done:
        raise UserError(
            f"{run.name} has no finished confirmation trial; "
            "let it finish, with search.seeds.confirm of 2 or more"
        )
    cost = run.state.get("cost") or {}
    return [
        ComparisonGroup(
            label=f"{run.name}:{name}",
            arm=name,
            run=run,
            experiment=experiment,
            trials=done[name],
            step_flops=numbers.number((cost.get(name) or {}).get("flops_per_item")),
        )
        for name in ([arm] if arm else done)
    ]


def _training_group(run: storage.Run) -> ComparisonGroup:
    if not run.finished:
        raise UserError(
            f"{run.name} is not finished (state: {run.state.get('state', 'unknown')}); "
            "let it end, then compare"
        )
    history = run.state["history"]
    trial = {"history": history, "seed": run.state["seed"], "epochs": len(history)}
    arm = run.state.get("arm") or "training"
    experiment = run.experiment()
    trials = numbers.counted([trial], experiment.evaluate.select)
    return ComparisonGroup(run.name, arm, run, experiment, trials)


def _setting_key(experiment: Experiment, run: storage.Run) -> str:
    """Return what defines a training besides its seed, its name and where it ran."""
    tree = {k: v for k, v in experiment.to_dict().items() if k not in NOT_TRAINING}
    data = run.state["data"]["fingerprint"]
    return json.dumps([tree, data, run.state.get("init")], sort_keys=True)


def check_comparable(a: ComparisonGroup, b: ComparisonGroup) -> None:
    """Check that two groups were validated on the same sentences in the same way.

    Raises:
        UserError: They were not; the message names the first difference and a remedy.
    """
    conditions = zip(_validation_conditions(a), _validation_conditions(b), strict=True)
    for (name, one, remedy), (_, two, _) in conditions:
        if one != two:
            raise UserError(
                f"{a.label} and {b.label} cannot be compared: "
                f"the {name} is {one} and {two}; {remedy}"
            )


def _validation_conditions(group: ComparisonGroup) -> Iterator[tuple[str, object, str]]:
    """Yield name and value of what comparable groups have in common, and a remedy if they don't."""
    data = group.experiment.data
    remedy = "evaluate both on the same data with --protocol original and compare those folders"
    yield "data fingerprint", group.run.state["data"]["fingerprint"], remedy
    yield "validation split", data.val_split, remedy
    yield "data.val_limit", data.val_limit, remedy
    yield "protocol", f"square at {data.size} px, {data.fit}", remedy
    yield "threshold", group.experiment.evaluate.threshold, remedy
    yield "epoch that counts (evaluate.select)", group.experiment.evaluate.select or "last", remedy


def equality(a: ComparisonGroup, b: ComparisonGroup) -> str:
    """Say whether two groups had equal epochs, equal compute, both or neither.

    Compute is measured in FLOPs and counts as equal to within half an epoch.
    """
    epochs = "equal epochs" if a.epochs == b.epochs else f"{a.epochs} and {b.epochs} epochs"
    ratio = a.compute / b.compute
    if not math.isfinite(ratio):
        return f"Compared at {epochs}; what a step costs was not recorded."
    half_epoch = 0.5 / min(a.epochs, b.epochs)
    within_half_epoch = abs(math.log(ratio)) <= half_epoch
    # at equal epochs the ratio is that of the steps, which must then be equal themselves
    if within_half_epoch and (a.epochs != b.epochs or abs(ratio - 1) < 5e-3):
        return f"Compared at {epochs} and equal compute (FLOPs x{ratio:.3f})."
    return (
        f"Compared at {epochs}, not at equal compute: "
        f"the first took x{ratio:.3f} the FLOPs of the second."
    )


def difference_notes(groups: list[ComparisonGroup]) -> list[str]:
    """Name what else differs between groups: code, settings, amount of search."""
    notes = []
    versions = {g.run.state.get("code_version") or g.run.state.get("git_sha") for g in groups}
    if len(versions) > 1:
        names = ", ".join(sorted(map(str, versions)))
        notes.append(f"note: they were computed by different versions of the code ({names})")
    changed = _changed_settings(groups)
    if changed:
        more = " ..." if len(changed) > 12 else ""
        notes.append(f"the experiments differ in {', '.join(changed[:12])}{more}")
    if any(g.run.kind == "sweep" and (g.settings_tried or 1) > 1 for g in groups):
        tried = ", ".join(
            f"{g.label} {'?' if g.settings_tried is None else g.settings_tried}" for g in groups
        )
        notes.append(
            f"each arm stands with the best setting of its search; settings tried: {tried}"
        )
    return notes


def _changed_settings(groups: list[ComparisonGroup]) -> list[str]:
    """Return the settings of the first group that another group has otherwise."""
    first, *others = [group.experiment.leaves() for group in groups]
    return [
        key
        for key in first
        if key.split(".")[0] not in NOT_TRAINING
        and any(other.get(key) != first[key] for other in others)
    ]
