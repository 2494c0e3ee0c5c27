"""The `sweep` command: search arms, settings and seeds, then confirm the best of each arm.

One Tuner runs both stages: an arm's confirmation starts as soon as its search is over, in actors
that are still warm. The Sweep (driver.py) holds the searcher, scheduler and callbacks of Tune.
"""

import logging
import time
from typing import NamedTuple

from orchestrator import cluster, config, data, search, storage, tracking, utils
from orchestrator.config import Experiment
from orchestrator.data import ObjectStoreBlocks, StreamingBlocks, pin_blocks
from orchestrator.storage import storage_root
from orchestrator.sweep.driver import Sweep, started_trials
from orchestrator.sweep.ledger import (
    RESUMABLE_REASONS,
    SWEEP_KEY,
    TRANSIENT_REASONS,
)
from orchestrator.sweep.summary import sweep_description, sweep_summary
from orchestrator.sweep.tune.trainable import Corrupted, in_process_trial, ray_train_trial
from orchestrator.tracking import TrackerBase

logger = logging.getLogger(__name__)


class SweepEnd(NamedTuple):
    """How a sweep ended."""

    code: int
    """The exit code: 0 done, 1 failed, 130 interrupted."""
    run: storage.Run | None
    """Its run; None where only the plan was asked for."""


def run_sweep(
    experiment: Experiment,
    *,
    resume: str | None = None,
    fresh: bool = False,
    plan_for: search.PowerQuestion | None = None,
    decoded: data.LastDecoded | None = None,
) -> SweepEnd:
    """Search, confirm, evaluate and report.

    Args:
        experiment: The settings of the sweep.
        resume: The name of a run to continue with the settings it was started with.
        fresh: Start another run although one of the same settings and data exists.
        plan_for: Log the plan, and whether it would show these differences, and start nothing.
        decoded: Pictures that an earlier sweep of this process decoded; of other data they are
            replaced.
    """
    root = storage_root(experiment.storage.root)
    if resume:
        experiment = storage.find_run(root, resume).experiment(experiment.tracking)
        root = storage_root(experiment.storage.root)
    config.check_sweep(experiment)
    found = data.check_sources(experiment.data, root)  # refuse before Ray starts
    for text in config.setting_warnings(experiment, experiment.search.arms):
        logger.info(f"note: {text}")
    nodes = cluster.planned_nodes()
    placement = cluster.plan_placement(experiment, nodes)
    if text := cluster.idle_gpus(experiment, nodes):
        logger.info(f"note: {text}")
    if plan_for:
        logger.info(search.describe_plan(experiment, placement, plan_for))
        return SweepEnd(0, None)
    storage.check_root(root)
    tracking.check_store(experiment.tracking.uri, root)
    if not found:
        cluster.init_ray()  # Ray tasks make the data
    sources = data.prepare_sources(experiment.data, root)
    if resume:
        run = storage.find_run(root, resume)
    else:
        run = storage.start_run(experiment, "sweep", sources.manifest, fresh=fresh)
    with run.locked():
        experiment, more_seeds = settle_seeds(run, experiment)
        may_continue = more_seeds or has_larger_budget(run, experiment) or has_cut_trials(run)
        if run.finished and not may_continue and not unmeasured_robustness(run, experiment):
            logger.info(f"{run.name} has finished (--fresh starts another)")
            tracking.deliver_tracking(run, experiment)
            logger.info(sweep_summary(run))
            return SweepEnd(0, run)
        cluster.init_ray()
        cluster.check_shared_folder(run.folder)
        # Once more with what Ray found, which may be less than this machine has.
        placement = cluster.plan_placement(experiment, cluster.cluster_nodes())
        _begin(run, experiment, sources, placement)
        keeper = decoded or data.LastDecoded()
        return SweepEnd(_search(run, experiment, sources, placement, keeper), run)


