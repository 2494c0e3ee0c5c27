"""Ray Train around the loop: one run on one or many workers, resumed by the same command."""

import contextlib
import json
import math
import threading
import time
from pathlib import Path

from aml.errors import NonFinite, NotSaved, RunError, Unreachable, UserError
from aml.learner import vacuous_mask
from orchestrator import cluster, delivery, interrupts, mirror, runs, sources, trial
from orchestrator.config import Experiment, from_dict
from orchestrator.decoded import Shared, Windowed, held
from orchestrator.trial import read_history

WAITING_S = 60.0
"""Without workers for so long, a run says what it waits for."""

RESIZE_S = 30.0
"""Between two looks of an elastic run at whether more workers would fit; what they start again from is no older than an epoch or a save."""

FAILED = "failed.json"
"""In the run folder: what is reported of a failure that a restart would only repeat."""

# ---- inside a worker ------------------------------------------------------------------------------------------------


def worker_loop(config: dict) -> None:
    """Ray Train's train_loop_per_worker: the same loop, reported through ray.train."""
    import ray.train
    import ray.train.torch
    import torch

    experiment = from_dict(config["experiment"])
    world, device = ray.train.get_context().get_world_size(), ray.train.torch.get_device()
    torch.set_num_threads(max(1, int(experiment.resources.cpus_per_worker)))
    trial.keep_to_share(experiment.resources.gpus_per_worker, device)

    def wrap(model):
        ids = [device] if device.type == "cuda" else None
        return torch.nn.parallel.DistributedDataParallel(model, device_ids=ids) if world > 1 else model

    first, folder = ray.train.get_context().get_world_rank() == 0, mirror.here(config["folder"])
    if first:
        cluster.keep_place(folder.name)
    outbox = trial.joined(folder, exact=world > 1)

    def deliver() -> None:
        if first:
            outbox.offer()
            outbox.settle()  # a restart may find its ranks on other machines, and all of them take what is in the bucket
            cluster.answer(folder.name)

    def report(metrics: dict) -> None:
        deliver()
        if first and delivery.asked_to_stop(folder):
            (folder / trial.STOP).touch()
        ray.train.report(trial.clean(metrics))

    if (folder / FAILED).exists():  # one rank failed and took the others with it
        return report(json.loads((folder / FAILED).read_text("utf-8")))
    init = config["init"] and mirror.here(config["init"])
    try:
        if init:
            delivery.pull(init.parent)
        how = {"device": device, "wrap": wrap, "init": init, "notice": cluster.notice(), "kept": deliver}
        trial.run(experiment, config["shared"].open, config["vocabulary"], folder, report, **how)
    except trial.FINAL as error:  # would happen again: no restart
        failed = trial.failed(error)
        with contextlib.suppress(NotSaved):
            trial.write_atomic(folder / FAILED, json.dumps(failed).encode())
        with contextlib.suppress(NotSaved):  # what failed is what is told
            deliver()
        if world > 1 and (isinstance(error, Unreachable) or not isinstance(error, (NonFinite, UserError))):
            raise  # of this rank alone: the others wait in a collective, which only the end of the group ends
        ray.train.report(failed)
    finally:
        outbox.leave()


def make_trainer(experiment: Experiment, shared: Shared | Windowed, vocabulary: list[str], folder: Path, *, callbacks=(), init=None):
    """A TorchTrainer over the run folder. Resuming is the loop's: it finds last/ there, so Ray's own run is new each time."""
    import ray.train
    from ray.train.torch import TorchTrainer

    (folder / FAILED).unlink(missing_ok=True)
    delivery.drop(folder, lambda name: name == FAILED)
    place, r = {"folder": mirror.portable(folder), "init": init and mirror.portable(init)}, experiment.resources
    return TorchTrainer(
        worker_loop,
        train_loop_config={"experiment": experiment.for_workers(), "shared": shared, "vocabulary": vocabulary, **place},
        scaling_config=ray.train.ScalingConfig(
            num_workers=(r.min_workers, r.workers) if r.elastic else r.workers,
            use_gpu=r.gpus_per_worker > 0,
            resources_per_worker=cluster.of_worker(r),
            elastic_resize_monitor_interval_s=RESIZE_S,
        ),
        run_config=ray.train.RunConfig(
            name=f"attempt-{time.time_ns()}",
            storage_path=str(folder / "ray"),
            failure_config=ray.train.FailureConfig(max_failures=r.max_failures),
            callbacks=list(callbacks),
        ),
    )


# ---- the driver -----------------------------------------------------------------------------------------------------


