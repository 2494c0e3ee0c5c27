"""Ray Tune around the loop: what runs inside a trial, and the command that searches arms, settings and seeds and then confirms them.

One Tuner runs both stages: an arm's confirmation starts as soon as that arm's search is over, in actors that are still warm. What is decided
is the driver's (orchestrator.driver), which Tune reaches through orchestrator.tune_seam.
"""

import contextlib
import time

from aml.errors import NotSaved
from orchestrator import budget, cluster, cost, delivery, forecast, interrupts, mirror, plan, runs, sources, trial
from orchestrator.config import Experiment, from_dict
from orchestrator.decoded import Shared, Windowed, held
from orchestrator.driver import CUT_SHORT, GOES_ON, PARENT, Sweep, unfinished

# ---- inside a trial -------------------------------------------------------------------------------------------------


def light_trial(config: dict, shared: Shared | Windowed, vocabulary: list[str]) -> None:
    """One worker, the loop in the Tune process itself; the process may have run other trials before."""
    import torch
    from ray import tune

    legs = [(from_dict(tree), until) for tree, until in config["legs"]]
    resources = legs[0][0].resources
    torch.set_num_threads(max(1, int(resources.cpus_per_worker)))
    device = "cuda" if resources.gpus_per_worker and torch.cuda.is_available() else "cpu"
    trial.keep_to_share(resources.gpus_per_worker, device)

    folder = mirror.here(config["folder"])
    try:
        outbox = trial.joined(folder, exact=config["exact"])
    except trial.FINAL as error:
        return tune.report(trial.failed(error))
    notice = cluster.notice()

    def kept() -> None:
        outbox.offer()
        if notice() == cluster.ENDING:
            outbox.settle()
            cluster.answer(folder.name)

    def report(metrics: dict) -> None:
        kept()
        if metrics["epoch"] >= legs[-1][1]:  # the process may be gone before the next chance
            outbox.settle()
        tune.report(trial.clean(metrics))

    try:
        for experiment, until in legs:
            how = {"device": device, "until": until, "notice": notice, "kept": kept}
            trial.run(experiment, shared.open, vocabulary, folder, report, **how)
    except trial.FINAL as error:  # would happen again: the trial fails alone, no restart
        with contextlib.suppress(NotSaved):  # what failed is what is told
            outbox.offer()
        tune.report(trial.failed(error))
    finally:
        outbox.leave()


def distributed_trial(config: dict, shared: Shared | Windowed, vocabulary: list[str]) -> None:
    """The driver of a Ray Train run; it waits while the workers train. Train restarts workers, Tune this driver: neither repeats the other."""
    from ray import tune
    from ray.train import TrainingFailedError
    from ray.tune.integration.ray_train import TuneReportCallback

    from orchestrator.train import make_trainer

    folder = mirror.here(config["folder"])
    cluster.free_places([*config["over"], folder.name])  # of its own, too: its driver may have been lost before
    try:
        make_trainer(from_dict(config["legs"][-1][0]), shared, vocabulary, folder, callbacks=[TuneReportCallback()]).fit()
    except TrainingFailedError as error:
        tune.report(trial.failed(error))


# ---- the command ----------------------------------------------------------------------------------------------------


def run(experiment: Experiment, *, resume: str | None = None, fresh: bool = False, dry_run: bool = False, say=print) -> int:
    """Search, confirm, evaluate, report.   -> exit code"""
    if resume:
        experiment = runs.find(experiment.root, resume).experiment(experiment.tracking)
    plan.check(experiment)
    found = sources.check(experiment.data, experiment.root)  # refuse before Ray starts
    for text in plan.remarks(experiment, experiment.search.arms):
        say(f"note: {text}")
    nodes = cluster.planned()
    placement = cluster.place(experiment, nodes)
    if text := cluster.idle_gpus(experiment, nodes):
        say(f"note: {text}")
    if dry_run:
        say(forecast.describe_plan(experiment, placement))
        return 0
    if not found:
        cluster.start()  # its tasks make the data
    used = sources.prepare(experiment.data, experiment.root, say)
    this = runs.start(experiment, "sweep", used.manifest, fresh=fresh) if not resume else runs.find(experiment.root, resume)
    with this.locked(say):
        if this.finished and not budget_changed(this, experiment) and not cut_short(this):
            say(f"{this.name} has finished (--fresh starts another)")
            runs.deliver(this, experiment, say)
            say(outcome(this))
            return 0
        cluster.start()
        placement = cluster.place(experiment, cluster.capacity())  # Ray may find less than this machine has
        ledger = this.ledger()
        so_far = f": {len(ledger)} trials have finished" if ledger else ""
        say(f"{'continuing' if this.state else 'starting'} {this.name} in {this.folder}{so_far}")
        runs.begin(this, experiment, used.manifest, used.uri)
        epochs = this.state.get("epochs_by_arm")  # of the first attempt: a machine's seconds may differ today
        epochs = cost.equal_epochs(experiment) if epochs is None else epochs
        this.update(metric=experiment.search.metric, mode=experiment.search.mode, epochs_by_arm=epochs)
        if "estimate" not in this.state:
            this.update(estimate=forecast.at_launch(experiment, epochs, placement, say))
        return _search(this, experiment, used, placement, say)


