"""Ray Tune around the loop: arms, settings and seeds searched under ASHA, then confirmed; resumed from its own ledger.

The Plan says which trial is next, the ledger holds what has finished; both outlive the process, so Tune's own state is not needed to go
on. One Tuner runs both stages: an arm's confirmation starts as soon as that arm's search is over, in actors that are still warm.
"""

import math
import time
from pathlib import Path

from aml.errors import UserError
from aml.learner import NonFinite, vacuous_mask
from orchestrator import budget, cluster, cost, plan, runs, sources, trial
from orchestrator.config import Experiment, from_dict
from orchestrator.decoded import Shared, Windowed
from orchestrator.live import Board

PARENT = "sweep"
"""The tracker's key of the parent run."""

OURS = ("train", "val", "aml", "time", "mem", "optim")
"""Families of the loop's metrics; Tune adds keys of its own to each result."""

# ---- inside a trial -------------------------------------------------------------------------------------------------


def light_trial(config: dict, shared: Shared | Windowed, vocabulary: list[str]) -> None:
    """One worker, the loop in the Tune process itself; the process may have run other trials before."""
    import torch
    from ray import tune

    experiment = from_dict(config["experiment"])
    torch.set_num_threads(max(1, int(experiment.resources.cpus_per_worker)))
    device = "cuda" if experiment.resources.gpus_per_worker and torch.cuda.is_available() else "cpu"

    def report(metrics: dict) -> None:
        tune.report(trial.clean(metrics))

    try:
        trial.run(experiment, shared.open, vocabulary, Path(config["folder"]), report, device=device)
    except (NonFinite, UserError) as error:  # would happen again: the trial fails alone, no restart
        tune.report({"epoch": -1, "failed": trial.failure(error)})


def distributed_trial(config: dict, shared: Shared | Windowed, vocabulary: list[str]) -> None:
    """The driver of a Ray Train run; it waits while the workers train."""
    from ray.tune.integration.ray_train import TuneReportCallback

    from orchestrator.train import make_trainer

    make_trainer(from_dict(config["experiment"]), shared, vocabulary, Path(config["folder"]), callbacks=[TuneReportCallback()]).fit()


# ---- the driver -----------------------------------------------------------------------------------------------------


def run(experiment: Experiment, *, resume: str | None = None, fresh: bool = False, dry_run: bool = False, say=print) -> int:
    """Search, confirm, evaluate, report.   -> exit code"""
    if resume:
        experiment = runs.find(experiment.root, resume).experiment()
    plan.check(experiment)
    sources.check(experiment.data, experiment.root)  # refuse before Ray starts
    for text in plan.remarks(experiment, experiment.search.arms):
        say(f"note: {text}")
    if dry_run:
        placement = cluster.place(experiment, cluster.capacity())
        say(describe_plan(experiment, placement))
        return 0
    cluster.start()
    placement = cluster.place(experiment, cluster.capacity())
    used = sources.prepare(experiment.data, experiment.root, say)
    this = runs.start(experiment, "sweep", used.manifest, fresh=fresh) if not resume else runs.find(experiment.root, resume)
    with this.locked():
        if this.finished and not budget_changed(this, experiment):
            say(f"{this.name} has finished (--fresh starts another)")
            say(outcome(this))
            return 0
        ledger = this.ledger()
        so_far = f": {len(ledger)} trials have finished" if ledger else ""
        say(f"{'continuing' if this.state else 'starting'} {this.name} in {this.folder}{so_far}")
        runs.begin(this, experiment, used.manifest, used.uri)
        epochs = this.state.get("epochs_by_arm")  # of the first attempt: a machine's seconds may differ today
        epochs = cost.equal_epochs(experiment) if epochs is None else epochs
        this.update(metric=experiment.search.metric, mode=experiment.search.mode, epochs_by_arm=epochs)
        return _search(this, experiment, used, placement, say)


def _search(this: runs.Run, experiment: Experiment, used: sources.Sources, placement: cluster.Placement, say) -> int:
    """From decoded data to the report; however it ends, run and MLflow are left in a final state."""
    code = 1
    tracker = runs.open_tracker(this, experiment)
    sweep = Sweep(this, experiment, tracker, placement, say)
    try:
        shared = used.decode(windowed=this.state.get("windowed"), say=say)
        this.update(windowed=isinstance(shared, Windowed))  # the order of items follows from it
        if not tracker.ready():  # the database is made before any trial
            say(f"tracking: {tracker.problem}; training goes on, what it misses is kept in {this.folder}")
        sweep.fit(shared, used.words())
        code = sweep.finish(shared)
    except KeyboardInterrupt:
        code = 130
        this.update(state="interrupted", ended=time.time())
        say(f"{this.name} interrupted with {len(this.ledger())} trials finished; the same command continues it")
    except BaseException as error:
        this.update(state="failed", ended=time.time(), error=trial.failure(error))
        raise
    finally:
        sweep.board.close()
        this.update(spent=sweep.meter.spent())
        ending = {0: "FINISHED", 130: "KILLED"}.get(code, "FAILED")
        tracker.end(PARENT, ending, tags={"stopped_by": {0: this.state.get("stopped_by", ""), 130: "interrupt"}.get(code, "error")})
        if remaining := tracker.close():
            say(remaining)
    return code


