"""The end of a sweep: champion, baselines, robustness, cost and report."""

import logging
import time
from dataclasses import dataclass
from pathlib import Path

from aml.data import Items
from aml.errors import NotSaved, RunError
from aml.training import counted_epochs
from orchestrator import evaluation, reporting, search, storage
from orchestrator.config import Experiment, Objective
from orchestrator.data import ObjectStoreBlocks, StreamingBlocks
from orchestrator.sweep.ledger import SWEEP_KEY
from orchestrator.sweep.summary import sweep_summary
from orchestrator.tracking import TrackerBase

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FinishedSweep:
    """A sweep whose trials have ended."""

    run: storage.Run
    experiment: Experiment
    tracker: TrackerBase
    records: list[dict]
    """Ledger records of its trials, in the order of their end."""
    best_configs: dict[str, dict | None]
    """By arm, the overrides of its best setting; None where no trial has a value."""
    num_configs_tried: dict[str, int]
    """By arm, the number of settings searched."""


def finish_sweep(
    sweep: FinishedSweep,
    shared: ObjectStoreBlocks | StreamingBlocks,
    val_store: storage.Filesystem,
) -> int:
    """Choose the champion, write baselines, robustness, cost and report, and log a summary.

    Args:
        sweep: The sweep.
        shared: The decoded data.
        val_store: The shards that validate.

    Returns:
        The exit code: 0 where at least one trial of each arm finished.
    """
    run = sweep.run
    ended = time.time()
    settings = sweep.experiment.search
    finished_arms = {r["arm"] for r in sweep.records if r["state"] != "failed"}
    missing_arms = [arm for arm in settings.arms if arm not in finished_arms]
    select = sweep.experiment.evaluate.select
    # The champion of a search by a score under corruption follows from the confirmed checkpoints'.
    robustness = _robustness(sweep, val_store) if finished_arms else None
    run.update(robustness=robustness)  # what follows may fail
    records = reporting.add_robustness(sweep.records, {"robustness": robustness})
    best = find_champion(records, settings.objective, select)
    if best is None:
        run.update(
            state="failed",
            ended=time.time(),
            settings_tried=sweep.num_configs_tried,
            error=sweep.records[0]["error"] if sweep.records else "no trial ran",
        )
        logger.info(f"{run.name} failed: no trial finished; the first error: {run.state['error']}")
        return 1
    folder = sweep.experiment.evaluate.checkpoint("last")
    champion = {
        "trial": best["trial"],
        "arm": best["arm"],
        "checkpoint": f"trials/{best['trial']}/{folder}",
        "epoch": counted_epochs(best["history"], select)[-1]["epoch"],
        "select": select or "last",
    }
    # An earlier end of this sweep may have measured the same champion.
    before = run.state.get("champion") or {}
    is_known = all(before.get(key) == champion[key] for key in ("trial", "checkpoint"))
    baselines = run.state.get("baselines") if is_known else None
    checkpoint = _champion_checkpoint(run, best, folder, needed=not baselines)
    if checkpoint and not baselines:
        baselines = _baselines(sweep.experiment, checkpoint, shared)
    configs = {arm: config for arm, config in sweep.best_configs.items() if config is not None}
    run.update(
        state="failed" if missing_arms else "done",
        concluded=False,
        ended=ended,
        settings_tried=sweep.num_configs_tried,
        champion=champion,
        baselines=baselines,
        cost=search.flops_ratios(sweep.experiment, configs),
    )
    _track(sweep, best, checkpoint)
    run.update(concluded=True)
    if missing_arms:
        logger.info(sweep_summary(run))
        logger.info(f"no trial of {', '.join(missing_arms)} finished: the comparison is not whole")
    return 1 if missing_arms else 0


def _champion_checkpoint(run: storage.Run, best: dict, folder: str, *, needed: bool) -> Path | None:
    """Return the folder of the champion's checkpoint, downloaded where it is in a bucket.

    Args:
        run: The sweep.
        best: The champion's ledger record.
        folder: The checkpoint that counts, "last" or "best".
        needed: Whether a checkpoint that is lost is an error; else it is None, with a message.
    """
    checkpoint = run.folder / "trials" / best["trial"] / folder
    problem = storage.try_download(checkpoint.parent, wanted=storage.weights_only)
    if not checkpoint.exists() and not needed:
        logger.info(
            f"note: the checkpoint of {best['trial']}, the champion, is not on this machine; what "
            "was measured of it stays"
        )
        return None
    if problem and not checkpoint.exists():
        raise RunError(
            f"{problem}, and the champion's checkpoint is not on this machine; the same command "
            "goes on from here when the bucket answers"
        )
    if not checkpoint.exists():
        raise RunError(
            f"the checkpoint of {best['trial']}, the champion, is not in {checkpoint.parent}; "
            "bring it back, or the machine that held it before it reached the bucket, and give the "
            "same command again, or start another with --fresh"
        )
    return checkpoint


def _baselines(
    experiment: Experiment, checkpoint: Path, shared: ObjectStoreBlocks | StreamingBlocks
) -> dict:
    """Return the scores of the champion and of the baselines on the validation split."""
    data = experiment.data
    val = Items(
        shared.open(),
        data.val_split,
        size=data.size,
        fit=data.fit,
        unit="sentence",
        limit=data.val_limit,
    )
    return evaluation.score_baselines(
        checkpoint, val, batch=experiment.evaluate.batch, seed=experiment.seed
    )


