"""Measure what the bookkeeping of many trials costs the driver: python -m orchestrator bench scale

The driver of a sweep (plan, search, ASHA, budget, ledger, log lines, MLflow's queue and its
thread) receives the events of simulated in-process trials directly. No Ray process runs, no model
trains, and MLflow is replaced by a double that counts its calls and answers at once, so that only
the project's own share is measured.
"""

import collections
import gc
import logging
import math
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from aml.errors import UserError
from orchestrator import cluster, storage
from orchestrator.config import METHODS, Experiment, from_dict
from orchestrator.search import TrialSpec
from orchestrator.sweep import Sweep
from orchestrator.tracking import ExperimentClient, MemoryTracker, Tracker

logger = logging.getLogger(__name__)

CONCURRENT = 16
"""Trials that run at a time."""

EPOCHS = 4
"""Epochs of a trial that ASHA does not stop."""


def measure_scale(counts: list[int], method: str) -> dict[str, Any]:
    """Measure each number of trials in a process of its own, and log the result.

    Args:
        counts: Numbers of search trials.
        method: Search method, one of METHODS.

    Returns:
        The settings, and under "rows" what `measure_count` returns for each number.

    Raises:
        UserError: A number is below 1, or there is no such method.
    """
    if min(counts) < 1 or method not in METHODS:
        raise UserError(
            f"bench scale was asked for {counts} trials by {method!r}; "
            f"give 1 or more, and one of {', '.join(METHODS)}"
        )
    rows = []
    for count in counts:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            row = pool.submit(measure_count, count, method).result()
        rows.append(row)
        logger.info(
            f"{row['trials']:>6} trials by {method}: {row['trials_per_minute']:8.0f} a minute "
            f"({row['cpu_ms_per_trial']:.2f} ms of CPU each, the last tenth "
            f"{row['cpu_ms_per_trial_last_tenth'] or 0:.2f}), "
            f"{row['driver_mb']:.1f} MB of driver memory, "
            f"{row['mlflow_calls_per_trial']:.1f} MLflow calls a trial, "
            f"resumed in {row['resume_s']:.2f} s"
        )
    return {
        "method": method,
        "epochs": EPOCHS,
        "concurrent": CONCURRENT,
        "ray": False,
        "rows": rows,
    }


