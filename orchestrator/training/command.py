"""The `train` command: one run on one or many Ray Train workers, resumed by the same command."""

import logging
import time
from pathlib import Path

from aml.errors import RunError
from aml.training import check_weights
from orchestrator import cluster, data, storage, tracking, utils
from orchestrator.config import Experiment, check_run, setting_warnings
from orchestrator.data import StreamingBlocks, pin_blocks
from orchestrator.storage import read_history, storage_root
from orchestrator.tracking import TrackerBase
from orchestrator.training import loop
from orchestrator.training.epochs import EpochListener
from orchestrator.training.trainer import (
    end_after_epoch,
    failure_of,
    make_trainer,
    save_before_exit,
)

logger = logging.getLogger(__name__)

RUN_KEY = "train"
"""The tracker's key of the run."""


def train(
    experiment: Experiment,
    *,
    resume: str | None = None,
    fresh: bool = False,
    init: Path | None = None,
    dry_run: bool = False,
) -> int:
    """Train one model to the end.

    Args:
        experiment: The settings of the run.
        resume: The name of a run to continue with the settings it was started with.
        fresh: Start another run although one of the same settings and data exists.
        init: A checkpoint whose weights a new run starts from.
        dry_run: Log placement and length, and start nothing.

    Returns:
        The exit code: 0 done, 1 failed, 130 interrupted.
    """
    root = storage_root(experiment.storage.root)
    if resume:
        experiment = storage.find_run(root, resume).experiment(experiment.tracking)
        root = storage_root(experiment.storage.root)
    check_run(experiment)
    found = data.check_sources(experiment.data, root)  # refuse before Ray starts
    for text in setting_warnings(experiment, [experiment.aml.arm]):
        logger.info(f"note: {text}")
    if init is not None and init.is_dir():
        check_weights(init)
    nodes = cluster.planned_nodes()
    placement = cluster.plan_placement(experiment, nodes, sweep=False)
    if text := cluster.idle_gpus(experiment, nodes, sweep=False):
        logger.info(f"note: {text}")
    if dry_run:
        logger.info(placement.explanation.replace("a trial", "the run"))
        logger.info(
            f"{experiment.train.epochs} epochs of {experiment.aml.arm}; nothing was started"
        )
        return 0
    storage.check_root(root)
    tracking.check_store(experiment.tracking.uri, root)
    if not found:
        cluster.init_ray()  # Ray tasks make the data
    sources = data.prepare_sources(experiment.data, root)
    if resume:
        run = storage.find_run(root, resume)
    else:
        run = storage.start_run(experiment, "train", sources.manifest, fresh=fresh)
    with run.locked():
        if run.finished:
            logger.info(f"{run.name} has finished: {summary(run)} (--fresh starts another)")
            tracking.deliver_tracking(run, experiment)
            return 0
        cluster.init_ray()
        cluster.check_shared_folder(run.folder)
        # Once more with what Ray found, which may be less than this machine has.
        cluster.plan_placement(experiment, cluster.cluster_nodes(), sweep=False)
        logger.info(f"{'continuing' if run.state else 'starting'} {run.name} in {run.folder}")
        scored = data.scored_sentences(experiment.data, sources.manifest)
        utils.progress_logger.info(f"scores: mIoU and oIoU on {scored}")
        storage.begin_run(run, experiment, sources.manifest, sources.uri)
        run.update(init=str(init) if init else run.state.get("init"))
        return _fit(run, experiment, sources, init)


def _fit(run: storage.Run, experiment: Experiment, sources: data.Sources, init: Path | None) -> int:
    """Train, then write the report. The run and its MLflow run are left in a final state."""
    from ray.train import TrainingFailedError

    stop = run.folder / loop.STOP
    _clear_requests(run, stop)
    # Opened only now that nothing is in the way: an opened run must be ended.
    tracker = tracking.open_tracker(run, experiment)
    tags = _tags(run, experiment)
    params = experiment.params()
    tracker.run(RUN_KEY, run.name, params=params, tags=tags, watch_machine=True)
    tracking.log_dataset(tracker, RUN_KEY, run, experiment)
    listener = EpochListener(run, experiment, tracker, RUN_KEY)
    listener.start()
    code = 1
    try:
        _run_trainer(run, experiment, sources, init, listener)
        listener.close()
        if failed := failure_of(run.folder):
            _fail(run, failed)
        elif stop.exists() and listener.last_epoch < experiment.train.epochs:
            raise KeyboardInterrupt
        else:
            _finish(run, experiment, tracker)
            code = 0
    except TrainingFailedError as error:
        listener.close()
        after = f"the same command continues it after epoch {listener.last_epoch}"
        _fail(run, failure_of(run.folder) or f"{utils.failure(error)}; {after}")
    except (KeyboardInterrupt, SystemExit):  # Ray Train turns an interrupt into SystemExit
        run.update(state="interrupted", ended=time.time())
        logger.info(
            f"{run.name} interrupted after epoch {listener.last_epoch}; "
            "the same command continues it"
        )
        code = 130
    except BaseException as error:
        run.update(state="failed", ended=time.time(), error=utils.failure(error))
        raise
    finally:
        listener.close()
        stop.unlink(missing_ok=True)
        storage.request_stop(run.folder, False)
        _end_tracking(tracker, run, code)
    return code


