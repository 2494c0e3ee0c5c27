"""Ray Train around the loop: one run on one or many workers, resumed by the same command."""

import time
from pathlib import Path

from aml.errors import RunError
from orchestrator import cluster, data, storage, tracking, utils
from orchestrator.config import Experiment
from orchestrator.data import StreamingBlocks, pin_blocks
from orchestrator.storage import read_history, storage_root
from orchestrator.training import loop
from orchestrator.training.epochs import EpochListener
from orchestrator.training.trainer import _save, end_after_epoch, failure_of, make_trainer


def train(
    experiment: Experiment,
    *,
    resume: str | None = None,
    fresh: bool = False,
    init: Path | None = None,
    dry_run: bool = False,
    say=print,
) -> int:
    """Train one model to the end.   -> exit code"""
    from orchestrator.training.checks import check_run, setting_warnings

    if resume:
        experiment = storage.find_run(storage_root(experiment.storage.root), resume).experiment(
            experiment.tracking
        )
    check_run(experiment)
    found = data.check_sources(
        experiment.data, storage_root(experiment.storage.root)
    )  # refuse before Ray starts
    for text in setting_warnings(experiment, [experiment.aml.arm]):
        say(f"note: {text}")
    nodes = cluster.planned_nodes()
    placement = cluster.plan_placement(experiment, nodes, sweep=False)
    if text := cluster.idle_gpus(experiment, nodes, sweep=False):
        say(f"note: {text}")
    if dry_run:
        say(placement.arithmetic.replace("a trial", "the run"))
        say(f"{experiment.train.epochs} epochs of {experiment.aml.arm}; nothing was started")
        return 0
    if not found:
        cluster.init_ray()  # its tasks make the data
    used = data.prepare_sources(experiment.data, storage_root(experiment.storage.root), say)
    this = (
        storage.start_run(experiment, "train", used.manifest, fresh=fresh)
        if not resume
        else storage.find_run(storage_root(experiment.storage.root), resume)
    )
    with this.locked(say):
        if this.finished:
            say(f"{this.name} has finished: {summary(this.state)} (--fresh starts another)")
            tracking.deliver_tracking(this, experiment, say)
            return 0
        cluster.init_ray()
        cluster.plan_placement(
            experiment, cluster.cluster_nodes(), sweep=False
        )  # Ray may find less than this machine has
        say(f"{'continuing' if this.state else 'starting'} {this.name} in {this.folder}")
        storage.begin_run(this, experiment, used.manifest, used.uri)
        this.update(init=str(init) if init else this.state.get("init"))
        return _fit(this, experiment, used, init, say)


def _fit(this: storage.Run, experiment: Experiment, used: data.Sources, init, say) -> int:
    from ray.train import TrainingFailedError

    stop = this.folder / loop.STOP
    stop.unlink(missing_ok=True)
    for problem in storage.upload_from_every_node(this.folder):
        say(f"note: {problem}")
    storage.download(this.folder, wanted=storage.without_checkpoints)
    storage.request_stop(this.folder, False)
    tracker, key = (
        tracking.open_tracker(this, experiment),
        "train",
    )  # once nothing is in the way: a run that is opened is to be ended
    tracker.run(key, this.name, params=experiment.params(), tags=_tags(this, experiment))
    tracking.log_dataset(tracker, key, this, experiment)
    epochs = EpochListener(this, experiment, tracker, key, say)
    code = 1
    try:
        shared = used.decode(windowed=this.state.get("windowed"), say=say)
        this.update(windowed=isinstance(shared, StreamingBlocks))
        trainer = make_trainer(experiment, shared, used.words(), this.folder, init=init)
        with utils.restored_handlers(), pin_blocks(shared):
            end_after_epoch(trainer, stop)
            utils.save_on_terminate(
                lambda: _save(this, experiment, say), experiment.resources.grace_s
            )
            epochs.sign = time.monotonic()
            trainer.fit()
        epochs.close()
        if failed := failure_of(this.folder):
            this.update(state="failed", ended=time.time(), error=failed)
            say(f"{this.name} failed: {failed}")
        elif stop.exists() and epochs.heard < experiment.train.epochs:
            raise KeyboardInterrupt
        else:
            _finish(this, experiment, tracker, key, say)
            code = 0
    except TrainingFailedError as error:
        epochs.close()
        failed = (
            failure_of(this.folder)
            or f"{utils.failure(error)}; the same command continues it after epoch {epochs.heard}"
        )
        this.update(state="failed", ended=time.time(), error=failed)
        say(f"{this.name} failed: {failed}")
    except (KeyboardInterrupt, SystemExit):  # Ray Train turns an interrupt into SystemExit
        this.update(state="interrupted", ended=time.time())
        say(f"{this.name} interrupted after epoch {epochs.heard}; the same command continues it")
        code = 130
    except BaseException as error:
        this.update(state="failed", ended=time.time(), error=utils.failure(error))
        raise
    finally:
        epochs.close()
        stop.unlink(missing_ok=True)
        storage.request_stop(this.folder, False)
        tracker.end(
            key,
            {0: "FINISHED", 130: "KILLED"}.get(code, "FAILED"),
            tags={"stopped_by": {0: "", 130: "interrupt"}.get(code, "error")},
        )
        if remaining := tracker.close():
            say(remaining)
    return code


def _finish(this, experiment, tracker, key, say) -> None:
    from orchestrator import reporting

    problem = storage.try_download(this.folder, wanted=storage.weights_only)
    if problem and not (this.folder / "best").exists():
        raise RunError(
            f"{problem}, and the checkpoint is not on this machine; the same command goes on from here when the bucket answers"
        )
    history = read_history(this.folder)
    tau, rho = experiment.aml.coordinates
    this.update(
        state="done",
        concluded=False,
        ended=time.time(),
        history=history,
        arm=experiment.aml.arm,
        tau=tau,
        rho=rho,
        seed=experiment.seed,
        champion={"checkpoint": "best"},
    )
    page = reporting.write_report(this.folder)
    for picture in sorted((this.folder / "pictures").glob("*.png"))[-1:]:
        tracker.artifact(key, picture, "pictures")
    tracker.artifact(key, page, "report")
    tracker.artifact(key, this.folder / "config.yaml")
    tracker.model(key, this.folder / "best", experiment.name)  # its metrics are on the run already
    this.update(concluded=True)
    say(f"{this.name}: {summary(this.state)}")
    say(f"report      {page}\ncheckpoint  {this.folder / 'best'}")


def summary(state: dict) -> str:
    last, best = state["history"][-1], max(epoch["val/mIoU"] for epoch in state["history"])
    return f"epoch {last['epoch']}, val mIoU {last['val/mIoU']:.3f} (best {best:.3f}), oIoU {last['val/oIoU']:.3f} on {last['val/n']:.0f} sentences"


def _tags(this: storage.Run, experiment: Experiment) -> dict:
    return {
        "arm": experiment.aml.arm,
        "seed": experiment.seed,
        "stage": "train",
        "git_sha": this.state["git_sha"],
        "git_dirty": this.state["git_dirty"],
        "data_fingerprint": this.state["data"]["fingerprint"],
    }
