"""What the bookkeeping of many trials costs the driver: python -m orchestrator bench scale

The driver of a sweep (plan, search, ASHA, budget, ledger, lines, MLflow's queue and the thread behind it) is told of trivial light trials
directly: no Ray process runs, no model trains, and MLflow is a double that counts its calls and answers at once. What remains is our share.
"""

import collections
import gc
import math
import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace

from aml.errors import UserError
from orchestrator import cluster, storage
from orchestrator.config import METHODS, Experiment, from_dict
from orchestrator.sweep import Sweep
from orchestrator.tracking import MemoryTracker, Server, Tracker

CONCURRENT = 16

EPOCHS = 4


def measure_scale(counts: list[int], method: str, say=print) -> dict:
    """Each count in a process of its own.   -> {"method", "epochs", "concurrent", "ray": False, "rows": [row of `once`]}

    UserError for a count or a method that cannot be.
    """
    if min(counts) < 1 or method not in METHODS:
        raise UserError(
            f"bench scale was asked for {counts} trials by {method!r}; give 1 or more, and one of {', '.join(METHODS)}"
        )
    rows = []
    for count in counts:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            rows.append(pool.submit(once, count, method).result())
        r = rows[-1]
        say(
            f"{r['trials']:>6} trials by {method}: {r['trials_per_minute']:8.0f} a minute ({r['cpu_ms_per_trial']:.2f} ms of CPU each, the last tenth "
            f"{r['cpu_ms_per_trial_last_tenth'] or 0:.2f}), {r['driver_mb']:.1f} MB of driver memory, {r['mlflow_calls_per_trial']:.1f} MLflow calls a trial, "
            f"taken up again in {r['resume_s']:.2f} s"
        )
    return {
        "method": method,
        "epochs": EPOCHS,
        "concurrent": CONCURRENT,
        "ray": False,
        "rows": rows,
    }


def once(count: int, method: str) -> dict:
    """Bookkeeping of `count` search trials of one arm.

    -> trials, epochs (heard), trials_per_minute and ms_per_trial (wall clock), cpu_ms_per_trial and cpu_ms_per_trial_last_tenth (milliseconds of
    this process's CPU time: what grows shows there), driver_mb (resident memory that the trials added, MiB), ledger_mb, mlflow_calls_per_trial,
    resume_s (seconds to read the ledger and stand where the sweep stood)
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        base = experiment(root, count, method)
        import mlflow.entities  # noqa: F401 (the tracker's thread would otherwise import it, for seconds, among the first trials)

        warm, run = open_run(root / "warm", base), open_run(root, base)
        play(
            start(warm, base, MemoryTracker(warm.folder)), min(count, 2 * CONCURRENT)
        )  # imports and caches
        tracker = CountingTracker(run.folder, root)
        tracker.ready()
        sweep = start(run, base, tracker)
        gc.collect()
        memory, begun, cpu = resident_mb(), time.perf_counter(), time.process_time()
        ends = play(sweep, count)
        tracker.flush(600)
        seconds, driver_mb, cpu_s = (
            time.perf_counter() - begun,
            resident_mb() - memory,
            time.process_time() - cpu,
        )
        tail = max(1, len(ends) // 10)
        calls = tracker.calls.total()
        begun = time.perf_counter()
        start(open_run(root, base), base, MemoryTracker(run.folder))
        resume_s = time.perf_counter() - begun
        tracker.close()
        return {
            "trials": len(ends),
            "epochs": sum(r["epochs"] for r in sweep.plan.records.values()),
            "trials_per_minute": round(60 * len(ends) / seconds),
            "ms_per_trial": round(1000 * seconds / len(ends), 3),
            "cpu_ms_per_trial": round(1000 * cpu_s / len(ends), 3),
            "cpu_ms_per_trial_last_tenth": round(1000 * (ends[-1] - ends[-1 - tail]) / tail, 3)
            if tail < len(ends)
            else None,
            "driver_mb": round(driver_mb, 1),
            "ledger_mb": round((run.folder / "ledger.jsonl").stat().st_size / 2**20, 2),
            "mlflow_calls_per_trial": round(calls / len(ends), 2),
            "resume_s": round(resume_s, 3),
        }


def experiment(root: Path, count: int, method: str) -> Experiment:
    """One arm, `count` search trials, ASHA, no confirmation; a budget that is never reached, so that it is reckoned with."""
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
                "scheduler": "asha",
                "asha": {"grace": 1, "reduction": 2},
                "trials": count,
                "seeds": {"confirm": 0},
                "budget": {"hours": 1000},
            },
            "storage": {"root": str(root)},
        }
    )


def open_run(root: Path, base: Experiment) -> storage.Run:
    run = storage.Run(root / "scale", "sweep")
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / "config.yaml").write_text(base.to_yaml(), "utf-8")
    run.update(
        epochs_by_arm={},
        git_sha="none",
        git_dirty=False,
        data={
            "fingerprint": "none",
            "uri": "none",
            "dataset": "none",
            "split_by": "none",
            "splits": {},
        },
    )
    return run


def start(run: storage.Run, base: Experiment, tracker) -> Sweep:
    return Sweep(run, base, tracker, cluster.Placement(CONCURRENT, {}, ""), say=lambda line: None)


def play(sweep: Sweep, count: int) -> list[float]:
    """Trials handed out and told of as Tune would, an epoch of each in turn.   -> this process's CPU seconds at the end of each"""
    live: dict[str, int] = {}
    ends: list[float] = []
    while len(ends) < count:
        while len(live) < CONCURRENT and (config := sweep.next_config()):
            spec = sweep.live[config["trial"]].spec
            sweep.announce(spec.id, spec.arm)
            sweep.started(spec.id)
            live[spec.id] = 0
        for trial_id in list(live):
            live[trial_id] += 1
            if sweep.heard(trial_id, epoch_of(sweep.live[trial_id].spec, live[trial_id])):
                del live[trial_id]
                ends.append(time.process_time())
    return ends


def epoch_of(spec, epoch: int) -> dict:
    """What a trial of these settings reports: best at tau 0.4, and as many metrics as a real one has."""
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
    """Of this process, MiB."""
    pages = int(Path("/proc/self/statm").read_text("utf-8").split()[1])
    return pages * 4096 / 2**20


class CountingTracker(Tracker):
    """The tracker with a store behind it that only counts."""

    def __init__(self, folder: Path, root: Path):
        self.calls: collections.Counter = collections.Counter()
        super().__init__(folder, None, "scale", root)

    def _open(self) -> Server:
        return Server(
            self.uri, self.experiment, self.root, self.folder, client=CountingClient(self.calls)
        )


class CountingClient:
    """MlflowClient's methods as the tracker uses them: nothing is kept but how often each was called."""

    def __init__(self, calls: collections.Counter):
        self.calls = calls

    def __getattr__(self, name: str):
        def call(*args, **kwargs):
            self.calls[name] += 1
            if name == "search_runs":
                return Page()
            return SimpleNamespace(
                info=SimpleNamespace(run_id=f"run{self.calls['create_run']}"),
                experiment_id="0",
                lifecycle_stage="active",
            )

        return call


class Page(list):
    """An empty page of MLflow's answers."""

    token = None
