"""The Ray Train trainer of one run, and the loop of each of its workers."""

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from aml.conditions import Condition
from aml.errors import NonFinite, NotSaved, Unreachable, UserError
from orchestrator import cluster, storage, utils
from orchestrator.config import Experiment, from_dict
from orchestrator.data import ObjectStoreBlocks, StreamingBlocks
from orchestrator.training import loop

if TYPE_CHECKING:
    import torch
    from ray.train.torch import TorchTrainer

logger = logging.getLogger(__name__)


RESIZE_S = 30.0
"""Seconds between two checks of an elastic run for room for more workers.

The larger worker group continues from the last epoch or mid-epoch checkpoint.
"""

FAILED = "failed.json"
"""Name of a file in the run's folder: the report of a failure that a restart would repeat."""


def worker_loop(config: dict) -> None:
    """Train one worker of Ray Train: `train_loop_per_worker` of the trainer.

    Args:
        config: As `make_trainer` builds it.
    """
    import ray.train
    import ray.train.torch
    import torch

    experiment = from_dict(config["experiment"])
    train_context = ray.train.get_context()
    world_size = train_context.get_world_size()
    device = ray.train.torch.get_device()
    torch.set_num_threads(max(1, int(experiment.resources.cpus_per_worker)))
    loop.limit_gpu_memory(experiment.resources.gpus_per_worker, device)
    is_first = train_context.get_world_rank() == 0
    folder = storage.local_path(config["folder"])
    if is_first:
        cluster.register_placement_group(folder.name)
    uploader = loop.restore_from_bucket(folder, exact=world_size > 1)

    def deliver() -> None:
        if is_first:
            uploader.submit()
            # A restart may place its ranks on other machines, and all of them take what is in the
            # bucket: wait until it has arrived.
            uploader.wait()
            cluster.ack_shutdown(folder.name)

    def report(metrics: dict) -> None:
        deliver()
        if is_first and storage.stop_requested(folder):
            (folder / loop.STOP).touch()
        ray.train.report(utils.without_nan(metrics))

    if (folder / FAILED).exists():  # one rank failed, and the others ended with it
        report(json.loads((folder / FAILED).read_text("utf-8")))
        return
    init = config["init"] and storage.local_path(config["init"])
    try:
        if init:
            storage.download(init.parent)
        context = loop.RunContext(
            device=device,
            wrap_model=_ddp_wrapper(device, world_size),
            arm=config["arm"],
            init_checkpoint=init,
            corrupted={c: blocks.open for c, blocks in config["corrupted"].items()},
            should_checkpoint=cluster.shutdown_notice(),
            on_checkpoint=deliver,
            on_progress=lambda found: cluster.put_progress(folder.name, found),
        )
        blocks = config["shared"].open
        loop.run_training(experiment, blocks, config["vocabulary"], folder, report, context)
    except utils.NON_RETRYABLE as error:
        _report_failure(error, folder, deliver, world_size)
    finally:
        uploader.close()


def _ddp_wrapper(
    device: "torch.device", world_size: int
) -> "Callable[[torch.nn.Module], torch.nn.Module]":
    """Return a function that wraps a model in DDP where there is more than one worker."""
    import torch

    def wrap(model: torch.nn.Module) -> torch.nn.Module:
        if world_size == 1:
            return model
        device_ids = [device] if device.type == "cuda" else None
        return torch.nn.parallel.DistributedDataParallel(model, device_ids=device_ids)

    return wrap


def _report_failure(
    error: Exception, folder: Path, deliver: Callable[[], None], world_size: int
) -> None:
    """Write FAILED and report a failure that a restart would repeat, so that Ray does not restart.

    Raises:
        Exception: The error itself where only this rank met it. The other ranks then wait in a
            collective, which only the end of the worker group ends.
    """
    import ray.train

    failed = loop.failure_metrics(error)
    with contextlib.suppress(NotSaved):
        utils.atomic_write(folder / FAILED, json.dumps(failed).encode())
    with contextlib.suppress(NotSaved):  # the failure itself is the one to report
        deliver()
    is_of_all_ranks = isinstance(error, (NonFinite, UserError)) and not isinstance(
        error, Unreachable
    )
    if world_size > 1 and not is_of_all_ranks:
        raise error
    ray.train.report(failed)