def _search(this: runs.Run, experiment: Experiment, used: sources.Sources, placement: cluster.Placement, say) -> int:
    """From decoded data to the report; however it ends, run and MLflow are left in a final state."""
    code = 1
    tracker, sweep = runs.open_tracker(this, experiment), None
    try:
        bring_unfinished(this, say)
        sweep = Sweep(this, experiment, tracker, placement, say)
        shared = used.decode(windowed=this.state.get("windowed"), say=say)
        this.update(windowed=isinstance(shared, Windowed))  # the order of items follows from it
        if not tracker.ready():  # the database is made before any trial
            say(f"tracking: {tracker.problem}; training goes on, what it misses is kept in {this.folder}")
        with held(shared):
            fit(sweep, shared, used.words())
            for problem in delivery.deliver_everywhere(this.folder):
                say(f"{problem}; the same command delivers it while that machine is there")
            code = sweep.finish(shared)
    except KeyboardInterrupt:
        code = 130
        this.update(state="interrupted", ended=time.time())
        say(f"{this.name} interrupted with {len(this.ledger())} trials finished; the same command continues it")
    except BaseException as error:
        this.update(state="failed", ended=time.time(), error=trial.failure(error))
        raise
    finally:
        if sweep:
            sweep.board.close()
            ending = {0: "FINISHED", 130: "KILLED"}.get(code, "FAILED")
            tracker.end(PARENT, ending, tags={"stopped_by": {0: this.state.get("stopped_by", ""), 130: "interrupt"}.get(code, "error")})
        if remaining := tracker.close():
            say(remaining)
        if sweep:
            this.update(spent=sweep.meter.spent())  # after MLflow: the disk may be full
    return code


def fit(sweep: Sweep, shared: Shared | Windowed, vocabulary: list[str]) -> None:
    """Run every trial the plan has; returns when none is left."""
    from ray import tune

    if sweep.broken:
        raise sweep.broken
    if sweep.plan.done:
        return
    cluster.quiet_tune()
    cluster.keep_keys_from_tune()
    sweep.board.open()
    light = sweep.experiment.resources.light
    trainable = tune.with_parameters(light_trial if light else distributed_trial, shared=shared, vocabulary=vocabulary)
    resources = sweep.placement.resources if light else {"CPU": cluster.DRIVER_CPUS}  # Train's workers have a placement group of their own
    from orchestrator.tune_seam import Ear, PlanSearcher, SweepScheduler

    tuner = tune.Tuner(
        tune.with_resources(trainable, resources),
        tune_config=tune.TuneConfig(
            search_alg=PlanSearcher(sweep),
            scheduler=SweepScheduler(sweep),
            num_samples=sweep.plan.turns,
            reuse_actors=light,
            trial_name_creator=lambda t: t.config["turn"],
            trial_dirname_creator=lambda t: t.config["turn"],
        ),
        run_config=tune.RunConfig(
            name=f"attempt-{time.time_ns()}",
            storage_path=str(sweep.run.folder / "tune"),
            failure_config=tune.FailureConfig(max_failures=sweep.experiment.resources.max_failures),
            callbacks=[Ear(sweep)],
            verbose=0,
        ),
    )
    with interrupts.as_before():
        interrupts.first(sweep.interrupt)
        interrupts.saved(sweep.save, sweep.experiment.resources.grace_s)
        tuner.fit()
    if sweep.broken:
        raise sweep.broken
    if not sweep.plan.done:
        raise KeyboardInterrupt


def bring_unfinished(this: runs.Run, say) -> None:
    """What an attempt on other machines left behind: undelivered files of machines that are here, the epochs of trials that go on."""
    for problem in delivery.deliver_everywhere(this.folder):
        say(f"note: {problem}")
    over = {r["trial"] for r in this.ledger() if r["stopped_by"] not in GOES_ON}
    for spec in unfinished(this.folder):
        if spec.id not in over:
            delivery.pull(this.folder / "trials" / spec.id, wanted=delivery.light)


def budget_changed(this: runs.Run, experiment: Experiment) -> bool:
    """Whether a sweep that its budget stopped is asked to go on with another one, which is not used up too."""
    stop, limits = this.state.get("budget"), experiment.search.budget
    if not stop or stop["limits"] == limits.limits:
        return False
    hours = {k: v / 3600 for k, v in this.state["spent"].items()}
    use = budget.Use(hours=hours["seconds"], trial_hours=hours["trial_seconds"], price=budget.hourly(experiment.resources))
    return not budget.used_up(limits, use)


def cut_short(this: runs.Run) -> bool:
    """Whether a trial ended for want of room, or because its shards did not answer: the same command goes on with it."""
    return any(r["stopped_by"] in CUT_SHORT for r in this.ledger())


def outcome(this: runs.Run) -> str:
    """The result of a finished sweep in a few lines."""
    from orchestrator import conclude

    return conclude.summary(this)
