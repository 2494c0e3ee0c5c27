"""The epoch loop: train, validate, yield one result an epoch. It knows no Ray."""

import time
import warnings
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from aml.data import Batch, Items, eval_batches, some_batches, train_batches
from aml.masking import MaskingConfig
from aml.metrics import THRESHOLDS, Sums
from aml.training.config import EvalConfig
from aml.training.learner import ENDED, Learner
from aml.training.world import MidEpochCheckpointer, peak_memory_mb


class Result(NamedTuple):
    """What an epoch brought."""

    epoch: int
    """1-based: epochs done."""
    metrics: dict[str, float]
    improved: bool
    """The best validation mIoU so far."""


def train_epochs(
    learner: Learner,
    train: Items,
    val: Items,
    config: EvalConfig = EvalConfig(),  # noqa: B008 (frozen)
    keep: MidEpochCheckpointer | None = None,
) -> Iterator[Result]:
    """Train from learner.progress to the last epoch, one Result an epoch; the caller saves, reports and may stop at any of them.

    keep: is asked during an epoch whether the run is to be saved there, too.
    """
    world, batch, accumulate = learner.world, learner.config.batch, learner.config.accumulate
    probe = probe_indices(len(val), config.probe)
    for epoch in range(learner.progress.epoch, learner.config.epochs):
        part = {
            "rank": world.rank,
            "world": world.size,
            "accumulate": accumulate,
            "start": learner.progress.step,
        }
        metrics = learner.train_epoch(
            train_batches(
                train, learner.model, batch=batch, seed=learner.seed, epoch=epoch, **part
            ),
            epoch,
            keep,
        )
        before = time.perf_counter()
        batches = eval_batches(
            val, learner.model, batch=config.batch, rank=world.rank, world=world.size
        )
        sums = learner.evaluate(
            batches if keep is None or world.size > 1 else yield_with_checkpoints(batches, keep),
            config.threshold,
        )
        metrics |= validation_metrics(sums)
        if len(probe):
            mine = probe[world.rank :: world.size]
            metrics |= learner.diagnose(
                some_batches(val, learner.model, mine, config.batch),
                some_batches(val, learner.model, mine, config.batch),
                config.threshold,
            )
        improved = metrics["val/mIoU"] > learner.progress.best
        learner.progress.best = max(learner.progress.best, metrics["val/mIoU"])
        learner.progress.epoch, learner.progress.step, learner.progress.ranks = epoch + 1, 0, []
        metrics |= {
            "epoch": epoch + 1,
            "train/workers": world.size,
            "val/mIoU_best": learner.progress.best,
            "time/val_s": time.perf_counter() - before,
            "time/epoch_s": metrics["time/train_s"] + time.perf_counter() - before,
            ENDED: time.time(),
            "mem/peak_mb": peak_memory_mb(learner.device),
        }
        if text := vacuous_mask(learner.masker.config, metrics):
            warnings.warn(text, stacklevel=2)
        learner.progress.history.append(metrics)
        yield Result(epoch + 1, metrics, improved)


def yield_with_checkpoints(batches: Iterable[Batch], keep: MidEpochCheckpointer) -> Iterator[Batch]:
    """The batches of a validation, between which the epoch that was trained may be saved; where ranks have different numbers of them they
    could not agree."""
    for batch in batches:
        yield batch
        if keep.due():
            keep.save()


def validation_metrics(sums: Sums) -> dict[str, float]:
    """The scores under the names the tracker takes: val/P0.5, since it refuses @."""
    scores = sums.scores()
    precision = {f"val/P0.{x // 10}": scores[f"P@0.{x // 10}"] for x in THRESHOLDS}
    accuracy = {f"val/{name}": scores[name] for name in ("N-acc", "T-acc") if name in scores}
    return {
        "val/mIoU": scores["mIoU"],
        "val/oIoU": scores["oIoU"],
        **precision,
        **accuracy,
        "val/n": scores["n"],
    }


def probe_indices(n: int, count: int) -> np.ndarray:
    """`count` places spread evenly over n, the same in every run on the same data."""
    return (
        np.unique(np.linspace(0, n - 1, min(n, count)).round().astype(int))
        if count
        else np.array([], int)
    )


def vacuous_mask(config: MaskingConfig, metrics: dict) -> str:
    """One sentence with the realised numbers where the first masked epoch hid nearly all or nothing; else nothing."""
    hidden = metrics.get("aml/hidden")
    first = (
        metrics["epoch"] == config.warmup_epochs + 1 and "aml/scale" in metrics
    )  # the scale is there once it is calibrated
    if config.mode != "aml" or not first or hidden is None or 0.001 < hidden < 0.9:
        return ""
    what = "nearly the whole image" if hidden >= 0.9 else "almost nothing"
    return (
        f"{config.arm} with tau {config.tau} and rho {config.rho} called {metrics['aml/weak']:.1%} of the image weak and hid "
        f"{hidden:.1%}, {what}; its settings say little about alignment (aml.threshold_mode quantile hides tau*rho exactly)"
    )