def make_trainer(
    experiment: Experiment,
    shared: ObjectStoreBlocks | StreamingBlocks,
    vocabulary: list[str],
    folder: Path,
    *,
    callbacks: Iterable = (),
    init: Path | None = None,
    arm: str | None = None,
    corrupted: Mapping[Condition, ObjectStoreBlocks | StreamingBlocks] | None = None,
) -> "TorchTrainer":
    """Return a TorchTrainer that trains or resumes the run in `folder`.

    The training loop resumes by itself from last/ in the folder, so Ray's own run is new each
    time.

    Args:
        experiment: The settings of the run.
        shared: The decoded data.
        vocabulary: The words of the data set.
        folder: The folder of the run or trial.
        callbacks: Callbacks of Ray Train.
        init: A checkpoint whose weights a new run starts from.
        arm: See `RunContext.arm`.
        corrupted: Validation pictures under the corruptions that it is scored under at its end.
    """
    import ray.train
    from ray.train.torch import TorchTrainer

    (folder / FAILED).unlink(missing_ok=True)
    storage.delete_remote(folder, lambda name: name == FAILED)
    resources = experiment.resources
    workers: int | tuple[int, int] = resources.workers
    if resources.elastic:
        workers = (resources.min_workers or resources.workers, resources.workers)
    return TorchTrainer(
        worker_loop,
        train_loop_config={
            "experiment": experiment.for_workers(),
            "shared": shared,
            "vocabulary": vocabulary,
            "folder": storage.to_uri(folder),
            "init": init and storage.to_uri(init),
            "arm": arm,
            "corrupted": dict(corrupted or {}),
        },
        # The types that mypy sees are of Ray Train's older ScalingConfig.
        scaling_config=ray.train.ScalingConfig(  # type: ignore[call-arg]
            num_workers=workers,  # type: ignore[arg-type]
            use_gpu=resources.gpus_per_worker > 0,
            resources_per_worker=cluster.worker_resources(resources),
            elastic_resize_monitor_interval_s=RESIZE_S,
        ),
        run_config=ray.train.RunConfig(
            name=f"attempt-{time.time_ns()}",
            storage_path=str(folder / "ray"),
            failure_config=ray.train.FailureConfig(max_failures=resources.max_failures),
            callbacks=list(callbacks),
        ),
    )


def save_before_exit(run: storage.Run, experiment: Experiment) -> None:
    """Ask the workers to save the current state, and wait for them at most resources.grace_s.

    A worker answers after the step or the validation batch under way, or at the end of its set-up.
    Without workers nothing is under way.
    """
    seconds = experiment.resources.grace_s
    logger.info(utils.TERMINATING.format(seconds))
    name = run.folder.name
    with contextlib.suppress(Exception):  # Ray's head node does not answer
        if cluster.is_pending(name):
            logger.info("no worker has started: nothing is under way that could be lost")
            return
    if cluster.request_checkpoints(lambda: {name}, seconds):
        logger.info(utils.NOT_SAVED.format(name, seconds))


def end_after_epoch(trainer: "TorchTrainer", stop: Path) -> None:
    """Make the first SIGINT create the file `stop` instead of aborting the trainer.

    Ray Train aborts at the first interruption. This handler is put before Ray Train's, and the
    file asks the workers to end by themselves after the current epoch; the second SIGINT aborts.
    """
    # Ray Train has no public hook for this; its version 2 trainer has the method.
    register_of_ray = trainer._register_sigint_handler  # type: ignore[attr-defined]

    def register(controller: object) -> None:
        register_of_ray(controller)
        utils.on_interrupt(stop.touch)

    trainer._register_sigint_handler = register  # type: ignore[attr-defined]


def failure_of(folder: Path) -> str:
    """Return the text of a failure that a restart would repeat; "" if there was none."""
    path = folder / FAILED
    return json.loads(path.read_text("utf-8"))["failed"] if path.exists() else ""