class Sweep:
    """One sweep's driver: hears every epoch, decides with the schedulers, writes the ledger before Tune is told."""

    def __init__(self, this: runs.Run, experiment: Experiment, tracker, placement: cluster.Placement, say):
        self.run, self.experiment, self.tracker, self.placement, self.say = this, experiment, tracker, placement, say
        ledger = [r for r in this.ledger() if r["stopped_by"] != "budget"]  # a trial the budget cut goes on where it was
        self.plan = plan.Plan(experiment, ledger, unfinished(this.folder), this.state["epochs_by_arm"])
        self.schedulers = {arm: make_scheduler(experiment, epochs) for arm, epochs in self.plan.epochs.items()}
        for record in ledger:
            self._replay(record)
        self.trials: dict[str, plan.Trial] = {}
        self.histories: dict[str, dict[int, dict]] = {}
        self.since: dict[str, float] = {}
        self.meter = budget.Meter(self, this.state.get("spent"))
        self.plan.gate = self.meter.gate
        self.board = Board(self.plan, experiment, placement.concurrent, say)
        self.varying = {"seed", "aml.tau", "aml.rho", "aml.mode", "aml.preset", "aml.rate", *experiment.search.dimensions}
        tracker.run(PARENT, this.name, params=experiment.params(self.varying), tags=self._tags() | {"sweep": this.name})
        tracker.artifact(PARENT, this.folder / "config.yaml")

    def __deepcopy__(self, memo):
        return self

    def __reduce__(self):  # Tune pickles its callbacks into its own snapshot, which nobody reads
        return (str, ("sweep",))

    def fit(self, shared: Shared | Windowed, vocabulary: list[str]) -> None:
        """Run every trial the plan has; returns when none is left."""
        from ray import tune

        if self.plan.done:
            return
        cluster.quiet_tune()
        self.board.open()
        light = self.experiment.resources.light
        trainable = tune.with_parameters(light_trial if light else distributed_trial, shared=shared, vocabulary=vocabulary)
        resources = {"CPU": self.placement.cpus} | ({"GPU": self.placement.gpus} if self.placement.gpus else {})
        if not light:  # the workers have a placement group of their own
            resources = {"CPU": cluster.DRIVER_CPUS}
        from orchestrator.tune_seam import Ear, PlanSearcher, SweepScheduler

        tune.Tuner(
            tune.with_resources(trainable, resources),
            tune_config=tune.TuneConfig(
                search_alg=PlanSearcher(self),
                scheduler=SweepScheduler(self),
                num_samples=self.plan.total,
                reuse_actors=light,
                trial_name_creator=lambda t: t.config["trial"],
                trial_dirname_creator=lambda t: t.config["trial"],
            ),
            run_config=tune.RunConfig(
                name=f"attempt-{time.time_ns()}",
                storage_path=str(self.run.folder / "tune"),
                failure_config=tune.FailureConfig(max_failures=self.experiment.resources.max_failures if light else 0),
                callbacks=[Ear(self)],
                verbose=0,
            ),
        ).fit()
        if not self.plan.done:  # Tune turns SIGINT into an early return
            raise KeyboardInterrupt

    # -- what the seams call

    def next_config(self) -> dict | None:
        """The next trial's Tune config, its specification on disk first; None: nothing to start now."""
        if len(self.plan.live) >= self.placement.concurrent:
            return None
        spec = self.plan.next()
        if spec is None:
            return None
        self.trials[spec.id] = spec
        folder = self.run.folder / "trials" / spec.id
        trial.write_atomic(folder / "trial.json", plan.to_json(spec).encode())
        experiment = spec.experiment(self.experiment)
        return {"trial": spec.id, "experiment": experiment.to_dict(), "folder": str(folder)}

    def started(self, trial_id: str) -> None:
        spec = self.trials[trial_id]
        facts = spec.describe(self.experiment)
        self.since.setdefault(trial_id, time.time())
        self.histories.setdefault(trial_id, {})
        self.board.started(facts)
        flat = spec.experiment(self.experiment).leaves()
        params = {k: flat[k] for k in self.varying if k in flat and k != "seed"} | facts["params"]
        tags = self._tags() | {"sweep": self.run.name, "trial_id": trial_id, "seed": spec.seed, "arm": spec.arm, "stage": spec.stage}
        name = f"{spec.arm} tau={facts['tau']:g} rho={facts['rho']:g} seed={spec.seed}" + (" confirm" if spec.stage == "confirm" else "")
        self.tracker.run(trial_id, name, parent=PARENT, params={k: v for k, v in params.items() if v is not None}, tags=tags)

    def heard(self, trial_id: str, metrics: dict) -> tuple[str, str] | None:
        """An epoch of a trial.   -> (state, stopped_by) where the trial is over, decided and in the ledger; None: go on."""
        if metrics.get("failed"):
            return self._over(trial_id, "failed", "non-finite" if "non-finite" in metrics["failed"] else "error", metrics["failed"])
        epoch = {k: v for k, v in metrics.items() if k == "epoch" or k.split("/")[0] in OURS}
        if epoch["epoch"] not in self.histories[trial_id]:
            self.histories[trial_id][epoch["epoch"]] = epoch
            first = {self.experiment.search.metric: epoch.get(self.experiment.search.metric)}  # what MLflow's comparison opens with
            self.tracker.metrics(trial_id, epoch["epoch"], first | epoch)
            self.board.heard(self.trials[trial_id].describe(self.experiment), epoch)
            if text := vacuous_mask(self.trials[trial_id].experiment(self.experiment).aml, epoch):
                self.say(f"warning: {trial_id}: {text}")
        if epoch["epoch"] >= self.plan.epochs[self.trials[trial_id].arm]:
            return self._over(trial_id, "done", "", "")
        limit = self.experiment.search.time_limit_s
        if limit and time.time() - self.since[trial_id] > limit:
            return self._over(trial_id, "stopped", "time", "")
        if self.meter.gate("running", ""):
            return self._over(trial_id, "stopped", "budget", "")
        spec = self.trials[trial_id]
        if spec.stage == "search" and self._rung_stops(spec, epoch):
            return self._over(trial_id, "stopped", self.experiment.search.scheduler, "")
        return None

    def died(self, trial_id: str, error: str) -> None:
        """Tune gave the trial up, after its restarts."""
        if trial_id not in self.plan.records:
            self._over(trial_id, "failed", "error", error)

    def finish(self, shared: Shared | Windowed) -> int:
        """Baselines, cost, report, champion.   -> exit code"""
        from orchestrator import conclude

        self.run.update(stopped_by="budget" if self.plan.cut else "", budget=self.meter.stop() if self.plan.cut else None)
        return conclude.sweep(self, shared)

    # -- inside

    def _over(self, trial_id: str, state: str, stopped_by: str, error: str) -> tuple[str, str]:
        spec = self.trials[trial_id]
        folder = self.run.folder / "trials" / trial_id
        history = trial.read_history(folder) or list(self.histories.get(trial_id, {}).values())
        record = spec.describe(self.experiment) | {
            "overrides": spec.overrides,
            "state": state,
            "stopped_by": stopped_by,
            "error": error,
            "seconds": round(time.time() - self.since.get(trial_id, time.time()), 2),
            "epochs": len(history),
            "history": history,
        }
        self.run.append(record)
        self.plan.finished(record)
        self.meter.ended_s += record["seconds"]
        self.run.update(spent=self.meter.spent())
        for picture in sorted((folder / "pictures").glob("*.png"))[-1:]:
            self.tracker.artifact(trial_id, picture, "pictures")
        self.tracker.end(
            trial_id, "FAILED" if state == "failed" else "FINISHED", tags={"stopped_by": stopped_by, **({"error": error} if error else {})}
        )
        self.board.over(record)
        return state, stopped_by

    def _rung_stops(self, spec: plan.Trial, epoch: dict) -> bool:
        scheduler = self.schedulers[spec.arm]
        if scheduler is None:
            return False
        return scheduler.on_trial_result(None, _Stub(spec.id), _for_scheduler(epoch, self.experiment)) == "STOP"

    def _replay(self, record: dict) -> None:
        """Tell the arm's scheduler of a finished trial, so that rungs stand as they stood."""
        scheduler = self.schedulers[record["arm"]]
        if scheduler is None or record["stage"] != "search":
            return
        self.announce(record["trial"], record["arm"])
        for epoch in record["history"]:
            if epoch["epoch"] < self.plan.epochs[record["arm"]]:
                scheduler.on_trial_result(None, _Stub(record["trial"]), _for_scheduler(epoch, self.experiment))

    def announce(self, trial_id: str, arm: str) -> None:
        if self.schedulers[arm] is not None:
            self.schedulers[arm].on_trial_add(None, _Stub(trial_id))

    def _tags(self) -> dict:
        state = self.run.state
        return {"git_sha": state["git_sha"], "git_dirty": state["git_dirty"], "data_fingerprint": state["data"]["fingerprint"]}


