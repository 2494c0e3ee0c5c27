"""Measure what orchestration adds to the training loop: python -m orchestrator bench trial

Start-up is timed from the moment the sweep hands out a trial to the end of its first step. An
epoch of an in-process trial (training loop, checkpoint, pictures, report to Tune) is compared with
an epoch of the plain training loop in the same process; the two take turns.
"""

import logging
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aml.training import step_seconds
from orchestrator import cluster, data, training, utils
from orchestrator.config import Experiment, from_dict
from orchestrator.data import ObjectStoreBlocks, StreamingBlocks

logger = logging.getLogger(__name__)

EPOCH_S = 5.0
"""Seconds that an epoch is sized to last at least on this machine."""

STARTS = 3
"""Repetitions of a start."""

TRAIN_REFS = 700
"""Training refs in the 400 generated pictures, about."""

Blocks = ObjectStoreBlocks | StreamingBlocks


def experiment(root: Path) -> Experiment:
    """Return settings with the quickstart's model on generated pictures.

    Args:
        root: Folder of all runs, and of the shards.
    """
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


def measure_trial(*, epochs: int, distributed: bool) -> dict[str, Any]:
    """Measure starts of trials and the ratio of epoch times, and log the result.

    Args:
        epochs: Pairs of epochs to compare.
        distributed: Whether to time the start of a trial under Ray Train too.

    Returns:
        The measurements for JSON, in seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        base = experiment(root)
        cluster.init_ray()
        cluster.configure_tune()
        sources = data.prepare_sources(base.data, root)
        shared = sources.decode()
        words = sources.words()
        samples, seconds, _ = step_seconds(base)
        several = base.replace(train=base.train.replace(epochs=epochs))
        repeats = max(1, round(1.3 * EPOCH_S / (seconds / samples * TRAIN_REFS)))
        found: dict[str, Any] = measure_starts(base, shared, words, root)
        found["imports_s"] = measure_imports()
        logger.info(
            "in-process trial, first step after: "
            f"reused process {found['reused_start_s']:.2f} s, "
            f"fresh process {found['fresh_start_s']:.2f} s "
            f"(a plain Python needs {found['imports_s']:.2f} s for the same imports)"
        )
        found |= compare_epochs(several, shared, words, root, repeats)
        logger.info(
            "epoch in an in-process trial over the plain loop's: "
            f"x{found['epoch_ratio']:.3f}, quartiles {found['epoch_ratio_quartiles']}, "
            f"{found['epochs']} pairs of epochs of {found['epoch_s']:.1f} s"
        )
        if distributed:
            found["distributed_start_s"] = measure_distributed_start(base, shared, words, root)
            logger.info(
                "trial under Ray Train, first epoch reported after: "
                f"{found['distributed_start_s']:.1f} s"
            )
    return found


def measure_starts(
    base: Experiment, shared: Blocks, words: list[str], root: Path
) -> dict[str, float]:
    """Time the starts of trials that run one after another in one Tune actor.

    The first trial starts a process; the others reuse it.

    Args:
        base: Settings of the trials.
        shared: Decoded data.
        words: Vocabulary of the data.
        root: Folder for Tune's files.

    Returns:
        Seconds to the end of the first step, in a fresh process and in a reused one (median).
    """
    from ray import tune
    from ray.tune.search import Searcher

    suggested_at: list[float] = []
    first_step_at: list[float] = []

    class OneAtATime(Searcher):
        """Searcher that suggests a trial when the one before has completed."""

        def suggest(self, trial_id: str) -> Any:
            if len(suggested_at) > len(first_step_at):
                return None
            if len(suggested_at) == STARTS + 1:
                return Searcher.FINISHED
            suggested_at.append(time.time())
            return {"number": len(suggested_at)}

        def on_trial_complete(
            self, trial_id: str, result: dict | None = None, error: bool = False
        ) -> None:
            assert result is not None
            first_step_at.append(result["first_step"])

    searcher = OneAtATime(metric="first_step", mode="max")
    _tuner(
        root / "tune",
        "starts",
        tune.with_parameters(_first_step, shared=shared, words=words, tree=base.to_dict()),
        search_alg=searcher,
        num_samples=STARTS + 1,
        reuse_actors=True,
    ).fit()
    waits = [end - begin for begin, end in zip(suggested_at, first_step_at, strict=True)]
    return {
        "fresh_start_s": round(waits[0], 3),
        "reused_start_s": round(statistics.median(waits[1:]), 3),
    }


def _tuner(folder: Path, name: str, trainable: Callable, **tune_config: Any) -> Any:
    """Return a Tuner whose trials have one core each.

    Args:
        folder: Folder for Tune's files.
        name: Name of Tune's experiment.
        trainable: Function that a trial runs.
        tune_config: Arguments of TuneConfig.
    """
    from ray import tune

    return tune.Tuner(
        tune.with_resources(trainable, {"CPU": 1}),
        tune_config=tune.TuneConfig(**tune_config),
        run_config=tune.RunConfig(name=name, storage_path=str(folder), verbose=0),
    )


def _first_step(config: dict, shared: Blocks, words: list[str], tree: dict) -> None:
    """Trial: make a learner, take one step and report the time."""
    from ray import tune

    from aml.data import train_batches
    from aml.training import TrainSums

    settings = from_dict(tree)
    open_blocks: Callable[[], Any] = shared.open
    train, _ = training.load_items(settings, open_blocks)
    learner = training.make_learner(settings, train, words)
    size = settings.train.batch
    batches = train_batches(train, learner.model, batch=size, seed=config["number"], epoch=0)
    learner.step(next(batches), 0, 0, TrainSums("cpu"))
    tune.report({"first_step": time.time()})


def measure_imports() -> float:
    """Return the seconds that a plain Python needs for a trial's imports.

    No fresh process of any kind can start sooner.
    """
    waits = []
    for _ in range(STARTS):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import torch, ray.tune"], check=True)
        waits.append(time.perf_counter() - start)
    return round(statistics.median(waits), 3)


def compare_epochs(
    base: Experiment, shared: Blocks, words: list[str], root: Path, repeats: int
) -> dict[str, Any]:
    """Compare epochs of an in-process trial with those of the plain loop, in one process.

    The two take turns; the ratio is taken pair by pair.

    Args:
        base: Settings of the trial.
        shared: Decoded data.
        words: Vocabulary of the data.
        root: Folder for the trial's and Tune's files.
        repeats: Times that the training data is repeated in an epoch.

    Returns:
        Median and quartiles of the ratio, median seconds of a plain epoch, and number of pairs.
    """
    from ray import tune

    trainable = tune.with_parameters(
        _paired_epochs,
        shared=shared,
        words=words,
        tree=base.to_dict(),
        folder=str(root / "paired"),
        repeats=repeats,
    )
    grid = _tuner(root / "tune", "paired", trainable, num_samples=1).fit()
    times = grid[0].metrics["times"]
    ratios = [a / b for a, b in zip(times["trial"], times["plain"], strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    return {
        "epoch_ratio": round(statistics.median(ratios), 4),
        "epoch_ratio_quartiles": [round(low, 4), round(high, 4)],
        "epoch_s": round(statistics.median(times["plain"]), 2),
        "epochs": len(ratios),
    }


def _paired_epochs(
    config: dict, shared: Blocks, words: list[str], tree: dict, folder: str, repeats: int
) -> None:
    """Trial: run an epoch of the plain loop after each epoch of the trial's own training."""
    import numpy as np
    import torch
    from ray import tune

    from aml.training import train_epochs

    torch.set_num_threads(1)
    settings = from_dict(tree)
    open_blocks: Callable[[], Any] = shared.open
    train, val = training.load_items(settings, open_blocks)
    train.choices = np.tile(train.choices, (repeats, 1))
    learner = training.make_learner(settings, train, words)
    plain = train_epochs(learner, train, val, settings.evaluate)
    times: dict[str, list[float]] = {"trial": [], "plain": []}
    start = time.perf_counter()

    def report(metrics: dict) -> None:
        nonlocal start
        tune.report(utils.without_nan(metrics) | {"times": times})
        times["trial"].append(time.perf_counter() - start)
        start = time.perf_counter()
        next(plain)
        times["plain"].append(time.perf_counter() - start)
        start = time.perf_counter()

    training.run_training(settings, open_blocks, words, Path(folder), report)
    tune.report({"times": times})


def measure_distributed_start(
    base: Experiment, shared: Blocks, words: list[str], root: Path
) -> float:
    """Return the seconds from fit() to the report of a one-step epoch under Ray Train.

    Args:
        base: Settings of the trial, which are shortened.
        shared: Decoded data.
        words: Vocabulary of the data.
        root: Folder for the trial's files.
    """
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
    training.make_trainer(short, shared, words, root / "distributed").fit()
    return round(time.perf_counter() - start, 2)
