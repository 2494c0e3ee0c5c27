"""The trainables of Tune: the training loop itself, or the driver of a Ray Train run."""

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from aml.conditions import Condition
from aml.errors import NotSaved
from orchestrator import cluster, storage, training, utils
from orchestrator.config import Experiment, from_dict
from orchestrator.data import ObjectStoreBlocks, StreamingBlocks

Corrupted = Mapping[Condition, ObjectStoreBlocks | StreamingBlocks]
"""Validation pictures by the corruption they are under."""


def in_process_trial(
    config: dict,
    shared: ObjectStoreBlocks | StreamingBlocks,
    vocabulary: list[str],
    corrupted: Corrupted,
) -> None:
    """Train a trial of one worker in the Tune process itself, which may be reused.

    Args:
        config: The trial's Tune config, as PlanSearcher makes it.
        shared: The decoded data.
        vocabulary: The words of the data set.
        corrupted: Validation pictures under the corruptions that search trials are scored under.
    """
    import torch
    from ray import tune

    schedule = [(from_dict(tree), end) for tree, end in config["config_schedule"]]
    resources = schedule[0][0].resources
    torch.set_num_threads(max(1, int(resources.cpus_per_worker)))
    device = "cuda" if resources.gpus_per_worker and torch.cuda.is_available() else "cpu"
    training.limit_gpu_memory(resources.gpus_per_worker, device)

    folder = storage.local_path(config["folder"])
    try:
        uploader = training.restore_from_bucket(folder, exact=config["exact"])
    except utils.NON_RETRYABLE as error:
        tune.report(training.failure_metrics(error))
        return
    try:
        sources = {c: blocks.open for c, blocks in _scored_under(config, corrupted).items()}
        context = training.RunContext(device=device, arm=config["arm"], corrupted=sources)
        _train_schedule(schedule, shared, vocabulary, folder, context, uploader)
    except utils.NON_RETRYABLE as error:  # a restart would repeat it: the trial fails alone
        with contextlib.suppress(NotSaved):  # the failure itself is the one to report
            uploader.submit()
        tune.report(training.failure_metrics(error))
    finally:
        uploader.close()


def _train_schedule(
    schedule: list[tuple[Experiment, int]],
    shared: ObjectStoreBlocks | StreamingBlocks,
    vocabulary: list[str],
    folder: Path,
    context: training.RunContext,
    uploader: storage.BackgroundUploader,
) -> None:
    """Train with each of the settings up to its epoch, uploading what is saved."""
    from ray import tune

    notice = cluster.shutdown_notice()
    may_pause = schedule[-1][0].search.scheduler.name == "hyperband"

    def upload() -> None:
        uploader.submit()
        if notice() == cluster.SHUTDOWN:
            uploader.wait()
            cluster.ack_shutdown(folder.name)

    def report(metrics: dict) -> None:
        upload()
        # The process may be gone before another chance, at the end as where hyperband pauses it.
        if metrics["epoch"] >= schedule[-1][1] or may_pause:
            uploader.wait()
        tune.report(utils.without_nan(metrics))

    for experiment, end in schedule:
        part = replace(context, stop_epoch=end, should_checkpoint=notice, on_checkpoint=upload)
        training.run_training(experiment, shared.open, vocabulary, folder, report, part)


def _scored_under(config: dict, corrupted: Corrupted) -> Corrupted:
    """Return what a trial is scored under; confirmed checkpoints are scored at a sweep's end."""
    return corrupted if config["stage"] == "search" else {}


def ray_train_trial(
    config: dict,
    shared: ObjectStoreBlocks | StreamingBlocks,
    vocabulary: list[str],
    corrupted: Corrupted,
) -> None:
    """Drive a trial of several workers: start a Ray Train run and wait for it.

    Ray Train restarts workers and Tune restarts this driver; neither repeats the other.

    Args:
        config: The trial's Tune config, as PlanSearcher makes it.
        shared: The decoded data.
        vocabulary: The words of the data set.
        corrupted: See `in_process_trial`.
    """
    from ray import tune
    from ray.train import TrainingFailedError
    from ray.tune.integration.ray_train import TuneReportCallback

    folder = storage.local_path(config["folder"])
    # Also the trial's own placement group, whose driver may have been lost before.
    cluster.remove_placement_groups([*config["release"], folder.name])
    experiment = from_dict(config["config_schedule"][-1][0])
    callbacks = [TuneReportCallback()]
    try:
        trainer = training.make_trainer(
            experiment,
            shared,
            vocabulary,
            folder,
            callbacks=callbacks,
            arm=config["arm"],
            corrupted=_scored_under(config, corrupted),
        )
        trainer.fit()
    except TrainingFailedError as error:
        tune.report(training.failure_metrics(error))
