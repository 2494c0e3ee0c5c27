"""What the orchestration costs on top of the loop: python -m orchestrator bench trial

Start-up is counted from the moment the sweep hands a trial out to the end of its first step. An epoch inside a light trial (loop, checkpoint,
pictures, report to Tune) is compared with the plain loop's in the same process, the two taking turns.
"""

import dataclasses
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from aml.training import step_seconds
from orchestrator import cluster, data, training, utils
from orchestrator.config import Experiment, from_dict

EPOCH_S = 5.0

"""An epoch is sized to last at least this long on this machine."""

STARTS = 3


def experiment(root: Path) -> Experiment:
    """A run of the quickstart's model on generated pictures."""
    return from_dict(
        {
            "name": "bench",
            "data": {
                "train": str(root / "shards"),
                "size": 64,
                "val_limit": 64,
                "synth": {"images": 400, "size": 64},
            },
            "model": {"name": "small", "width": 64, "stem": 32, "dropout": 0.0, "max_words": 16},
            "aml": {"block": 8, "stage1_scale": 1.0},
            "train": {"epochs": 1, "batch": 32},
            "evaluate": {"probe": 32, "pictures": 8},
            "tracking": {"uri": "none"},
            "storage": {"root": str(root)},
        }
    )


def measure_trial(*, epochs: int, distributed: bool, say=print) -> dict:
    """Start-up of light trials (fresh and reused process) and of a distributed one, and the ratio of epoch times."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        base = experiment(root)
        cluster.init_ray()
        cluster.quiet_tune()
        used = data.prepare_sources(base.data, root, say)
        shared, words = used.decode(), used.words()
        samples, seconds = step_seconds(base)
        unit = dataclasses.replace(base, train=dataclasses.replace(base.train, epochs=epochs))
        repeats = max(
            1, round(1.3 * EPOCH_S / (seconds / samples * 700))
        )  # about 700 refs train in 400 pictures
        found = starts(base, shared, words, root)
        found["imports_s"] = imports()
        say(
            f"light trial, first step after: reused process {found['reused_start_s']:.2f} s, fresh process {found['fresh_start_s']:.2f} s "
            f"(a plain Python needs {found['imports_s']:.2f} s for the same imports)"
        )
        found |= paired_epochs(unit, shared, words, root, repeats)
        say(
            f"epoch in a light trial over the plain loop's: x{found['epoch_ratio']:.3f}, quartiles {found['epoch_ratio_quartiles']}, "
            f"{found['epochs']} pairs of epochs of {found['epoch_s']:.1f} s"
        )
        if distributed:
            found["distributed_start_s"] = distributed_start(base, shared, words, root)
            say(
                f"distributed trial, first epoch reported after: {found['distributed_start_s']:.1f} s"
            )
    return found


def starts(base: Experiment, shared, words, root: Path) -> dict:
    """Trials one after another in one actor: the first starts a process, the others find it warm."""
    from ray import tune
    from ray.tune.search import Searcher

    handed: list[float] = []

    class OneAtATime(Searcher):
        def suggest(self, trial_id):
            if len(handed) > len(heard):
                return None
            if len(handed) == STARTS + 1:
                return Searcher.FINISHED
            handed.append(time.time())
            return {"number": len(handed)}

        def on_trial_complete(self, trial_id, result=None, error=False):
            heard.append(result["first_step"])

    heard: list[float] = []

    def first_step(config, shared, words, tree):
        experiment = from_dict(tree)
        train, _ = training.load_items(experiment, shared.open)
        learner = training.make_learner(experiment, train, words)
        from aml.data import train_batches
        from aml.training import TrainSums

        batch = next(
            train_batches(
                train, learner.model, batch=experiment.train.batch, seed=config["number"], epoch=0
            )
        )
        learner.step(batch, 0, 0, TrainSums("cpu"))
        tune.report({"first_step": time.time()})

    tune.Tuner(
        tune.with_resources(
            tune.with_parameters(first_step, shared=shared, words=words, tree=base.to_dict()),
            {"CPU": 1},
        ),
        tune_config=tune.TuneConfig(
            search_alg=OneAtATime(metric="first_step", mode="max"),
            num_samples=STARTS + 1,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(name="starts", storage_path=str(root / "tune"), verbose=0),
    ).fit()
    waits = [b - a for a, b in zip(handed, heard, strict=True)]
    return {
        "fresh_start_s": round(waits[0], 3),
        "reused_start_s": round(statistics.median(waits[1:]), 3),
    }


def imports() -> float:
    """Seconds a plain Python takes for what a trial imports: no fresh process of any kind starts sooner."""
    waits = []
    for _ in range(STARTS):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import torch, ray.tune"], check=True)
        waits.append(time.perf_counter() - start)
    return round(statistics.median(waits), 3)


def paired_epochs(base: Experiment, shared, words, root: Path, repeats: int) -> dict:
    """Epochs of a light trial and of the plain loop in turn, in one process; the ratio is taken pair by pair."""
    from ray import tune

    def both(config, shared, words, tree, folder):
        import torch

        from aml.training import train_epochs

        torch.set_num_threads(1)
        experiment = from_dict(tree)
        train, val = training.load_items(experiment, shared.open)
        train.choices = train.choices * repeats
        train._ref_keys = train._ref_keys.repeat(repeats)
        plain = train_epochs(
            training.make_learner(experiment, train, words), train, val, experiment.evaluate
        )
        times = {"trial": [], "plain": []}
        start = time.perf_counter()

        def report(metrics):
            nonlocal start
            tune.report(utils.without_nan(metrics) | {"times": times})
            times["trial"].append(time.perf_counter() - start)
            start = time.perf_counter()
            next(plain)
            times["plain"].append(time.perf_counter() - start)
            start = time.perf_counter()

        training.run_training(experiment, shared.open, words, Path(folder), report)
        tune.report({"times": times})

    grid = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(
                both, shared=shared, words=words, tree=base.to_dict(), folder=str(root / "paired")
            ),
            {"CPU": 1},
        ),
        tune_config=tune.TuneConfig(num_samples=1),
        run_config=tune.RunConfig(name="paired", storage_path=str(root / "tune"), verbose=0),
    ).fit()
    times = grid[0].metrics["times"]
    ratios = [a / b for a, b in zip(times["trial"], times["plain"], strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    return {
        "epoch_ratio": round(statistics.median(ratios), 4),
        "epoch_ratio_quartiles": [round(low, 4), round(high, 4)],
        "epoch_s": round(statistics.median(times["plain"]), 2),
        "epochs": len(ratios),
    }


def distributed_start(base: Experiment, shared, words, root: Path) -> float:
    """Seconds from fit() to the report of a one-step epoch through Ray Train."""
    from orchestrator.training import make_trainer

    short = base.with_overrides(
        {
            "data.train_limit": 32,
            "data.val_limit": 8,
            "evaluate.probe": 0,
            "evaluate.pictures": 0,
            "resources.driver": "train",
        }
    )
    start = time.perf_counter()
    make_trainer(short, shared, words, root / "distributed").fit()
    return round(time.perf_counter() - start, 2)
