"""Run a training, or one trial of a sweep, again in this process, and compare its metrics.

On a CPU, runs agree when every metric of every epoch agrees in all bits; times and memory are not
compared. Where a difference would say nothing (other data, code or torch, a GPU, several workers),
nothing is run, and an error gives the reason. If the run was made on another kind of processor,
which may round otherwise, a note says so first.
"""

import logging
import math
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from aml.errors import UserError
from orchestrator import data, search, storage, training, utils
from orchestrator.config import Experiment, code_version
from orchestrator.reporting import find_run_or_part

logger = logging.getLogger(__name__)

Schedule = list[tuple[Experiment, int]]
"""As `TrialSpec.config_schedule` returns it."""

NOT_COMPARED = ("time", "mem")
"""Families of metrics that depend on the machine, not on the training."""


class _LastEpochReached(Exception):
    """The epoch at which the original stopped is reached."""


def reproduce_run(name: str, root: Path) -> dict:
    """Train a run or trial again and compare.

    Args:
        name: RUN of a training, or RUN:TRIAL of a sweep.
        root: The storage root.

    Returns:
        {"run", "folder", "agrees", "epochs", "values",
        "differ": [{"epoch", "metric", "was", "is"}]}.

    Raises:
        UserError: There is no such run, it has no epoch, or a comparison would say nothing.
    """
    run_name, _, trial_name = name.partition(":")
    run = find_run_or_part(root, run_name, trial_name)
    read = _read_trial if run.kind == "sweep" else _read_training
    schedule, history = read(run, trial_name)
    experiment = schedule[-1][0]
    full_name = f"{run.name}:{trial_name}" if trial_name else run.name
    sources = data.check_sources(experiment.data, root)
    fingerprint = sources.manifest["fingerprint"] if sources else "nothing"
    _check(full_name, run, experiment, fingerprint)
    assert sources is not None  # _check refuses data that are not there
    if text := other_processors(full_name, run.state.get("processors", [])):
        logger.info(text)
    folder = _free_folder(root / "reproduced" / full_name.replace(":", "-"))
    logger.info(f"running {full_name} again for {len(history)} epochs in {folder}")
    blocks = sources.windowed().open if run.state.get("windowed") else sources.blocks
    init = run.state.get("init")
    scored_under = schedule[-1][0].searched_conditions if _has_robust(history) else []
    corrupted = {c: pictures.open for c, pictures in sources.corrupted(scored_under).items()}
    context = training.RunContext(init_checkpoint=Path(init) if init else None, corrupted=corrupted)
    found = _train_again(schedule, sources, blocks, folder, len(history), context)
    values, differ = differences(history, found)
    logger.info(result_text(full_name, len(history), values, differ))
    return {
        "run": full_name,
        "folder": str(folder),
        "agrees": not differ,
        "epochs": len(history),
        "values": values,
        "differ": differ,
    }


def _has_robust(history: list[dict]) -> bool:
    """Return whether the trial was scored under corruption after its last epoch."""
    return "robust/mIoU" in history[-1]


def _read_training(run: storage.Run, trial_name: str) -> tuple[Schedule, list[dict]]:
    if trial_name:
        raise UserError(
            f"{run.name} is a training, which has no trials; name it without :{trial_name}"
        )
    history = run.state.get("history") or storage.read_history(run.folder)
    if not history:
        raise UserError(
            f"{run.name} has finished no epoch; there is nothing to hold a repetition against yet"
        )
    experiment = run.experiment()
    return [(experiment, experiment.train.epochs)], history


def _read_trial(run: storage.Run, trial_name: str) -> tuple[Schedule, list[dict]]:
    records = {r["trial"]: r for r in run.ledger() if r.get("history")}
    if trial_name not in records:
        raise UserError(
            f"{run.name} is a sweep: name one of its trials as {run.name}:TRIAL; "
            f"it has {', '.join(records) or 'none finished'}"
        )
    record = records[trial_name]
    path = record.get("path", [])
    if path and record["stage"] == "search":
        exploits = ", ".join(str(epoch) for epoch, _ in path[1:])
        raise UserError(
            f"{trial_name} of {run.name} went on from other trials' weights, at epoch {exploits}, "
            f"which are gone; name a confirmation trial of {record['arm']}: it trains along the "
            "same settings from its own start"
        )
    spec = search.TrialSpec(
        trial_name, record["arm"], record["stage"], record["seed"], record["overrides"], path
    )
    return spec.config_schedule(run.experiment()), record["history"]


def _check(name: str, run: storage.Run, experiment: Experiment, fingerprint: str) -> None:
    """Raise UserError with the first reason for which a comparison would say nothing."""
    reason = _difference_of_origin(run, experiment, fingerprint)
    reason = reason or _nondeterminism(run, experiment)
    if reason:
        raise UserError(f"whether {name} reproduces cannot be told: {reason}")


