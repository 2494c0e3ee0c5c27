"""A sweep's driver: hears every epoch, decides with the schedulers under the plan and the budget, writes the ledger; resumed from what it wrote.

The Plan says which trial is next, the ledger holds what has finished; both outlive the process, so Tune's own state is not needed to go
on. Without Ray, but for the schedulers' arithmetic and for having trials saved.
"""

import contextlib
import itertools
import math
import time
from dataclasses import dataclass, field
from pathlib import Path

from aml.errors import NotSaved, RunError
from aml.training import ENDED, vacuous_mask
from orchestrator import cluster, storage, tracking, utils
from orchestrator.config import Experiment
from orchestrator.data import ObjectStoreBlocks, StreamingBlocks
from orchestrator.search import (
    BudgetTracker,
    Generations,
    Plan,
    ThroughputEstimator,
    TrialSpec,
    trial_from_json,
    trial_to_json,
)
from orchestrator.sweep.progress import ProgressTable

PARENT = "sweep"

"""The tracker's key of the parent run."""

TRANSIENT_REASONS = ("disk", "away")

"""Ends for want of room on the disk, or of shards that answer: the same command goes on with the trial where it was."""

RESUMABLE_REASONS = ("budget", *TRANSIENT_REASONS)

"""Ends that are not a trial's own."""

ACCOUNT_S = 60.0

"""Between notes of what has been spent: a driver that is killed loses no more of it."""

METRIC_PREFIXES = ("train", "val", "aml", "time", "mem", "optim")

"""Families of the loop's metrics; Tune adds keys of its own to each result."""


@dataclass
class RunningTrial:
    """A trial under way, as the driver knows it."""

    spec: TrialSpec
    experiment: Experiment
    """Its own: built once, since checking it takes milliseconds."""
    facts: dict
    since: float = 0
    """Unix time of its start; 0: handed out, not started."""
    history: dict[int, dict] = field(default_factory=dict)
    """epoch -> metrics"""
    sign: float = math.inf
    """time.monotonic() when it was last heard of; infinite: not started."""
    noted: int = 0
    """Notes of its process that have been said."""


