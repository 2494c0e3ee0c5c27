"""The epoch loop: train, validate, yield one result an epoch. It knows no Ray."""

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from aml.conditions import Condition, mean_by_corruption
from aml.data import Batch, Items, eval_batches, some_batches, train_batches
from aml.masking import MaskingConfig
from aml.metrics import THRESHOLDS, Sums
from aml.training.config import EvalConfig, judged_by
from aml.training.learner import ENDED, Learner
from aml.training.memory import peak_memory_mb
from aml.training.scoring import TrainSums
from aml.training.world import MidEpochCheckpointer


class Result(NamedTuple):
    """Result of one epoch."""

    epoch: int
    """1-based: epochs done."""
    metrics: dict[str, float]
    improved: bool
    """Whether its validation score is the best so far: mIoU, or oIoU by evaluate.select."""


def train_epochs(
    learner: Learner,
    train: Items,
    val: Items,
    config: EvalConfig = EvalConfig(),  # noqa: B008 (frozen)
    checkpointer: MidEpochCheckpointer | None = None,
    on_step: Callable[[int, TrainSums], None] | None = None,
    on_validation: Callable[[int, int], None] | None = None,
    corrupted: Mapping[Condition, Callable[[], Items]] | None = None,
) -> Iterator[Result]:
    """Train from learner.progress to the last epoch and yield one Result an epoch.

    The caller saves and reports, and may stop after any of them.

    Args:
        learner: Trains.
        train: Items of the training split.
        val: Items of the validation split.
        config: Settings of the validation.
        checkpointer: Is asked during an epoch whether the run should be saved there, too.
        on_step: Called after each step with the steps done of the epoch and its sums.
        on_validation: Called before a validation and after each of its batches, with the sentences
            that this rank has scored, and all of them.
        corrupted: Returns the items of the validation split under each corruption, which are
            scored after the last epoch; None for none.
    """
    probe = probe_indices(len(val), config.probe)
    world = learner.world
    for epoch in range(learner.progress.epoch, learner.config.epochs):
        batches = train_batches(
            train,
            learner.model,
            batch=learner.config.batch,
            seed=learner.seed,
            epoch=epoch,
            rank=world.rank,
            world=world.size,
            accumulate=learner.config.accumulate,
            start=learner.progress.step,
        )
        metrics = learner.train_epoch(batches, epoch, checkpointer, on_step)
        before = time.perf_counter()
        metrics |= _validate(learner, val, config, probe, checkpointer, on_validation)
        val_s = time.perf_counter() - before
        if corrupted and epoch + 1 == learner.config.epochs:
            metrics |= robust_metrics(learner, corrupted, config, checkpointer)
        progress = learner.progress
        score = metrics[judged_by(config.select)]
        improved = score > progress.best
        learner.end_epoch(score)
        metrics |= {
            "epoch": epoch + 1,
            "train/workers": world.size,
            "val/mIoU_best": max(-1.0, *_mious(progress.history), metrics["val/mIoU"]),
            "time/val_s": val_s,
            "time/epoch_s": metrics["time/train_s"] + val_s,
            ENDED: time.time(),
            "mem/peak_mb": peak_memory_mb(learner.device),
        }
        if text := vacuous_mask(learner.masker.config, metrics):
            warnings.warn(text, stacklevel=2)
        progress.history.append(metrics)
        yield Result(epoch + 1, metrics, improved)


def _mious(history: list[dict[str, float]]) -> list[float]:
    """Return the validation mIoU of some epochs."""
    return [epoch["val/mIoU"] for epoch in history]