def _robustness(sweep: FinishedSweep, val_store: storage.Filesystem) -> dict | None:
    """Return the scores of every confirmed checkpoint under the corruptions of evaluate.corrupt.

    Scores that an earlier attempt measured are kept. A checkpoint that is lost is left out, with a
    message.

    Returns:
        {"split", "n" (sentences), "limit", "conditions": ["fog:3", ...], "seconds",
        "trials": {trial: {"clean:0": {"mIoU", ...}, "fog:3": ...}}}; None where evaluate.corrupt
        names none.
    """
    run, settings = sweep.run, sweep.experiment.evaluate
    before = run.state.get("robustness")
    if not settings.conditions:
        return before
    names = [f"{name}:{severity}" for name, severity in settings.conditions]
    known = (before or {}).get("trials") or {}
    done = [r for r in sweep.records if r["stage"] == "confirm" and r["state"] == "done"]
    unscored = [r["trial"] for r in done if not set(names) <= known.get(r["trial"], {}).keys()]
    checkpoints = _confirmed_checkpoints(run, unscored, settings.checkpoint("last"))
    start = time.monotonic()
    found: dict[str, dict[str, dict]] = {}
    if checkpoints:
        logger.info(
            f"scoring {len(checkpoints)} confirmed checkpoints on the clean pictures and under "
            f"{len(names)} corruption{'s' * (len(names) > 1)}: {', '.join(names)}"
        )
        found = evaluation.score_conditions(
            checkpoints,
            val_store,
            sweep.experiment.data.val_split,
            settings.conditions,
            limit=sweep.experiment.data.val_limit,
        )
    trials = {trial: known.get(trial, {}) | found.get(trial, {}) for trial in known | found}
    measured = [set(scores) for scores in trials.values()]
    conditions = [
        name
        for name in dict.fromkeys([*((before or {}).get("conditions") or ()), *names])
        if all(name in scores for scores in measured)
    ]
    return {
        "split": sweep.experiment.data.val_split,
        "n": next((scores["clean:0"]["n"] for scores in trials.values()), 0),
        "limit": sweep.experiment.data.val_limit,
        "conditions": conditions,
        "seconds": round(time.monotonic() - start, 1),
        "trials": trials,
    }


def _confirmed_checkpoints(run: storage.Run, trials: list[str], name: str) -> dict[str, Path]:
    """Return the checkpoint folders of some trials, downloaded where they are in a bucket.

    Args:
        run: The sweep's run.
        trials: Names of trials.
        name: The checkpoint that counts, "last" or "best".
    """
    checkpoints = {trial: run.folder / "trials" / trial / name for trial in trials}
    for folder in checkpoints.values():
        storage.try_download(folder.parent, wanted=storage.weights_only)
    if lost := [trial for trial, folder in checkpoints.items() if not folder.exists()]:
        logger.info(
            f"note: the checkpoints of {', '.join(lost)} are not on this machine, so they are not "
            "scored under corruption"
        )
    return {trial: folder for trial, folder in checkpoints.items() if folder.exists()}


def _track(sweep: FinishedSweep, best: dict, checkpoint: Path | None) -> None:
    """Write the report and give MLflow the report, the last metrics and the champion's model."""
    run = sweep.run
    tracker = sweep.tracker
    tracker.flush(10 if tracker.problem else 60)  # the ids of all trials are known then
    children = tracker.children(SWEEP_KEY)
    run.update(mlflow=tracker.record(SWEEP_KEY) | {"children": children})
    try:
        search.write_studies(run.folder, sweep.experiment, sweep.records)
    except (ValueError, OSError, NotSaved) as error:
        logger.info(f"note: no {search.STUDIES} for Optuna's dashboard ({error})")
    page = reporting.write_report(run.folder)
    tracker.artifact(SWEEP_KEY, page.parent, "report")
    last_epoch = counted_epochs(best["history"], sweep.experiment.evaluate.select)[-1]
    metrics = {k: v for k, v in last_epoch.items() if k.startswith("val/") and v is not None}
    baselines = {
        f"baseline/{name}": scores["mIoU"]
        for name, scores in run.state["baselines"].items()
        if name != "n"
    }
    robust = {}
    for record in reporting.add_robustness(sweep.records, run.state):
        scores = record["history"][-1].items() if record["history"] else ()
        measured = {k: v for k, v in scores if k.startswith(reporting.PREFIX)}
        tracker.metrics(record["trial"], record["epochs"], measured)
        if record["trial"] == best["trial"]:
            robust = measured
    tracker.metrics(SWEEP_KEY, best["epochs"], metrics | baselines | robust)
    if checkpoint:
        tracker.model(SWEEP_KEY, checkpoint, sweep.experiment.name, metrics)


def find_champion(
    records: list[dict], objective: Objective, select: str | None = None
) -> dict | None:
    """Return the champion's ledger record; None where no trial has a value.

    It is the best confirmation trial at the epoch that counts, however many epochs its arm trains.
    Without a confirmation it is the best of the trials that trained longest.

    Args:
        records: Ledger records, with their scores under corruption.
        objective: The metric that trials are judged by, of several the first.
        select: The setting evaluate.select.
    """
    metric = objective.metric

    def value(record: dict) -> float | None:
        # A score under corruption is of the checkpoint that counts, and stands at the end.
        epochs = record["history"]
        if not metric.startswith(reporting.PREFIX):
            epochs = counted_epochs(epochs, select)
        return epochs[-1].get(metric)

    def score(record: dict) -> float:
        found = value(record)
        assert found is not None  # as of all usable ones
        return objective.gain(found)

    usable = [
        r for r in records if r["state"] != "failed" and r["history"] and value(r) is not None
    ]
    if confirmed := [r for r in usable if r["stage"] == "confirm" and r["state"] == "done"]:
        return max(confirmed, key=score)
    return max(usable, key=lambda record: (record["epochs"], score(record)), default=None)