class Sweep:
    """One sweep's driver: hears every epoch, decides with the schedulers, writes the ledger before Tune is told."""

    def __init__(
        self, this: storage.Run, experiment: Experiment, tracker, placement: cluster.Placement, say
    ):
        self.run, self.experiment, self.tracker, self.placement, self.say = (
            this,
            experiment,
            tracker,
            placement,
            say,
        )
        ledger = [r for r in this.ledger() if r["stopped_by"] not in RESUMABLE_REASONS]
        self.generations = Generations(this.folder, this.delivered)
        started = unfinished(this.folder)
        by_generations = experiment.search.scheduler == "pbt"
        reached = {
            t.id: h[-1]
            for t in started
            if by_generations and (h := storage.read_history(this.folder / "trials" / t.id))
        }
        self.plan = Plan(
            experiment,
            ledger,
            started,
            this.state["epochs_by_arm"],
            self.generations.decisions,
            reached,
        )
        self.schedulers = {
            arm: make_scheduler(experiment, epochs) for arm, epochs in self.plan.epochs.items()
        }
        self.pace = ThroughputEstimator(
            self.plan, experiment, placement.concurrent, this.state.get("estimate")
        )
        for record in ledger:
            self.pace.replay(record)
        over = {r["trial"]: (r["arm"], r["history"]) for r in ledger if r["stage"] == "search"}
        goes_on = [
            t for t in started if t.stage == "search" and t.id not in self.plan.records
        ]  # those have passed rungs, too
        heard = over | {
            t.id: (t.arm, storage.read_history(this.folder / "trials" / t.id)) for t in goes_on
        }
        stops = self._judge_again(heard)
        self.judged = {t.id: heard[t.id][1] for t in goes_on if t.id in stops}
        """History of unfinished trials whose last epoch should have ended them: their driver was interrupted or lost before it said so."""
        self.live: dict[str, RunningTrial] = {}
        self.interrupted, self.said = False, False
        self.stopped: list[str] = []
        """Distributed trials that did not end by themselves and whose places nobody has been told to take yet."""
        self.broken: RunError | None = None
        """Why what was decided could not be written: nobody may go on."""
        self.accounted = time.monotonic()
        self.pending: frozenset[str] = frozenset()
        """Trials that waited for room at the last account."""
        self.waits = False
        """For room in the cluster, which has been said."""
        self.meter = BudgetTracker(self, this.state.get("spent"))
        self.plan.gate = self.meter.gate
        self.board = ProgressTable(self.plan, self.pace, say)
        self.seconds: dict[str, float] = {}
        """That trials under way took in their earlier turns."""
        self.varying = {
            "seed",
            "aml.tau",
            "aml.rho",
            "aml.mode",
            "aml.preset",
            "aml.rate",
            *experiment.search.dimensions,
        }
        tracker.run(
            PARENT,
            this.name,
            params=experiment.params(self.varying),
            tags=self._tags() | {"sweep": this.name},
        )
        tracking.log_dataset(tracker, PARENT, this, experiment)
        tracker.artifact(PARENT, this.folder / "config.yaml")
        self._end_generations()

    def __deepcopy__(self, memo):
        return self

    def __reduce__(self):  # Tune pickles its callbacks into its own snapshot, which nobody reads
        return (str, ("sweep",))

    def interrupt(self) -> None:
        """No trial is started any more, and those that run end at their next epoch."""
        self.interrupted = True

    def save(self) -> None:
        """The same, and those that run are saved where they stand: returns when they are, or when time is up. Called by a thread."""
        seconds = self.experiment.resources.grace_s
        self.interrupted = self.said = True
        self.say(utils.TERMINATING.format(seconds))
        cluster.request_checkpoints(
            lambda: {trial_id for trial_id, live in list(self.live.items()) if live.since}, seconds
        )

    # -- what the seams call

    def next_config(self) -> dict | None:
        """The next trial's Tune config, its specification on disk first; None: nothing to start now."""
        if len(self.plan.live) >= self.placement.concurrent or self.interrupted:
            return None
        spec = self.plan.next()
        if (
            spec is None and self._end_generations()
        ):  # a budget lets no member join any more: those that wait for it are all there are
            spec = self.plan.next()
        if spec is None:
            return None
        folder = self.run.folder / "trials" / spec.id
        if not (
            folder / "trial.json"
        ).exists():  # of a population it keeps what the member began with
            try:
                utils.atomic_write(folder / "trial.json", trial_to_json(spec).encode())
            except NotSaved as error:
                return self._break(error)
        legs = spec.legs(self.experiment)
        heard = (
            {epoch["epoch"]: epoch for epoch in storage.read_history(folder)} if spec.until else {}
        )
        self.live[spec.id] = RunningTrial(spec, legs[-1][0], spec.facts(legs[-1][0]), history=heard)
        if spec.id in self.judged:
            self._end_judged(spec.id)
            return self.next_config()
        return {
            "trial": spec.id,
            "turn": f"{spec.id}-to-{spec.until}" if spec.until else spec.id,
            "legs": [(experiment.for_workers(), until) for experiment, until in legs],
            "folder": storage.to_uri(folder),
            "over": self._hand_over(),
            "exact": bool(
                spec.until
            ),  # what a node has of a population's member may be what it was before it went on from another's copy
        }

    def started(self, trial_id: str) -> None:
        """A trial starts, or starts again after its process was lost."""
        live = self.live[trial_id]
        spec, facts = live.spec, live.facts
        live.since = live.since or time.time()
        live.sign = time.monotonic()
        self.board.started(facts)
        first = self.plan.first(spec)  # MLflow's params are those it began with: they cannot change
        flat, facts = (
            (live.experiment.leaves(), facts)
            if first is spec
            else (first.experiment(self.experiment).leaves(), first.describe(self.experiment))
        )
        params = {k: flat[k] for k in self.varying if k in flat and k != "seed"} | facts["params"]
        tags = self._tags() | {
            "sweep": self.run.name,
            "trial_id": trial_id,
            "seed": spec.seed,
            "arm": spec.arm,
            "stage": spec.stage,
        }
        name = f"{spec.arm} tau={facts['tau']:g} rho={facts['rho']:g} seed={spec.seed}" + (
            " confirm" if spec.stage == "confirm" else ""
        )
        self.tracker.run(
            trial_id,
            name,
            parent=PARENT,
            params={k: v for k, v in params.items() if v is not None},
            tags=tags,
        )
        tracking.log_dataset(self.tracker, trial_id, self.run, live.experiment)

    def heard(self, trial_id: str, metrics: dict) -> tuple[str, str] | None:
        """An epoch of a trial.   -> (state, stopped_by) where the trial is over, decided and in the ledger; None: go on."""
        live = self.live.get(trial_id)
        if live is None:  # it was on its way when the trial was judged
            return None
        self._say_interrupted()  # nobody ticks any more where this trial was the last under way
        live.sign = time.monotonic()
        self._say_notes(trial_id, live)
        if metrics.get("failed"):
            return self._over(trial_id, "failed", metrics["kind"], metrics["failed"])
        epoch = {
            k: v for k, v in metrics.items() if k == "epoch" or k.split("/")[0] in METRIC_PREFIXES
        }
        if epoch["epoch"] not in live.history:
            self._note(trial_id, epoch)
            self.pace.epoch(live.spec.arm, epoch["time/epoch_s"])
            self.board.heard(live.facts, epoch)
            if text := self.pace.correction(self.board.under_way(), self.meter.spent()):
                self.say(text)
            if text := vacuous_mask(live.experiment.aml, epoch):
                self.say(f"warning: {trial_id}: {text}")
        if epoch["epoch"] >= self.plan.epochs[live.spec.arm]:
            return self._over(trial_id, "done", "", "")
        if (
            live.spec.stage == "search"
            and self._ask_scheduler(trial_id, live.spec.arm, epoch) == "STOP"
        ):  # before what only cuts it short
            return self._over(
                trial_id, "stopped", self.experiment.search.scheduler, "", epoch["epoch"]
            )
        if self.interrupted:
            return "stopped", "interrupt"  # not in the ledger: it goes on
        limit = self.experiment.search.time_limit_s
        if limit and self._seconds(trial_id) > limit:
            return self._over(trial_id, "stopped", "time", "", epoch["epoch"])
        if self.meter.gate("running", ""):
            return self._over(trial_id, "stopped", "budget", "", epoch["epoch"])
        if live.spec.until and epoch["epoch"] >= live.spec.until:
            return self._pause(trial_id, epoch)
        return None

    def died(self, trial_id: str, error: str) -> None:
        """Tune gave the trial up, after its restarts."""
        if trial_id in self.live and not self.interrupted:
            self._over(trial_id, "failed", "error", error)

    def clear(self, trial_id: str) -> None:
        """Of a trial whose process was lost for good: what it was writing."""
        storage.drop_drafts(self.run.folder / "trials" / trial_id)

    def tick(self, pending: frozenset[str] = frozenset()) -> None:
        """Several times a second.   pending: trials that Tune has not found room for, or for which it was lost"""
        self._say_interrupted()
        if time.monotonic() - self.accounted > ACCOUNT_S:
            self._account()
            self._say_what_waits(pending)

    def hangs(self, trial_id: str) -> bool:
        """Whether a running trial has been silent for too long: then it has failed, and is to be killed."""
        limit = self.experiment.resources.trial_timeout_s
        live = self.live.get(trial_id)
        if limit is None or live is None or time.monotonic() - live.sign <= limit:
            return False
        text = f"no epoch was finished in {limit:g} s (resources.trial_timeout_s), so it was killed; raise that limit if it was only slow"
        self._over(trial_id, "failed", "timeout", text)
        return True

    def finish(self, shared: ObjectStoreBlocks | StreamingBlocks) -> int:
        """Baselines, cost, report, champion.   -> exit code"""
        from orchestrator.sweep import finish

        self.run.update(
            stopped_by="budget" if self.plan.cut else "",
            budget=self.meter.stop() if self.plan.cut else None,
        )
        return finish.finish_sweep(self, shared)

    # -- inside

    def _note(self, trial_id: str, epoch: dict) -> None:
        """An epoch that was not known yet, for the ledger and MLflow."""
        live = self.live[trial_id]
        live.history[epoch["epoch"]] = epoch
        first = {
            self.experiment.search.metric: epoch.get(self.experiment.search.metric)
        }  # what MLflow's comparison opens with
        set_to = {
            f"setting/{k}": v
            for k, v in live.spec.overrides.items()
            if live.spec.until and isinstance(v, (int, float))
        }
        self.tracker.epoch(trial_id, first | epoch | set_to)

    def _say_interrupted(self) -> None:
        if self.interrupted and not self.said:
            self.said = True
            self.say(utils.INTERRUPTED)

    def _break(self, error: RunError) -> None:
        """Nobody goes on; fit raises it, since Tune would put a traceback in its place."""
        self.broken = self.broken or error
        self.interrupted = self.said = True

    def _account(self) -> None:
        self.accounted = time.monotonic()
        with contextlib.suppress(NotSaved):  # the ledger or the trials say it
            self.run.update(spent=self.meter.spent())

    def _say_what_waits(self, pending: frozenset[str]) -> None:
        """Of trials that waited at the last account, too; once, until none does."""
        with contextlib.suppress(Exception):  # the head is away
            if not self.experiment.resources.light:  # what Tune sees of those is there at once
                pending = frozenset(
                    trial_id
                    for trial_id, live in self.live.items()
                    if live.since and cluster.is_pending(trial_id)
                )
            before, self.pending = self.pending, pending
            if not before & pending:
                self.waits = False
            elif not self.waits:
                self.say(
                    f"{len(pending)} trial(s) wait: each needs {cluster.required_resources(self.experiment.resources)}, and the cluster has "
                    f"{cluster.available_resources(self.experiment.resources)} free; without room they start when others end, or nodes come"
                )
                self.waits = True

    def _pause(self, trial_id: str, epoch: dict) -> tuple[str, str]:
        """A member of a population waits for the others of its generation."""
        self.meter.ended_s += self._seconds(trial_id) - self.seconds.get(trial_id, 0.0)
        self.seconds[trial_id] = self._seconds(trial_id)
        storage.try_download(
            self.run.folder / "trials" / trial_id, wanted=storage.without_checkpoints, wait=False
        )  # its history, for its next turn
        self.plan.pauses(self.live.pop(trial_id).spec, epoch)
        self.board.rests(trial_id)
        self._end_generations()
        return "stopped", "turn"

    def _end_generations(self) -> bool:
        """Those whose members are all there: on disk before anybody goes on.   -> whether there was one"""
        count = 0
        while not self.broken and (ended := self.plan.generation()):
            count += 1
            try:
                for text in self.generations.end(*ended):
                    self.say(text)
            except RunError as error:
                self._break(error)
            for live in (
                self.live.values()
            ):  # the driver heard nobody meanwhile, which may have been a minute
                live.sign = max(live.sign, time.monotonic())
        return count > 0 and not self.broken

    def _seconds(self, trial_id: str) -> float:
        """That a live trial has taken so far, its earlier turns included."""
        since = self.live[trial_id].since
        return self.seconds.get(trial_id, 0.0) + (time.time() - since if since else 0.0)

    def _over(
        self, trial_id: str, state: str, stopped_by: str, error: str, judged: int | None = None
    ) -> tuple[str, str]:
        """judged: the epoch at which it was stopped; a distributed trial's workers train on meanwhile, and what came after it is none of its result."""
        seconds = round(self._seconds(trial_id), 2)
        live = self.live.pop(trial_id)
        folder = self.run.folder / "trials" / trial_id
        storage.try_download(
            folder, wanted=storage.without_checkpoints, wait=False
        )  # the history of what was heard does without, the report asks again
        self._say_notes(trial_id, live)
        epochs = live.history | {epoch["epoch"]: epoch for epoch in storage.read_history(folder)}
        history = [
            epochs[number] for number in sorted(epochs) if judged is None or number <= judged
        ]
        record = live.facts | {
            "overrides": live.spec.overrides,
            "state": state,
            "stopped_by": stopped_by,
            "error": error,
            "seconds": seconds,
            "epochs": len(history),
            "history": history,
        }
        if path := live.spec.path or self.plan.path(trial_id):
            record["path"] = path
        # MLflow first: a driver killed between the two trains the trial again, which opens its run again; nobody would end the run of one in the ledger.
        for picture in sorted((folder / "pictures").glob("*.png"))[-1:]:
            self.tracker.artifact(trial_id, picture, "pictures")
        self.tracker.end(
            trial_id,
            "FAILED" if state == "failed" else "FINISHED",
            tags={"stopped_by": stopped_by, **({"error": error} if error else {})},
        )
        try:
            self.run.append(record)
        except NotSaved as error:  # the next command goes on with it
            self._break(error)
            return state, stopped_by
        self.plan.finished(record)
        self.pace.ended(record)
        self.meter.ended_s += seconds - self.seconds.pop(trial_id, 0.0)
        self._account()
        self.board.over(record)
        if state != "done" and not self.experiment.resources.light:
            self.stopped.append(trial_id)
        self._end_generations()
        return state, stopped_by

    def _hand_over(self) -> list[str]:
        """Trials whose places the next one is to take; each is handed out once."""
        over, self.stopped = self.stopped, []
        return over

    def _say_notes(self, trial_id: str, live: RunningTrial) -> None:
        notes = storage.read_notes(self.run.folder / "trials" / trial_id)
        for text in notes[live.noted :]:
            self.say(f"note: {trial_id}: {text}")
        live.noted = len(notes)

    def _end_judged(self, trial_id: str) -> None:
        """What its last driver would have said and done."""
        self.started(trial_id)
        for epoch in self.judged[trial_id]:
            self._note(trial_id, epoch)
        self._over(
            trial_id,
            "stopped",
            self.experiment.search.scheduler,
            "",
            self.judged.pop(trial_id)[-1]["epoch"],
        )

    def _ask_scheduler(self, trial_id: str, arm: str, epoch: dict) -> str:
        scheduler = self.schedulers[arm]
        return (
            scheduler.on_trial_result(None, _Stub(trial_id), _for_scheduler(epoch, self.experiment))
            if scheduler
            else "CONTINUE"
        )

    def _judge_again(self, heard: dict[str, tuple[str, list[dict]]]) -> set[str]:
        """Tell the arms' schedulers what those of an earlier attempt heard, in the order in which epochs ended, so that rungs stand as they stood.

        heard: {trial: (arm, history)}   -> those that their last epoch ends
        """
        for trial_id, (arm, _) in heard.items():
            self.announce(trial_id, arm)
        verdicts = {}
        for trial_id, epoch in in_order(
            {trial_id: history for trial_id, (_, history) in heard.items()}
        ):
            arm = heard[trial_id][0]
            verdicts[trial_id] = (
                epoch["epoch"] < self.plan.epochs[arm]
                and self._ask_scheduler(trial_id, arm, epoch) == "STOP"
            )
        return {trial_id for trial_id, stops in verdicts.items() if stops}

    def announce(self, trial_id: str, arm: str) -> None:
        if self.schedulers[arm] is not None:
            self.schedulers[arm].on_trial_add(None, _Stub(trial_id))

    def _tags(self) -> dict:
        state = self.run.state
        return {
            "git_sha": state["git_sha"],
            "git_dirty": state["git_dirty"],
            "data_fingerprint": state["data"]["fingerprint"],
        }


