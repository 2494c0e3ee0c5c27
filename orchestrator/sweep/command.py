"""Ray Tune around the loop: what runs inside a trial, and the command that searches arms, settings and seeds and then confirms them.

One Tuner runs both stages: an arm's confirmation starts as soon as that arm's search is over, in actors that are still warm. What is decided
is the driver's (orchestrator.driver), which Tune reaches through orchestrator.tune_seam.
"""

import time

from orchestrator import cluster, data, search, storage, tracking, training, utils
from orchestrator.config import Experiment
from orchestrator.data import ObjectStoreBlocks, StreamingBlocks, pin_blocks
from orchestrator.storage import storage_root
from orchestrator.sweep.driver import (
    PARENT,
    RESUMABLE_REASONS,
    TRANSIENT_REASONS,
    Sweep,
    unfinished,
)
from orchestrator.sweep.trainable import distributed_trial, light_trial


def run_sweep(
    experiment: Experiment,
    *,
    resume: str | None = None,
    fresh: bool = False,
    dry_run: bool = False,
    say=print,
) -> int:
    """Search, confirm, evaluate, report.   -> exit code"""
    if resume:
        experiment = storage.find_run(storage_root(experiment.storage.root), resume).experiment(
            experiment.tracking
        )
    search.check_plan(experiment)
    found = data.check_sources(
        experiment.data, storage_root(experiment.storage.root)
    )  # refuse before Ray starts
    for text in training.setting_warnings(experiment, experiment.search.arms):
        say(f"note: {text}")
    nodes = cluster.planned_nodes()
    placement = cluster.plan_placement(experiment, nodes)
    if text := cluster.idle_gpus(experiment, nodes):
        say(f"note: {text}")
    if dry_run:
        say(search.describe_plan(experiment, placement))
        return 0
    if not found:
        cluster.init_ray()  # its tasks make the data
    used = data.prepare_sources(experiment.data, storage_root(experiment.storage.root), say)
    this = (
        storage.start_run(experiment, "sweep", used.manifest, fresh=fresh)
        if not resume
        else storage.find_run(storage_root(experiment.storage.root), resume)
    )
    with this.locked(say):
        if this.finished and not budget_changed(this, experiment) and not cut_short(this):
            say(f"{this.name} has finished (--fresh starts another)")
            tracking.deliver_tracking(this, experiment, say)
            say(outcome(this))
            return 0
        cluster.init_ray()
        placement = cluster.plan_placement(
            experiment, cluster.cluster_nodes()
        )  # Ray may find less than this machine has
        ledger = this.ledger()
        so_far = f": {len(ledger)} trials have finished" if ledger else ""
        say(f"{'continuing' if this.state else 'starting'} {this.name} in {this.folder}{so_far}")
        storage.begin_run(this, experiment, used.manifest, used.uri)
        epochs = this.state.get(
            "epochs_by_arm"
        )  # of the first attempt: a machine's seconds may differ today
        epochs = search.equal_epochs(experiment) if epochs is None else epochs
        this.update(
            metric=experiment.search.metric, mode=experiment.search.mode, epochs_by_arm=epochs
        )
        if "estimate" not in this.state:
            this.update(estimate=search.estimate_at_launch(experiment, epochs, placement, say))
        return _search(this, experiment, used, placement, say)


