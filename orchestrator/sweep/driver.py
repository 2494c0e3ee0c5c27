"""The driver of a sweep: it puts searcher, scheduler, callbacks and ledger together.

The Plan decides which trial is next, and the ledger holds what has finished. Both outlive the
process, so Tune's own state is not needed to continue.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator import cluster, data, storage, utils
from orchestrator.config import Experiment
from orchestrator.data import ObjectStoreBlocks, StreamingBlocks
from orchestrator.search import (
    BudgetTracker,
    Generations,
    Plan,
    ThroughputEstimator,
    TrialSpec,
    trial_from_json,
)
from orchestrator.sweep.finish import FinishedSweep, finish_sweep
from orchestrator.sweep.ledger import (
    RESUMABLE_REASONS,
    GenerationStep,
    MlflowRuns,
    SpentTime,
    TrialRecorder,
)
from orchestrator.sweep.progress import ProgressTable
from orchestrator.sweep.trial_table import StopRequest, TrialTable

if TYPE_CHECKING:
    from ray.tune import Callback

    from orchestrator.sweep.tune.arm_schedulers import ArmSchedulers
from orchestrator.tracking import TrackerBase

logger = logging.getLogger(__name__)


class Sweep:
    """The parts of one sweep, built from its run folder; it decides nothing itself.

    It has more attributes than other classes: those are the parts.
    """

    def __init__(
        self,
        run: storage.Run,
        experiment: Experiment,
        tracker: TrackerBase,
        placement: cluster.Placement,
    ) -> None:
        """Build the parts where an earlier attempt left the run. Writes nothing; see `start`.

        Args:
            run: The run, locked and begun.
            experiment: The settings of the sweep.
            tracker: The tracker of its MLflow runs.
            placement: How many trials run at a time.
        """
        self.run = run
        self.experiment = experiment
        self.tracker = tracker
        self.placement = placement
        self.generations = Generations(run.folder, run.delivered)
        self.trials = TrialTable()
        self.stop = StopRequest()
        records = ended_records(run)
        unfinished = started_trials(run.folder)
        self.plan = _make_plan(run, experiment, records, unfinished, self.generations)
        concurrent = placement.concurrent
        estimate = run.state.get("estimate")
        self.estimator = ThroughputEstimator(self.plan, experiment, concurrent, estimate)
        for record in records:
            self.estimator.replay(record)
        self.budget = BudgetTracker(
            experiment,
            self.plan,
            self.trials,
            self.estimator,
            concurrent=concurrent,
            spent_before=run.state.get("spent"),
        )
        self.plan.budget_check = self.budget.check
        scored = data.scored_sentences(experiment.data, run.state["data"])
        self.progress = ProgressTable(self.plan, self._left_text, scored)
        self.mlflow = MlflowRuns(tracker, run, experiment, self.plan)
        self.generation_step = GenerationStep(self.plan, self.generations, self.trials, self.stop)
        self._build_tune_parts(records, unfinished)

    @property
    def is_searching(self) -> bool:
        """Whether search trials may still run, begun ones included."""
        plan = self.plan
        ended = [
            r
            for r in plan.results.records.values()
            if r["stage"] == "search" and r["state"] != "failed"
        ]
        return len(ended) < plan.search.per_arm * len(plan.arms)

    def _build_tune_parts(self, records: list[dict], unfinished: list[TrialSpec]) -> None:
        """Build what Tune is given: searcher, scheduler and callbacks."""
        # Imported here, since these import Ray, which commands that start nothing do without.
        from orchestrator.sweep.tune.arm_schedulers import ArmSchedulers
        from orchestrator.sweep.tune.callbacks import (
            LostTrialCallback,
            MlflowCallback,
            PendingTrials,
            ProgressCallback,
        )
        from orchestrator.sweep.tune.scheduler import PerArmScheduler
        from orchestrator.sweep.tune.searcher import PlanSearcher

        spent = SpentTime(self.run, self.budget)
        recorder = TrialRecorder(
            run=self.run,
            plan=self.plan,
            trials=self.trials,
            mlflow=self.mlflow,
            estimator=self.estimator,
            progress=self.progress,
            spent=spent,
            generation_step=self.generation_step,
            stop=self.stop,
        )
        arms = ArmSchedulers(self.experiment, self.plan.epochs, self.plan.search.per_arm)
        self.searcher = PlanSearcher(
            run=self.run,
            plan=self.plan,
            trials=self.trials,
            recorder=recorder,
            generation_step=self.generation_step,
            mlflow=self.mlflow,
            stop=self.stop,
            concurrent=self.placement.concurrent,
            ended_on_replay=_replay(self.run, self.plan, arms, records, unfinished),
        )
        self.scheduler = PerArmScheduler(
            experiment=self.experiment,
            plan=self.plan,
            arms=arms,
            trials=self.trials,
            recorder=recorder,
            budget=self.budget,
            estimator=self.estimator,
            progress=self.progress,
            stop=self.stop,
        )
        resources = self.experiment.resources
        pending = PendingTrials(resources, self.trials)
        timeout_s = resources.epoch_timeout_s
        self.callbacks: list[Callback] = [
            ProgressCallback(self.progress, self.trials, spent, pending, self.stop),
            LostTrialCallback(self.run, self.trials, recorder, self.stop, timeout_s),
            MlflowCallback(self.mlflow, self.trials),
        ]

    def _left_text(self) -> str:
        """Return the time, money and budget that are left, as far as they are known."""
        left = self.estimator.left_text(self.budget.epochs_in_progress())
        return "; ".join(filter(None, [left, self.budget.used_text()]))

    def start(self) -> None:
        """Make the exploits that a crash cut off, open the MLflow run, and end generations.

        Raises:
            NotSaved: The exploits could not be made.
        """
        self.generations.resume()
        self.mlflow.start_sweep()
        self.generation_step.finish_complete()

    def interrupt(self) -> None:
        """Start no trial any more, and end running ones at their next epoch: SIGINT."""
        self.stop.request()

    def save(self) -> None:
        """Interrupt, and have running trials saved in the middle of their epoch: SIGTERM.

        Called by a thread. Returns when they are saved, or when resources.grace_s is over.
        """
        seconds = self.experiment.resources.grace_s
        self.stop.request_without_announcement()
        logger.info(utils.TERMINATING.format(seconds))
        for name in sorted(cluster.request_checkpoints(self.trials.started_ids, seconds)):
            logger.info(utils.NOT_SAVED.format(name, seconds))

    def finish(
        self, shared: ObjectStoreBlocks | StreamingBlocks, val_store: storage.Filesystem
    ) -> int:
        """Write baselines, robustness, cost, report and champion of a sweep whose trials ended.

        Args:
            shared: The decoded data.
            val_store: The shards that validate.

        Returns:
            The exit code.
        """
        is_cut = bool(self.plan.incomplete_reason)
        self.run.update(
            stopped_by="budget" if is_cut else "",
            budget=self.budget.stop_record() if is_cut else None,
        )
        self.progress.close()  # what follows is printed below the table
        results = self.plan.results
        records = list(results.records.values())
        finished = FinishedSweep(
            run=self.run,
            experiment=self.experiment,
            tracker=self.tracker,
            records=records,
            best_configs={r["arm"]: results.best_config(r["arm"]) for r in records},
            num_configs_tried=results.num_configs_tried(),
        )
        return finish_sweep(finished, shared, val_store)


def ended_records(run: storage.Run) -> list[dict]:
    """Return the ledger records of trials that have ended for good."""
    return [r for r in run.ledger() if r["stopped_by"] not in RESUMABLE_REASONS]


def started_trials(folder: Path) -> list[TrialSpec]:
    """Return the trials that attempts of the run in `folder` started, in that order."""
    found = sorted((folder / "trials").glob("*/trial.json"), key=lambda p: p.stat().st_mtime)
    return [trial_from_json(path.read_text("utf-8")) for path in found]


def _history(run: storage.Run, trial_id: str) -> list[dict]:
    return storage.read_history(run.folder / "trials" / trial_id)


def _make_plan(
    run: storage.Run,
    experiment: Experiment,
    records: list[dict],
    unfinished: list[TrialSpec],
    generations: Generations,
) -> Plan:
    """Return the plan where earlier attempts left it."""
    last_epochs = {}
    if experiment.search.scheduler.name == "pbt":
        histories = {spec.id: _history(run, spec.id) for spec in unfinished}
        last_epochs = {trial_id: history[-1] for trial_id, history in histories.items() if history}
    epochs = run.state["epochs_by_arm"]
    return Plan(experiment, records, unfinished, epochs, generations.decisions, last_epochs)


def _replay(
    run: storage.Run,
    plan: Plan,
    arms: "ArmSchedulers",
    records: list[dict],
    unfinished: list[TrialSpec],
) -> dict[str, list[dict]]:
    """Tell the arms' schedulers the results of earlier attempts.

    Unfinished trials have passed rungs, too; the plan holds those that are paused at one.

    Returns:
        History of each unfinished trial that is stopped at its last epoch.
    """
    ended = {r["trial"]: (r["arm"], r["history"]) for r in records if r["stage"] == "search"}
    resumed = {
        spec.id: (spec.arm, _history(run, spec.id))
        for spec in unfinished
        if spec.stage == "search" and spec.id not in plan.results.records
    }
    gone = [
        r["trial"]
        for r in records
        if r["stage"] == "search" and (r["state"] == "failed" or r["stopped_by"] == "time")
    ]
    stopped, paused = arms.replay(ended | resumed, gone)
    for spec in unfinished:
        if spec.id in paused and spec.id in resumed:
            plan.hold_trial(spec, resumed[spec.id][1][-1]["epoch"])
    return {trial_id: history for trial_id, (_, history) in resumed.items() if trial_id in stopped}
