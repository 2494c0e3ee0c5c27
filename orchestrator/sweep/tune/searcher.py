"""Tune's searcher: it asks the plan for the next trial and writes the trial's trial.json first."""

from ray.tune.search import Searcher

from aml.errors import NotSaved
from orchestrator import storage, utils
from orchestrator.search import Plan, TrialSpec, trial_to_json
from orchestrator.sweep.ledger import GenerationStep, MlflowRuns, TrialEnd, TrialRecorder
from orchestrator.sweep.trial_table import NotPickled, StopRequest, TrialTable


class PlanSearcher(NotPickled, Searcher):
    """Tune asks this searcher for the next trial; the plan decides."""

    def __init__(
        self,
        *,
        run: storage.Run,
        plan: Plan,
        trials: TrialTable,
        recorder: TrialRecorder,
        generation_step: GenerationStep,
        mlflow: MlflowRuns,
        stop: StopRequest,
        concurrent: int,
        ended_on_replay: dict[str, list[dict]],
    ) -> None:
        """Create the searcher.

        Args:
            run: The run that trial.json files are written to.
            plan: Suggests the trials.
            trials: The table that a suggested trial is added to.
            recorder: Completes trials that the replay of results has ended.
            generation_step: Ends generations that wait for members which no longer come.
            mlflow: Opens the MLflow run of a trial that the replay has ended.
            stop: A request to start nothing further.
            concurrent: Trials that run at a time.
            ended_on_replay: History of each unfinished trial that its arm's scheduler stops at its
                last epoch. Its driver was interrupted or killed before it could say so.
        """
        judged_by = plan.experiment.search.objective
        super().__init__(metric=judged_by.metric, mode=judged_by.mode)
        self.run = run
        self.plan = plan
        self.trials = trials
        self.recorder = recorder
        self.generation_step = generation_step
        self.mlflow = mlflow
        self.stop = stop
        self.concurrent = concurrent
        self.ended_on_replay = ended_on_replay

    # Tune's own annotation leaves out FINISHED, which it documents.
    def suggest(self, trial_id: str) -> dict | str | None:  # type: ignore[override]
        """Return the next trial's config, FINISHED, or None while there is nothing to start."""
        config = self._next_config()
        if config is None and (self.plan.done or self.stop.is_requested):
            return Searcher.FINISHED
        return config

    def on_trial_complete(
        self, trial_id: str, result: dict | None = None, error: bool = False
    ) -> None:
        """Do nothing: the plan was told by the scheduler or a callback."""

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: the ledger is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing: the ledger is the state."""

    def _next_config(self) -> dict | None:
        """Return the next trial's config, with its specification on disk; None for none now."""
        while not self.stop.is_requested and len(self.plan.running) < self.concurrent:
            spec = self.plan.suggest()
            # A budget may let no member join any more: those that wait for it are all there are.
            if spec is None and self.generation_step.finish_complete():
                spec = self.plan.suggest()
            if spec is None or not self._write_spec(spec):
                return None
            config = self._add(spec)
            if spec.id not in self.ended_on_replay:
                return config
            self._complete_ended(spec.id)
        return None

    def _write_spec(self, spec: TrialSpec) -> bool:
        """Write trial.json if there is none; a member of a population keeps its first one.

        Returns:
            Whether the file is there; otherwise the sweep is asked to stop.
        """
        path = self.run.folder / "trials" / spec.id / "trial.json"
        if path.exists():
            return True
        try:
            utils.atomic_write(path, trial_to_json(spec).encode())
        except NotSaved as error:
            self.stop.fail(error)
            return False
        return True

    def _add(self, spec: TrialSpec) -> dict:
        """Add the trial to the table and return its Tune config."""
        folder = self.run.folder / "trials" / spec.id
        schedule = spec.config_schedule(self.plan.experiment)
        is_member = spec.pause_at_epoch is not None
        epochs_before = self.plan.epochs_done.get(spec.id, 0)
        history = storage.read_history(folder) if is_member or epochs_before else []
        segment = f"{spec.id}-from-{epochs_before}" if epochs_before else spec.id
        self.trials.add(spec, schedule[-1][0], history)
        return {
            "trial": spec.id,
            "arm": spec.arm,
            "stage": spec.stage,
            "segment": f"{spec.id}-to-{spec.pause_at_epoch}" if is_member else segment,
            "config_schedule": [(settings.for_workers(), end) for settings, end in schedule],
            "folder": storage.to_uri(folder),
            "release": self.trials.take_released(),
            # A node's copy of a member may be from before it continued from another's checkpoint.
            "exact": is_member,
        }

    def _complete_ended(self, trial_id: str) -> None:
        """Complete a trial that its last driver should have ended."""
        history = self.ended_on_replay.pop(trial_id)
        self.trials.start(trial_id)
        trial = self.trials.running[trial_id]
        self.mlflow.start_trial(trial)
        for epoch in history:
            self.recorder.record_epoch(trial, epoch)
        end = TrialEnd("stopped", self.plan.experiment.search.scheduler.name)
        self.recorder.complete_trial(trial_id, end, last_epoch=history[-1]["epoch"])
