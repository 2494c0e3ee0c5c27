"""Run a training, or one trial of a sweep, again in this process, and say whether its metrics agree.

On a CPU agreement means every bit of every metric of every epoch; times and memory are not compared. Where another answer than agreement
would say nothing (other data, code, torch, a GPU, several workers), nothing is run and the reason is said. That it was made on another kind
of processor, which may round otherwise, is said first.
"""

import math
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from aml.errors import UserError
from orchestrator import data, search, storage, training, utils
from orchestrator.config import Experiment, code_version
from orchestrator.reporting import find_run_or_part

NOT_COMPARED = ("time", "mem")

"""Families of metrics that are of the machine, not of the training."""


class _Enough(Exception):
    """The epoch at which the original stopped is reached."""


def reproduce_run(name: str, root: Path, *, say: Callable = print) -> dict:
    """-> {"run", "folder", "agrees", "epochs", "values", "differ": [{"epoch", "metric", "was", "is"}]}

    name: RUN of a training or RUN:TRIAL of a sweep. UserError where there is none, where it has no epoch, or where it cannot be told.
    """
    run_name, _, trial_name = name.partition(":")
    run = find_run_or_part(root, run_name, trial_name)
    legs, history = _trial(run, trial_name) if run.kind == "sweep" else _training(run, trial_name)
    experiment = legs[-1][0]
    called = f"{run.name}:{trial_name}" if trial_name else run.name
    used = data.check_sources(experiment.data, root)
    _check(called, run, experiment, used.manifest["fingerprint"] if used else "nothing")
    if text := elsewhere(called, run.state.get("processors", [])):
        say(text)
    folder = _fresh(root / "reproduced" / called.replace(":", "-"))
    say(f"running {called} again for {len(history)} epochs in {folder}")
    blocks = used.windowed().open if run.state.get("windowed") else used.blocks
    found = _again(legs, used, blocks, folder, len(history), run.state.get("init"), say)
    values, differ = differences(history, found)
    say(words(called, len(history), values, differ))
    return {
        "run": called,
        "folder": str(folder),
        "agrees": not differ,
        "epochs": len(history),
        "values": values,
        "differ": differ,
    }


def _training(run: storage.Run, trial_name: str) -> tuple[list, list[dict]]:
    if trial_name:
        raise UserError(
            f"{run.name} is a training, which has no trials; name it without :{trial_name}"
        )
    history = run.state.get("history") or storage.read_history(run.folder)
    if not history:
        raise UserError(
            f"{run.name} has finished no epoch; there is nothing to hold a repetition against yet"
        )
    return [(run.experiment(), run.experiment().train.epochs)], history


def _trial(run: storage.Run, trial_name: str) -> tuple[list, list[dict]]:
    records = {r["trial"]: r for r in run.ledger() if r.get("history")}
    if trial_name not in records:
        raise UserError(
            f"{run.name} is a sweep: name one of its trials as {run.name}:TRIAL; it has {', '.join(records) or 'none finished'}"
        )
    record = records[trial_name]
    path = record.get("path", [])
    if path and record["stage"] == "search":
        raise UserError(
            f"{trial_name} of {run.name} went on from other trials' weights, at epoch {', '.join(str(begin) for begin, _ in path[1:])}, which are gone; "
            f"name a confirmation trial of {record['arm']}: it trains along the same settings from its own start"
        )
    spec = search.TrialSpec(
        trial_name, record["arm"], record["stage"], record["seed"], record["overrides"], path
    )
    return spec.legs(run.experiment()), record["history"]