def _begin(
    run: storage.Run, experiment: Experiment, sources: data.Sources, placement: cluster.Placement
) -> None:
    """Log the start or continuation, and write what the first attempt settles for all others."""
    records = run.ledger()
    so_far = f": {len(records)} trials have finished" if records else ""
    logger.info(f"{'continuing' if run.state else 'starting'} {run.name} in {run.folder}{so_far}")
    storage.begin_run(run, experiment, sources.manifest, sources.uri)
    epochs = run.state.get("epochs_by_arm")
    if epochs is None:  # else the first attempt's: a machine's seconds may differ today
        epochs = search.equal_epochs(experiment)
    metric, mode = experiment.search.objective
    objectives = [list(objective) for objective in experiment.search.objectives]
    run.update(metric=metric, mode=mode, objectives=objectives, epochs_by_arm=epochs)
    if "estimate" not in run.state:
        run.update(estimate=search.estimate_at_launch(experiment, epochs, placement))


def _search(
    run: storage.Run,
    experiment: Experiment,
    sources: data.Sources,
    placement: cluster.Placement,
    decoded: data.LastDecoded,
) -> int:
    """Decode the data, run the trials and write the report.

    However it ends, the run and its MLflow runs are left in a final state.
    """
    code = 1
    tracker = tracking.open_tracker(run, experiment)
    sweep: Sweep | None = None
    try:
        download_unfinished(run)
        built = Sweep(run, experiment, tracker, placement)
        built.start()
        sweep = built
        shared = decoded.decode(sources, windowed=run.state.get("windowed"))
        # Kept for later attempts: the order of items follows from it.
        run.update(windowed=isinstance(shared, StreamingBlocks))
        if not tracker.ready():  # makes MLflow's database before any trial
            logger.info(
                f"tracking: {tracker.problem}; training goes on, what it misses is kept in "
                f"{run.folder}"
            )
        conditions = experiment.searched_conditions if sweep.is_searching else []
        corrupted = sources.decode_corrupted(conditions) if conditions else {}
        with pin_blocks(shared, *corrupted.values()):
            fit(sweep, shared, sources.words(), corrupted)
            for problem in storage.upload_from_every_node(run.folder):
                logger.info(f"{problem}; the same command delivers it while that machine is there")
            code = sweep.finish(shared, sources.val_store)
    except KeyboardInterrupt:
        code = 130
        run.update(state="interrupted", ended=time.time())
        logger.info(
            f"{run.name} interrupted with {len(run.ledger())} trials finished; "
            "the same command continues it"
        )
    except BaseException as error:
        run.update(state="failed", ended=time.time(), error=utils.failure(error))
        raise
    finally:
        if sweep:
            sweep.progress.close()
            _end_tracking(tracker, run, code)
        if remaining := tracker.close():
            logger.info(remaining)
        if code == 0 and sweep:  # last, so that a person finds it above the prompt
            logger.info(sweep_summary(run))
        if sweep:
            run.update(spent=sweep.budget.spent())  # after MLflow, since the disk may be full
    return code


def _end_tracking(tracker: TrackerBase, run: storage.Run, code: int) -> None:
    """Close the parent run of MLflow."""
    reasons = {0: run.state.get("stopped_by") or tracking.COMPLETED, 130: "interrupt"}
    status = {0: "FINISHED", 130: "KILLED"}.get(code, "FAILED")
    tags = {"stopped_by": reasons.get(code, "error")}
    if description := sweep_description(run):
        tags["mlflow.note.content"] = description
    tracker.end(SWEEP_KEY, status, tags=tags)