def run(experiment: Experiment, *, resume: str | None = None, fresh: bool = False, init: Path | None = None, dry_run: bool = False, say=print) -> int:
    """Train one model to the end.   -> exit code"""
    from orchestrator.plan import check_run, remarks

    if resume:
        experiment = runs.find(experiment.root, resume).experiment(experiment.tracking)
    check_run(experiment)
    found = sources.check(experiment.data, experiment.root)  # refuse before Ray starts
    for text in remarks(experiment, [experiment.aml.arm]):
        say(f"note: {text}")
    nodes = cluster.planned()
    placement = cluster.place(experiment, nodes, sweep=False)
    if text := cluster.idle_gpus(experiment, nodes, sweep=False):
        say(f"note: {text}")
    if dry_run:
        say(placement.arithmetic.replace("a trial", "the run"))
        say(f"{experiment.train.epochs} epochs of {experiment.aml.arm}; nothing was started")
        return 0
    if not found:
        cluster.start()  # its tasks make the data
    used = sources.prepare(experiment.data, experiment.root, say)
    this = runs.start(experiment, "train", used.manifest, fresh=fresh) if not resume else runs.find(experiment.root, resume)
    with this.locked(say):
        if this.finished:
            say(f"{this.name} has finished: {summary(this.state)} (--fresh starts another)")
            runs.deliver(this, experiment, say)
            return 0
        cluster.start()
        cluster.place(experiment, cluster.capacity(), sweep=False)  # Ray may find less than this machine has
        say(f"{'continuing' if this.state else 'starting'} {this.name} in {this.folder}")
        runs.begin(this, experiment, used.manifest, used.uri)
        this.update(init=str(init) if init else this.state.get("init"))
        return _fit(this, experiment, used, init, say)


def _fit(this: runs.Run, experiment: Experiment, used: sources.Sources, init, say) -> int:
    from ray.train import TrainingFailedError

    stop = this.folder / trial.STOP
    stop.unlink(missing_ok=True)
    for problem in delivery.deliver_everywhere(this.folder):
        say(f"note: {problem}")
    delivery.pull(this.folder, wanted=delivery.light)
    delivery.ask_to_stop(this.folder, False)
    tracker, key = runs.open_tracker(this, experiment), "train"  # once nothing is in the way: a run that is opened is to be ended
    tracker.run(key, this.name, params=experiment.params(), tags=_tags(this, experiment))
    runs.log_data(tracker, key, this, experiment)
    epochs = Epochs(this, experiment, tracker, key, say)
    code = 1
    try:
        shared = used.decode(windowed=this.state.get("windowed"), say=say)
        this.update(windowed=isinstance(shared, Windowed))
        trainer = make_trainer(experiment, shared, used.words(), this.folder, init=init)
        with interrupts.as_before(), held(shared):
            end_after_epoch(trainer, stop)
            interrupts.saved(lambda: _save(this, experiment, say), experiment.resources.grace_s)
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
        failed = failure_of(this.folder) or f"{trial.failure(error)}; the same command continues it after epoch {epochs.heard}"
        this.update(state="failed", ended=time.time(), error=failed)
        say(f"{this.name} failed: {failed}")
    except (KeyboardInterrupt, SystemExit):  # Ray Train turns an interrupt into SystemExit
        this.update(state="interrupted", ended=time.time())
        say(f"{this.name} interrupted after epoch {epochs.heard}; the same command continues it")
        code = 130
    except BaseException as error:
        this.update(state="failed", ended=time.time(), error=trial.failure(error))
        raise
    finally:
        epochs.close()
        stop.unlink(missing_ok=True)
        delivery.ask_to_stop(this.folder, False)
        tracker.end(key, {0: "FINISHED", 130: "KILLED"}.get(code, "FAILED"), tags={"stopped_by": {0: "", 130: "interrupt"}.get(code, "error")})
        if remaining := tracker.close():
            say(remaining)
    return code


def _save(this: runs.Run, experiment: Experiment, say) -> None:
    """What is under way is saved where it stands, before the command ends."""
    seconds = experiment.resources.grace_s
    say(interrupts.ENDING.format(seconds))
    cluster.have_saved(lambda: {this.folder.name}, seconds)


def end_after_epoch(trainer, stop: Path) -> None:
    """Ray Train aborts at the first interruption: before it does, `stop` asks the workers to end by themselves."""
    theirs = trainer._register_sigint_handler

    def register(controller) -> None:
        theirs(controller)
        interrupts.first(stop.touch)

    trainer._register_sigint_handler = register


def failure_of(folder: Path) -> str:
    """The sentence of a failure that a restart would only repeat, or nothing."""
    path = folder / FAILED
    return json.loads(path.read_text("utf-8"))["failed"] if path.exists() else ""