def _search(
    this: storage.Run, experiment: Experiment, used: data.Sources, placement: cluster.Placement, say
) -> int:
    """From decoded data to the report; however it ends, run and MLflow are left in a final state."""
    code = 1
    tracker, sweep = tracking.open_tracker(this, experiment), None
    try:
        bring_unfinished(this, say)
        sweep = Sweep(this, experiment, tracker, placement, say)
        shared = used.decode(windowed=this.state.get("windowed"), say=say)
        this.update(
            windowed=isinstance(shared, StreamingBlocks)
        )  # the order of items follows from it
        if not tracker.ready():  # the database is made before any trial
            say(
                f"tracking: {tracker.problem}; training goes on, what it misses is kept in {this.folder}"
            )
        with pin_blocks(shared):
            fit(sweep, shared, used.words())
            for problem in storage.upload_from_every_node(this.folder):
                say(f"{problem}; the same command delivers it while that machine is there")
            code = sweep.finish(shared)
    except KeyboardInterrupt:
        code = 130
        this.update(state="interrupted", ended=time.time())
        say(
            f"{this.name} interrupted with {len(this.ledger())} trials finished; the same command continues it"
        )
    except BaseException as error:
        this.update(state="failed", ended=time.time(), error=utils.failure(error))
        raise
    finally:
        if sweep:
            sweep.board.close()
            ending = {0: "FINISHED", 130: "KILLED"}.get(code, "FAILED")
            tracker.end(
                PARENT,
                ending,
                tags={
                    "stopped_by": {0: this.state.get("stopped_by", ""), 130: "interrupt"}.get(
                        code, "error"
                    )
                },
            )
        if remaining := tracker.close():
            say(remaining)
        if sweep:
            this.update(spent=sweep.meter.spent())  # after MLflow: the disk may be full
    return code


def fit(sweep: Sweep, shared: ObjectStoreBlocks | StreamingBlocks, vocabulary: list[str]) -> None:
    """Run every trial the plan has; returns when none is left."""
    from ray import tune

    if sweep.broken:
        raise sweep.broken
    if sweep.plan.done:
        return
    cluster.quiet_tune()
    cluster.hide_credentials_from_tune()
    sweep.board.open()
    light = sweep.experiment.resources.light
    trainable = tune.with_parameters(
        light_trial if light else distributed_trial, shared=shared, vocabulary=vocabulary
    )
    resources = (
        sweep.placement.resources if light else {"CPU": cluster.DRIVER_CPUS}
    )  # Train's workers have a placement group of their own
    from orchestrator.sweep.tune_hooks import PlanSearcher, SweepCallback, SweepScheduler

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
            callbacks=[SweepCallback(sweep)],
            verbose=0,
        ),
    )
    with utils.restored_handlers():
        utils.on_interrupt(sweep.interrupt)
        utils.save_on_terminate(sweep.save, sweep.experiment.resources.grace_s)
        tuner.fit()
    if sweep.broken:
        raise sweep.broken
    if not sweep.plan.done:
        raise KeyboardInterrupt


def bring_unfinished(this: storage.Run, say) -> None:
    """What an attempt on other machines left behind: undelivered files of machines that are here, the epochs of trials that go on."""
    for problem in storage.upload_from_every_node(this.folder):
        say(f"note: {problem}")
    over = {r["trial"] for r in this.ledger() if r["stopped_by"] not in RESUMABLE_REASONS}
    for spec in unfinished(this.folder):
        if spec.id not in over:
            storage.download(this.folder / "trials" / spec.id, wanted=storage.without_checkpoints)


def budget_changed(this: storage.Run, experiment: Experiment) -> bool:
    """Whether a sweep that its budget stopped is asked to go on with another one, which is not used up too."""
    stop, limits = this.state.get("budget"), experiment.search.budget
    if not stop or stop["limits"] == limits.limits:
        return False
    hours = {k: v / 3600 for k, v in this.state["spent"].items()}
    use = search.Usage(
        hours=hours["seconds"],
        trial_hours=hours["trial_seconds"],
        price=search.hourly_price(experiment.resources),
    )
    return not search.is_used_up(limits, use)


def cut_short(this: storage.Run) -> bool:
    """Whether a trial ended for want of room, or because its shards did not answer: the same command goes on with it."""
    return any(r["stopped_by"] in TRANSIENT_REASONS for r in this.ledger())


def outcome(this: storage.Run) -> str:
    """The result of a finished sweep in a few lines."""
    from orchestrator.sweep import finish

    return finish.sweep_summary(this)