class _Stub:
    """All that ASHA reads of a trial."""

    def __init__(self, trial_id: str):
        self.trial_id = trial_id


def make_scheduler(experiment: Experiment, epochs: int):
    """ASHA for one arm whose trials last `epochs`; None without a scheduler."""
    if experiment.search.scheduler == "none":
        return None
    from ray.tune.schedulers import ASHAScheduler

    asha, search = experiment.search.asha, experiment.search
    return ASHAScheduler(
        time_attr="epoch",
        metric=search.metric,
        mode=search.mode,
        max_t=epochs,
        grace_period=min(asha.grace, max(1, epochs - 1)),
        reduction_factor=asha.reduction,
    )


def _for_scheduler(epoch: dict, experiment: Experiment) -> dict:
    """ASHA never cuts a trial whose metric is NaN: the worst number stands for it."""
    value = epoch.get(experiment.search.metric)
    worst = -1e9 if experiment.search.mode == "max" else 1e9
    finite = isinstance(value, (int, float)) and math.isfinite(value)
    return {"epoch": epoch["epoch"], "training_iteration": epoch["epoch"], experiment.search.metric: value if finite else worst}


def unfinished(folder: Path) -> list[plan.Trial]:
    """Trials a killed sweep had started, in the order of their start."""
    found = sorted((folder / "trials").glob("*/trial.json"), key=lambda p: p.stat().st_mtime)
    return [plan.from_json(path.read_text("utf-8")) for path in found]