def _validate(
    learner: Learner,
    val: Items,
    config: EvalConfig,
    probe: np.ndarray,
    checkpointer: MidEpochCheckpointer | None,
    on_validation: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """Return the scores of the validation split, and the diagnostics of the probed sentences."""
    world = learner.world
    batches = eval_batches(
        val, learner.model, batch=config.batch, rank=world.rank, world=world.size
    )
    if checkpointer is not None:
        batches = yield_with_checkpoints(batches, checkpointer)
    if on_validation is not None:
        batches = _yield_counted(batches, len(val) // world.size, on_validation)
    metrics = validation_metrics(learner.evaluate(batches, config.threshold))
    if len(probe):
        mine = probe[world.rank :: world.size]
        metrics |= learner.diagnose(
            some_batches(val, learner.model, mine, config.batch),
            some_batches(val, learner.model, mine, config.batch),
            config.threshold,
        )
    return metrics


def robust_metrics(
    learner: Learner,
    corrupted: Mapping[Condition, Callable[[], Items]],
    config: EvalConfig,
    checkpointer: MidEpochCheckpointer | None = None,
) -> dict[str, float]:
    """Return the validation mIoU under each corruption and in their mean.

    Args:
        learner: Predicts.
        corrupted: See `train_epochs`.
        config: Settings of the validation.
        checkpointer: Is asked whether the run should be saved meanwhile.

    Returns:
        robust/<corruption>, a mean over its severities, robust/mIoU, the mean of these, and
        time/robust_s, the seconds it took.
    """
    world = learner.world
    before = time.perf_counter()
    scores: dict[Condition, float] = {}
    for condition, items in corrupted.items():
        batches = eval_batches(
            items(), learner.model, batch=config.batch, rank=world.rank, world=world.size
        )
        if checkpointer is not None:
            batches = yield_with_checkpoints(batches, checkpointer)
        scores[condition] = learner.evaluate(batches, config.threshold).scores()["mIoU"]
    means = mean_by_corruption(scores)
    found = {f"robust/{name}": score for name, score in means.items()}
    found["robust/mIoU"] = sum(means.values()) / len(means)
    return found | {"time/robust_s": time.perf_counter() - before}


def yield_with_checkpoints(
    batches: Iterable[Batch], checkpointer: MidEpochCheckpointer
) -> Iterator[Batch]:
    """Yield the batches of a validation, and save the trained epoch after one when it is due.

    Ranks, which may have different numbers of batches, do not agree on it: nothing is trained, and
    rank 0, which writes, has known the state of all since the last step.
    """
    for batch in batches:
        yield batch
        if checkpointer.due():
            checkpointer.save()


def _yield_counted(
    batches: Iterable[Batch], sentences: int, on_validation: Callable[[int, int], None]
) -> Iterator[Batch]:
    """Yield the batches of a validation, and say before and after each how many sentences came."""
    done = 0
    on_validation(done, sentences)
    for batch in batches:
        yield batch
        done += len(batch.item)
        on_validation(done, sentences)


def validation_metrics(sums: Sums) -> dict[str, float]:
    """Return the scores under the names the tracker takes: val/P0.5, since it refuses @."""
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
    """Return `count` places spread evenly over n, the same in every run on the same data."""
    if not count:
        return np.array([], int)
    return np.unique(np.linspace(0, n - 1, min(n, count)).round().astype(int))


def vacuous_mask(config: MaskingConfig, metrics: dict[str, float]) -> str:
    """Return a sentence where the first masked epoch hid nearly all or nothing; else nothing.

    Args:
        config: Settings of masked learning.
        metrics: Metrics of an epoch.
    """
    hidden = metrics.get("aml/hidden")
    # the scale is among the metrics once it is calibrated
    first = metrics["epoch"] == config.first_epoch + 1 and "aml/scale" in metrics
    if not config.method.selects_by_alignment or not first or hidden is None:
        return ""
    hidden /= config.batch_share  # the mean holds the samples that stay clean
    if 0.001 < hidden < 0.9:
        return ""
    whole = "sentence" if config.method.level == "words" else "image"
    what = f"nearly the whole {whole}" if hidden >= 0.9 else "almost nothing"
    return (
        f"{config.arm} with tau {config.tau} and rho {config.rho} called "
        f"{metrics['aml/weak']:.1%} of the {whole} weak and hid {hidden:.1%}, {what}; its settings "
        "say little about alignment (aml.threshold_mode quantile hides tau*rho exactly)"
    )