class _Stub:
    """All that ASHA reads of a trial."""

    def __init__(self, trial_id: str):
        self.trial_id = trial_id


def in_order(histories: dict[str, list[dict]]) -> list[tuple[str, dict]]:
    """(trial, epoch) as the epochs ended; a trial's own in its order, whatever the clocks of the machines that it was on."""
    told = []
    for trial_id, history in histories.items():
        ended = itertools.accumulate((epoch.get(ENDED) or 0.0 for epoch in history), max)
        told += [(when, trial_id, epoch) for when, epoch in zip(ended, history, strict=True)]
    return [(trial_id, epoch) for _, trial_id, epoch in sorted(told, key=lambda one: one[0])]


def make_scheduler(experiment: Experiment, epochs: int):
    """ASHA for one arm whose trials last `epochs`; None without a scheduler."""
    if experiment.search.scheduler != "asha":
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
    return {
        "epoch": epoch["epoch"],
        "training_iteration": epoch["epoch"],
        experiment.search.metric: value if finite else worst,
    }


def unfinished(folder: Path) -> list[TrialSpec]:
    """Trials a killed sweep had started, in the order of their start."""
    found = sorted((folder / "trials").glob("*/trial.json"), key=lambda p: p.stat().st_mtime)
    return [trial_from_json(path.read_text("utf-8")) for path in found]