def measure_count(count: int, method: str) -> dict[str, Any]:
    """Measure the bookkeeping of `count` search trials of one arm.

    Args:
        count: Number of trials.
        method: Search method.

    Returns:
        trials: Trials that ended.
        epochs: Epochs that were reported.
        trials_per_minute, ms_per_trial: Wall-clock time.
        cpu_ms_per_trial, cpu_ms_per_trial_last_tenth: CPU time of this process, milliseconds; a
            cost that grows with the number of trials shows in the last tenth.
        driver_mb: Resident memory that the trials added, MiB.
        ledger_mb: Size of the ledger, MiB.
        mlflow_calls_per_trial: Calls of the MLflow client.
        resume_s: Seconds to read the ledger and resume the sweep.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        base = experiment(root, count, method)
        _warm_up(root / "warm", base, min(count, 2 * CONCURRENT))
        run = open_run(root, base)
        tracker = CountingTracker(run.folder, root)
        tracker.ready()
        sweep = start(run, base, tracker)
        gc.collect()
        before = _Resources.now()
        ends = play(sweep, count)
        tracker.flush(600)
        used = _Resources.now().since(before)
        calls = tracker.calls.total()
        begun = time.perf_counter()
        start(open_run(root, base), base, MemoryTracker(run.folder))
        resume_s = time.perf_counter() - begun
        tracker.close()
        trials = len(ends)
        return {
            "trials": trials,
            "epochs": sum(r["epochs"] for r in sweep.plan.results.records.values()),
            "trials_per_minute": round(60 * trials / used.wall_s),
            "ms_per_trial": round(1000 * used.wall_s / trials, 3),
            "cpu_ms_per_trial": round(1000 * used.cpu_s / trials, 3),
            "cpu_ms_per_trial_last_tenth": _last_tenth_ms(ends),
            "driver_mb": round(used.resident_mb, 1),
            "ledger_mb": round((run.folder / "ledger.jsonl").stat().st_size / 2**20, 2),
            "mlflow_calls_per_trial": round(calls / trials, 2),
            "resume_s": round(resume_s, 3),
        }


@dataclass(frozen=True)
class _Resources:
    """Time and memory of this process."""

    wall_s: float
    cpu_s: float
    resident_mb: float

    @classmethod
    def now(cls) -> "_Resources":
        return cls(time.perf_counter(), time.process_time(), resident_mb())

    def since(self, before: "_Resources") -> "_Resources":
        return _Resources(
            self.wall_s - before.wall_s,
            self.cpu_s - before.cpu_s,
            self.resident_mb - before.resident_mb,
        )


def _warm_up(root: Path, base: Experiment, count: int) -> None:
    """Run some trials in a run of their own, which fills imports and caches."""
    # the tracker's thread would otherwise import this among the first trials, which takes seconds
    import mlflow.entities  # noqa: F401

    run = open_run(root, base)
    play(start(run, base, MemoryTracker(run.folder)), count)


def _last_tenth_ms(ends: list[float]) -> float | None:
    """Return CPU milliseconds a trial over the last tenth of the trials; None for a single trial.

    Args:
        ends: CPU seconds of this process at the end of each trial.
    """
    tail = max(1, len(ends) // 10)
    if tail == len(ends):
        return None
    return round(1000 * (ends[-1] - ends[-1 - tail]) / tail, 3)


def experiment(root: Path, count: int, method: str) -> Experiment:
    """Return the settings: one arm, `count` search trials, ASHA, no confirmation.

    The budget is never reached; it is there so that its bookkeeping is measured too.

    Args:
        root: Folder of all runs.
        count: Number of search trials.
        method: Search method; a grid has as many values as the trials need.
    """
    side = math.ceil(math.sqrt(count))
    steps = [round(0.1 + 0.8 * i / side, 6) for i in range(side)]
    wide = {"low": 0.1, "high": 0.9}
    return from_dict(
        {
            "name": "scale",
            "data": {"train": "none"},
            "train": {"epochs": EPOCHS},
            "search": {
                "arms": ["aml/calibrated"],
                "space": {"aml.tau": steps, "aml.rho": steps}
                if method == "grid"
                else {"aml.tau": wide, "aml.rho": wide},
                "method": method,
                "scheduler": {"name": "asha", "grace": 1, "reduction": 2},
                "trials": count,
                "seeds": {"confirm": 0},
                "budget": {"hours": 1000},
            },
            "storage": {"root": str(root)},
        }
    )


def open_run(root: Path, base: Experiment) -> storage.Run:
    """Return the run in a folder, which is created if it is not there."""
    run = storage.Run(root / "scale", "sweep")
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / "config.yaml").write_text(base.to_yaml(), "utf-8")
    run.update(
        epochs_by_arm={},
        git_sha="none",
        git_dirty=False,
        command="bench scale",
        data={
            "fingerprint": "none",
            "uri": "none",
            "dataset": "none",
            "split_by": "none",
            "splits": {},
        },
    )
    return run


def start(run: storage.Run, base: Experiment, tracker: Tracker | MemoryTracker) -> Sweep:
    """Start or resume the driver of a sweep.

    Args:
        run: Run of the sweep.
        base: Settings of the sweep.
        tracker: Tracker that receives the trials.
    """
    sweep = Sweep(run, base, tracker, cluster.Placement(CONCURRENT, {}, ""))
    sweep.start()
    return sweep


def play(sweep: Sweep, count: int) -> list[float]:
    """Take trials from the driver and report their epochs as Tune would, an epoch of each in turn.

    Args:
        sweep: Driver of the sweep.
        count: Number of trials that end.

    Returns:
        CPU seconds of this process at the end of each trial.
    """
    live: dict[str, int] = {}
    ends: list[float] = []
    while len(ends) < count:
        while len(live) < CONCURRENT and isinstance(config := sweep.searcher.suggest(""), dict):
            trial: Any = SimpleNamespace(config=config)  # Tune's Trial, as far as it is read
            for callback in sweep.callbacks:
                callback.on_trial_start(0, [], trial)
            live[config["trial"]] = 0
        for trial_id in list(live):
            live[trial_id] += 1
            spec = sweep.trials.running[trial_id].spec
            if sweep.scheduler.handle_result(trial_id, epoch_of(spec, live[trial_id])):
                del live[trial_id]
                ends.append(time.process_time())
    return ends


def epoch_of(spec: TrialSpec, epoch: int) -> dict[str, float]:
    """Return what a trial reports, with as many metrics as a real one; tau 0.4 scores best."""
    value = epoch / (epoch + 1) - abs(spec.overrides["aml.tau"] - 0.4)
    names = [
        "val/oIoU",
        *(f"val/P0.{k}" for k in range(5, 10)),
        *(f"aml/{k}" for k in range(12)),
        "mem/peak_mb",
        "time/train_s",
        "optim/lr",
    ]
    return {
        "epoch": epoch,
        "train/loss": 1 - value,
        "val/mIoU": value,
        "val/mIoU_best": value,
        "time/epoch_s": 1.0,
    } | dict.fromkeys(names, value)


def resident_mb() -> float:
    """Return the resident memory of this process, MiB."""
    pages = int(Path("/proc/self/statm").read_text("utf-8").split()[1])
    return pages * 4096 / 2**20


class CountingTracker(Tracker):
    """A tracker whose store only counts calls."""

    def __init__(self, folder: Path, root: Path) -> None:
        self.calls: collections.Counter[str] = collections.Counter()
        super().__init__(folder, None, "scale", root)

    def _connect(self) -> ExperimentClient:
        return UnwatchedClient(
            self.uri, self.experiment, self.root, self.folder, client=CountingClient(self.calls)
        )


class UnwatchedClient(ExperimentClient):
    """A client whose runs are not in any store, so that MLflow's collector of load cannot start."""

    def _watch_machine(self, run_key: str) -> None:
        """Start no collector."""


class CountingClient:
    """The methods of MlflowClient that the tracker uses; only the number of calls is kept."""

    def __init__(self, calls: collections.Counter[str]) -> None:
        self.calls = calls

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls[name] += 1
            if name == "search_runs":
                return EmptyPage()
            return SimpleNamespace(
                info=SimpleNamespace(run_id=f"run{self.calls['create_run']}"),
                experiment_id="0",
                lifecycle_stage="active",
                tags={},
            )

        return call


class EmptyPage(list):
    """An empty and last page of MLflow's answers."""

    token = None