def _difference_of_origin(run: storage.Run, experiment: Experiment, fingerprint: str) -> str:
    """Return which of data, code and torch differs from the run's, and what to do; "" for none."""
    state = run.state
    made_with = state["data"]["fingerprint"]
    if made_with != fingerprint:
        return (
            f"it was made with data {made_with}, but {experiment.data.train} now holds "
            f"{fingerprint}; restore those data"
        )
    code = code_version()
    made_by = state.get("code_version") or (code if _is_named_by_this_code(run) else "unrecorded")
    if made_by != code:
        return (
            f"it was made by code version {made_by} (commit {state.get('git_sha', 'unknown')}), "
            f"here is {code}; check that commit out"
        )
    torch_then = (state.get("versions") or {}).get("torch", "unrecorded")
    torch_now = version("torch")
    if torch_then != torch_now:
        return f"it was made with torch {torch_then}, here is {torch_now}; install that version"
    return ""


def _nondeterminism(run: storage.Run, experiment: Experiment) -> str:
    """Return why training here could not give the same bits, and what to do; "" for nothing."""
    if experiment.resources.gpus_per_worker:
        return (
            "it ran on a GPU, where sums are added in no fixed order; repeat it on one and use "
            "`compare` over several seeds"
        )
    if experiment.resources.workers > 1:
        return (
            f"it ran on {experiment.resources.workers} workers, which add gradients in another "
            "order than one; repeat it by `train --fresh`"
        )
    if (init := run.state.get("init")) and not Path(init).exists():
        return f"it started from {init}, which is gone; put those weights back"
    return ""


def other_processors(name: str, processors: list[str]) -> str:
    """Return a note that a run was made on other processors than this machine's; "" if not.

    Args:
        name: The name of the run.
        processors: As the run recorded them; older runs have none.
    """
    here = utils.processor()
    others = [processor for processor in processors if processor != here]
    if not others:
        return ""
    return (
        f"note: {name} was made on {' and '.join(others)}, here is {here}; another processor may "
        "round otherwise, and then metrics differ"
    )


def _is_named_by_this_code(run: storage.Run) -> bool:
    """Return whether the run's name carries the hash of its settings, data and this code."""
    return run.name.startswith(run.experiment().run_name(run.state["data"]["fingerprint"]))


def _free_folder(folder: Path) -> Path:
    """Return the folder, or the first of folder-2, folder-3 ... that does not exist."""
    number = 1
    free = folder
    while free.exists():
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free


def _train_again(
    schedule: Schedule,
    sources: data.Sources,
    blocks: training.BlockSource,
    folder: Path,
    epochs: int,
    context: training.RunContext,
) -> list[dict]:
    """Train as an in-process trial does, on shards decoded here.

    Args:
        schedule: The settings and the epochs up to which they hold.
        sources: The shards.
        blocks: Returns the decoded blocks.
        folder: The folder to train in.
        epochs: The number of epochs to train.
        context: The device, and the checkpoint to start from.

    Returns:
        The metrics of each epoch.
    """
    import torch

    found: list[dict] = []

    def report(metrics: dict) -> None:
        found.append(utils.without_nan(metrics))
        logger.info(f"epoch {metrics['epoch']}/{epochs}  mIoU {metrics['val/mIoU']:.4f}")
        if len(found) == epochs:
            raise _LastEpochReached

    threads = torch.get_num_threads()
    # The number of threads decides the order of sums.
    torch.set_num_threads(max(1, int(schedule[0][0].resources.cpus_per_worker)))
    try:
        for experiment, end in schedule:
            part = replace(context, stop_epoch=end)
            words = sources.words()
            training.run_training(experiment, blocks, words, folder, report, part)
    except _LastEpochReached:
        pass
    finally:
        torch.set_num_threads(threads)
    return found


def differences(was: list[dict], found: list[dict]) -> tuple[int, list[dict]]:
    """Compare metrics bit for bit.

    Args:
        was: The metrics of each epoch of the original.
        found: The same of the repetition, as many.

    Returns:
        The number of values compared, and those that differ, in the order of epochs.
    """
    count = 0
    differ = []
    for before, after in zip(was, found, strict=True):
        keys = before.keys() | after.keys()
        for key in sorted(key for key in keys if key.split("/")[0] not in NOT_COMPARED):
            count += 1
            values = {"was": before.get(key), "is": after.get(key)}
            if values["was"] != values["is"]:
                differ.append({"epoch": before["epoch"], "metric": key, **values})
    return count, differ


def result_text(name: str, epochs: int, values: int, differ: list[dict]) -> str:
    """Return the result of a comparison in a sentence.

    Args:
        name: The name of the run.
        epochs: The number of epochs compared.
        values: The number of values compared.
        differ: The values that differ.
    """
    if not differ:
        return f"{name} reproduces: all {values} metrics of {epochs} epochs agree bit for bit"
    first = differ[0]
    gaps = [
        abs(d["was"] - d["is"])
        for d in differ
        if all(isinstance(d[k], (int, float)) and math.isfinite(d[k]) for k in ("was", "is"))
    ]
    largest = f", the largest gap {max(gaps):.3g}" if gaps else ""
    return (
        f"{name} does not reproduce: {len(differ)} of {values} metrics of {epochs} epochs differ"
        f"{largest}; the first is {first['metric']} of epoch {first['epoch']}, {first['was']} then "
        f"and {first['is']} now. Data, code, torch and seed are the same: another kind of "
        "processor, another build of a library, or a training that was started from other weights "
        "may be why"
    )