def describe_plan(experiment: Experiment, placement: cluster.Placement) -> str:
    """What a sweep would do: trials, placement and time."""
    made, search = plan.Plan(experiment, epochs=cost.equal_epochs(experiment)), experiment.search
    lines = [f"{experiment.name}: {made.total} trials of {experiment.train.epochs} epochs"]
    for arm in search.arms:
        settings = f"{len(made.settings[arm])} setting(s)" if search.method == "grid" else f"sampled by {search.method}"
        length = "" if made.epochs[arm] == experiment.train.epochs else f", {made.epochs[arm]} epochs each"
        lines.append(f"  {arm:16} {made.per_arm} search trials over {settings}, then {search.seeds.confirm} confirmation seeds{length}")
    if search.scheduler == "asha":
        lines.append(f"  ASHA inside each arm of the search: rungs from epoch {search.asha.grace}, one in {search.asha.reduction} goes on")
    lines.append(f"placement: {placement.arithmetic}")
    seconds, price = estimate_epoch_s(experiment), budget.hourly(experiment.resources)
    longest = max(made.epochs.values())
    hours, money = budget.estimate(search.budget, made.total, made.total_epochs, longest, seconds, placement.concurrent, price)
    if limits := search.budget.limits:
        lines.append("budget: " + ", ".join(f"{value:g} {name}" for name, value in limits.items()) + "; confirmation is kept room for")
    lines.append(
        f"time: about {seconds:.1f} s an epoch (measured on this machine just now), so at most {hours * 60:.0f} min ({hours:.2f} h) in all"
        + (" before ASHA stops trials" if search.scheduler == "asha" else "")
    )
    prices = f"{experiment.resources.price_per_gpu_hour:g} a GPU hour and {experiment.resources.price_per_cpu_hour:g} a CPU hour"
    none = "no prices given (resources.price_per_gpu_hour, resources.price_per_cpu_hour)"
    lines.append(f"cost: {f'at most {budget.money(money)} at {prices}' if price else none}")
    lines.append("nothing was started")
    return "\n".join(lines)


def estimate_epoch_s(experiment: Experiment) -> float:
    """Seconds of an epoch of one worker, from a few steps on noise at this experiment's sizes."""
    from aml.bench import step_seconds

    used = sources.check(experiment.data, experiment.root)
    if used is not None:
        counts = used.manifest["splits"][experiment.data.train_split]
        n = counts["sentences" if experiment.data.unit == "sentence" else "refs"]
    else:
        n = int(experiment.data.synth.images * 0.75 * 2.42)  # train share and refs an image of generated data
    n = min(n, experiment.data.train_limit or n)
    samples, seconds = step_seconds(experiment)
    return n * seconds / samples / experiment.resources.workers


def budget_changed(this: runs.Run, experiment: Experiment) -> bool:
    """Whether a sweep that its budget stopped is asked to go on with another one, which is not used up too."""
    stop, limits = this.state.get("budget"), experiment.search.budget
    if not stop or stop["limits"] == limits.limits:
        return False
    hours = {k: v / 3600 for k, v in this.state["spent"].items()}
    use = budget.Use(hours=hours["seconds"], trial_hours=hours["trial_seconds"], price=budget.hourly(experiment.resources))
    return not budget.used_up(limits, use)


def outcome(this: runs.Run) -> str:
    """The result of a finished sweep in a few lines."""
    from orchestrator import conclude

    return conclude.summary(this)