def fit(
    sweep: Sweep,
    shared: ObjectStoreBlocks | StreamingBlocks,
    vocabulary: list[str],
    corrupted: Corrupted,
) -> None:
    """Run every trial the plan has with Tune; return when none is left.

    Args:
        sweep: The sweep, started.
        shared: The decoded data.
        vocabulary: The words of the data set.
        corrupted: Validation pictures under the corruptions that search trials are scored under.

    Raises:
        RunError: A decision could not be written.
        KeyboardInterrupt: The sweep was interrupted before its plan was done.
    """
    from ray import tune

    if sweep.stop.error:
        raise sweep.stop.error
    if sweep.plan.done:
        sweep.plan.close()
        return
    cluster.configure_tune()
    sweep.progress.open()
    is_in_process = sweep.experiment.resources.light
    trainable = tune.with_parameters(
        in_process_trial if is_in_process else ray_train_trial,
        shared=shared,
        vocabulary=vocabulary,
        corrupted=corrupted,
    )
    tuner = tune.Tuner(
        tune.with_resources(trainable, sweep.placement.resources),
        tune_config=tune.TuneConfig(
            search_alg=sweep.searcher,
            scheduler=sweep.scheduler,
            num_samples=sweep.plan.counts.num_segments,
            reuse_actors=is_in_process,
            trial_name_creator=lambda trial: trial.config["segment"],
            trial_dirname_creator=lambda trial: trial.config["segment"],
        ),
        run_config=tune.RunConfig(
            name=f"attempt-{time.time_ns()}",
            storage_path=str(sweep.run.folder / "tune"),
            failure_config=tune.FailureConfig(max_failures=sweep.experiment.resources.max_failures),
            callbacks=sweep.callbacks,
            verbose=0,
        ),
    )
    with utils.restored_handlers():
        utils.on_interrupt(sweep.interrupt)
        utils.save_on_terminate(sweep.save, sweep.experiment.resources.grace_s)
        tuner.fit()
    if sweep.stop.error:
        raise sweep.stop.error
    if not sweep.plan.done:
        raise KeyboardInterrupt
    sweep.plan.close()


def download_unfinished(run: storage.Run) -> None:
    """Collect what an attempt on other machines left behind.

    That is what machines of the cluster have not delivered, and the epochs of unfinished trials.
    """
    for problem in storage.upload_from_every_node(run.folder):
        logger.info(f"note: {problem}")
    ended = {r["trial"] for r in run.ledger() if r["stopped_by"] not in RESUMABLE_REASONS}
    for spec in started_trials(run.folder):
        if spec.id not in ended:
            storage.download(run.folder / "trials" / spec.id, wanted=storage.without_checkpoints)


def settle_seeds(run: storage.Run, experiment: Experiment) -> tuple[Experiment, bool]:
    """Return the settings with as many confirmation seeds as the sweep was ever given.

    Args:
        run: The sweep, locked.
        experiment: The settings given now, which may ask for more seeds or for fewer.

    Returns:
        The settings, and whether they ask for more seeds than the sweep was given before: its
        config.yaml then holds the new number.
    """
    if not run.state:
        return experiment, False
    before = run.experiment().search.seeds.confirm
    wanted = experiment.search.seeds.confirm
    if wanted < before:
        logger.info(f"note: {run.name} has {before} confirmation seeds an arm; all of them count")
        experiment = experiment.with_overrides({"search.seeds.confirm": before})
    elif wanted > before:
        logger.info(f"{run.name} goes on from {before} to {wanted} confirmation seeds an arm")
        run.write_settings(experiment)
    return experiment, wanted > before


def has_larger_budget(run: storage.Run, experiment: Experiment) -> bool:
    """Return whether a sweep that its budget stopped may continue under the present budget.

    It may where the limits have changed and are not used up already.
    """
    stop = run.state.get("budget")
    limits = experiment.search.budget
    if not stop or stop["limits"] == limits.limits:
        return False
    hours = {key: seconds / 3600 for key, seconds in run.state["spent"].items()}
    use = search.Usage(
        hours=hours["seconds"],
        trial_hours=hours["trial_seconds"],
        price=config.hourly_price(experiment.resources),
    )
    return not search.is_used_up(limits, use)


def unmeasured_robustness(run: storage.Run, experiment: Experiment) -> bool:
    """Return whether evaluate.corrupt names a corruption that a finished sweep lacks scores of."""
    wanted = {f"{name}:{severity}" for name, severity in experiment.evaluate.conditions}
    measured = (run.state.get("robustness") or {}).get("conditions") or []
    return not wanted <= set(measured)


def has_cut_trials(run: storage.Run) -> bool:
    """Return whether a trial ended because the disk was full or its shards did not answer.

    The same command continues such a trial.
    """
    return any(r["stopped_by"] in TRANSIENT_REASONS for r in run.ledger())