def _check(called: str, run: storage.Run, experiment: Experiment, fingerprint: str) -> None:
    """UserError with the first reason for which agreement, or its absence, would say nothing."""
    state, resources = run.state, experiment.resources
    cannot = f"whether {called} reproduces cannot be told:"
    if state["data"]["fingerprint"] != fingerprint:
        raise UserError(
            f"{cannot} it was made with data {state['data']['fingerprint']}, but {experiment.data.train} now holds {fingerprint}; restore those data"
        )
    here = code_version()
    made = state.get("code_version") or (here if _named_by_this_code(run) else "unrecorded")
    if made != here:
        raise UserError(
            f"{cannot} it was made by code version {made} (commit {state.get('git_sha', 'unknown')}), here is {here}; check that commit out"
        )
    had, has = (state.get("versions") or {}).get("torch", "unrecorded"), version("torch")
    if had != has:
        raise UserError(
            f"{cannot} it was made with torch {had}, here is {has}; install that version"
        )
    if resources.gpus_per_worker:
        raise UserError(
            f"{cannot} it ran on a GPU, where sums are added in no fixed order; repeat it on one and use `compare` over several seeds"
        )
    if resources.workers > 1:
        raise UserError(
            f"{cannot} it ran on {resources.workers} workers, which add gradients in another order than one; repeat it by `train --fresh`"
        )
    if (init := state.get("init")) and not Path(init).exists():
        raise UserError(f"{cannot} it started from {init}, which is gone; put those weights back")


def elsewhere(called: str, processors: list[str]) -> str:
    """That a run was made on other processors than this machine's, or nothing.   processors: as the run recorded them; older ones have none"""
    here = storage.processor()
    if others := [name for name in processors if name != here]:
        return f"note: {called} was made on {' and '.join(others)}, here is {here}; another processor may round otherwise, and then metrics differ"
    return ""


def _named_by_this_code(run: storage.Run) -> bool:
    """A run's name carries a hash of its settings, data and code (and perhaps a number after it)."""
    return run.name.startswith(run.experiment().run_name(run.state["data"]["fingerprint"]))


def _fresh(folder: Path) -> Path:
    """The folder, or the first of folder-2, folder-3 ... that is not there."""
    number, free = 1, folder
    while free.exists():
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free


def _again(
    legs: list,
    used: data.Sources,
    blocks: Callable,
    folder: Path,
    epochs: int,
    init: str | None,
    say,
) -> list[dict]:
    """The metrics of each epoch, trained as a light trial trains, on shards decoded here.   legs: as plan.Trial.legs gives them"""
    import torch

    threads, found = torch.get_num_threads(), []

    def report(metrics: dict) -> None:
        found.append(utils.without_nan(metrics))
        say(f"epoch {metrics['epoch']}/{epochs}  mIoU {metrics['val/mIoU']:.4f}")
        if len(found) == epochs:
            raise _Enough

    torch.set_num_threads(
        max(1, int(legs[0][0].resources.cpus_per_worker))
    )  # the number of threads decides the order of sums
    try:
        for experiment, until in legs:
            training.run_training(
                experiment,
                blocks,
                used.words(),
                folder,
                report,
                device="cpu",
                init=init,
                until=until,
            )
    except _Enough:
        pass
    finally:
        torch.set_num_threads(threads)
    return found


def differences(was: list[dict], found: list[dict]) -> tuple[int, list[dict]]:
    """How many values were compared, and those that differ in any bit, in the order of epochs. Both lists have an entry an epoch."""
    count, differ = 0, []
    for before, after in zip(was, found, strict=True):
        for key in sorted(
            k for k in before.keys() | after.keys() if k.split("/")[0] not in NOT_COMPARED
        ):
            count += 1
            one, two = before.get(key), after.get(key)
            if one != two:
                differ.append({"epoch": before["epoch"], "metric": key, "was": one, "is": two})
    return count, differ


def words(called: str, epochs: int, values: int, differ: list[dict]) -> str:
    if not differ:
        return f"{called} reproduces: all {values} metrics of {epochs} epochs agree bit for bit"
    first = differ[0]
    gaps = [
        abs(d["was"] - d["is"])
        for d in differ
        if all(isinstance(d[k], (int, float)) and math.isfinite(d[k]) for k in ("was", "is"))
    ]
    most = f", the largest gap {max(gaps):.3g}" if gaps else ""
    return (
        f"{called} does not reproduce: {len(differ)} of {values} metrics of {epochs} epochs differ{most}; the first is {first['metric']} "
        f"of epoch {first['epoch']}, {first['was']} then and {first['is']} now. Data, code, torch and seed are the same: another kind of processor, "
        "another build of a library, or a training that was started from other weights may be why"
    )