def _clear_requests(run: storage.Run, stop: Path) -> None:
    """Remove an earlier attempt's request to stop, and download what it left in the bucket."""
    stop.unlink(missing_ok=True)
    for problem in storage.upload_from_every_node(run.folder):
        logger.info(f"note: {problem}")
    storage.download(run.folder, wanted=storage.without_checkpoints)
    storage.request_stop(run.folder, False)


def _run_trainer(
    run: storage.Run,
    experiment: Experiment,
    sources: data.Sources,
    init: Path | None,
    listener: EpochListener,
) -> None:
    shared = sources.decode(windowed=run.state.get("windowed"))
    run.update(windowed=isinstance(shared, StreamingBlocks))
    trainer = make_trainer(experiment, shared, sources.words(), run.folder, init=init)
    with utils.restored_handlers(), pin_blocks(shared):
        end_after_epoch(trainer, run.folder / loop.STOP)
        seconds = experiment.resources.grace_s
        utils.save_on_terminate(lambda: save_before_exit(run, experiment), seconds)
        listener.last_report_time = time.monotonic()
        trainer.fit()


def _fail(run: storage.Run, error: str) -> None:
    run.update(state="failed", ended=time.time(), error=error)
    logger.info(f"{run.name} failed: {error}")


def _end_tracking(tracker: TrackerBase, run: storage.Run, code: int) -> None:
    stopped_by = {0: tracking.COMPLETED, 130: "interrupt"}.get(code, "error")
    status = {0: "FINISHED", 130: "KILLED"}.get(code, "FAILED")
    tags = {"stopped_by": stopped_by}
    if code == 0:
        tags["mlflow.note.content"] = summary(run)
    tracker.end(RUN_KEY, status, tags=tags)
    if remaining := tracker.close():
        logger.info(remaining)


def _finish(run: storage.Run, experiment: Experiment, tracker: TrackerBase) -> None:
    """Write the state and the report of a trained run, and register its best checkpoint."""
    from orchestrator import reporting

    problem = storage.try_download(run.folder, wanted=storage.weights_only)
    name = experiment.evaluate.checkpoint("best")
    best = run.folder / name
    if problem and not best.exists():
        raise RunError(
            f"{problem}, and the checkpoint is not on this machine; the same command goes on from "
            "here when the bucket answers"
        )
    tau, rho = experiment.aml.coordinates
    run.update(
        state="done",
        concluded=False,
        ended=time.time(),
        history=read_history(run.folder),
        arm=experiment.aml.arm,
        tau=tau,
        rho=rho,
        seed=experiment.seed,
        champion={"checkpoint": name},
    )
    page = reporting.write_report(run.folder)
    for picture in sorted((run.folder / "pictures").glob("*.png"))[-1:]:
        tracker.artifact(RUN_KEY, picture, "pictures")
    tracker.artifact(RUN_KEY, page, "report")
    tracker.artifact(RUN_KEY, run.folder / "config.yaml")
    tracker.model(RUN_KEY, best, experiment.name)  # the run has the metrics already
    run.update(concluded=True)
    logger.info(f"{run.name}: {summary(run)}")
    logger.info(f"report      {page}\ncheckpoint  {best}")


def summary(run: storage.Run) -> str:
    """Return the result of a finished run in a line."""
    history = run.state["history"]
    last = history[-1]
    best = max(epoch["val/mIoU"] for epoch in history)
    scored = data.scored_sentences(run.experiment().data, run.state["data"])
    return (
        f"epoch {last['epoch']}: mIoU {last['val/mIoU']:.1%} (best {best:.1%}), "
        f"oIoU {last['val/oIoU']:.1%} on {scored}"
    )


def _tags(run: storage.Run, experiment: Experiment) -> dict:
    return {
        "arm": experiment.aml.arm,
        "seed": experiment.seed,
        "stage": "train",
        **tracking.run_tags(run),
    }