def _finish(this, experiment, tracker, key, say) -> None:
    from orchestrator import report

    problem = delivery.try_pull(this.folder, wanted=delivery.weights)
    if problem and not (this.folder / "best").exists():
        raise RunError(f"{problem}, and the checkpoint is not on this machine; the same command goes on from here when the bucket answers")
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
    page = report.write(this.folder)
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


def _tags(this: runs.Run, experiment: Experiment) -> dict:
    return {
        "arm": experiment.aml.arm,
        "seed": experiment.seed,
        "stage": "train",
        "git_sha": this.state["git_sha"],
        "git_dirty": this.state["git_dirty"],
        "data_fingerprint": this.state["data"]["fingerprint"],
    }


class Epochs:
    """The driver's ear while fit() blocks: rank 0 keeps `epochs.jsonl`, and what is new in it is said and logged."""

    EVERY_S = 0.5
    BUCKET_EVERY = 6
    """Looks between two at the bucket."""

    def __init__(self, this: runs.Run, experiment: Experiment, tracker, key: str, say):
        self.folder, self.experiment, self.tracker, self.key, self.say = this.folder, experiment, tracker, key, say
        self.heard = 0
        for metrics in read_history(self.folder):  # an earlier attempt said these, but may have died before MLflow had them
            self.tracker.epoch(key, metrics)
            self.heard = metrics["epoch"]
        self.noted, self.stopping = len(trial.read_notes(self.folder)), False
        self.sign = math.inf
        """time.monotonic() of the last epoch, or of when its workers were asked for; infinite: not yet."""
        self.without: float | None = None
        """time.monotonic() of when the run was first seen without workers."""
        self.closing = threading.Event()
        self.thread = threading.Thread(target=self._listen, name="epochs", daemon=True)
        self.thread.start()

    def close(self) -> None:
        """Hear what is left."""
        self.closing.set()
        self.thread.join()

    def _listen(self) -> None:
        over, looks = False, 0
        while not over:
            over = self.closing.wait(self.EVERY_S)  # set: one last look
            looks += 1
            if over or looks % self.BUCKET_EVERY == 0:
                delivery.try_pull(self.folder, wanted=delivery.light, wait=False)
            if not self.stopping and (self.folder / trial.STOP).exists():
                self.stopping = True
                delivery.ask_to_stop(self.folder, True)
                self.say(interrupts.ASKED)
            notes = trial.read_notes(self.folder)
            for text in notes[self.noted :]:
                self.say(f"note: {text}")
            self.noted = len(notes)
            for metrics in read_history(self.folder)[self.heard :]:
                self._tell(metrics)
            if not over:
                self._end_silence()
                if looks % self.BUCKET_EVERY == 0 and self.sign < math.inf:
                    self._say_what_it_waits_for()

    def _say_what_it_waits_for(self) -> None:
        with contextlib.suppress(Exception):  # the head is away
            if not cluster.waits(self.folder.name):
                self.without = None
            elif self.without is None:
                self.without = time.monotonic()
            elif time.monotonic() - self.without > WAITING_S:
                self.without, r = math.inf, self.experiment.resources
                self.say(
                    f"waiting for {cluster.wanted(r)}: the cluster has {cluster.room(r)} free; without room they start when others end, or nodes come"
                )

    def _end_silence(self) -> None:
        """Workers that take too long for an epoch are killed: Ray Train starts others."""
        limit, killed = self.experiment.resources.trial_timeout_s, False
        if limit is not None and time.monotonic() - self.sign > limit:
            with contextlib.suppress(Exception):  # the head is away, and the workers with it
                killed = cluster.free_places([self.folder.name])
        if killed:
            self.sign = time.monotonic()
            self.say(
                f"no epoch was finished in {limit:g} s (resources.trial_timeout_s), so the workers were killed, to start again after epoch "
                f"{self.heard}; raise that limit if they were only slow"
            )

    def _tell(self, metrics: dict) -> None:
        self.heard, self.sign = metrics["epoch"], time.monotonic()
        self.tracker.epoch(self.key, metrics)
        self.say(epoch_line(metrics, self.experiment.train.epochs))
        if text := vacuous_mask(self.experiment.aml, metrics):
            self.say(f"warning: {text}")


def epoch_line(m: dict, epochs: int) -> str:
    left = m["time/epoch_s"] * (epochs - m["epoch"])
    return (
        f"epoch {m['epoch']}/{epochs}  loss {m['train/loss']:.4f}  mIoU {m['val/mIoU']:.4f} (best {m['val/mIoU_best']:.4f})  "
        f"oIoU {m['val/oIoU']:.4f}  hidden {m.get('aml/hidden', 0):.1%}  {m['time/epoch_s']:.1f} s, {left:.0f} s left"
    )
