"""The Ray Train trainer of one run, and what each of its workers does."""

import contextlib
import json
import time
from pathlib import Path

from aml.errors import NonFinite, NotSaved, Unreachable, UserError
from orchestrator import cluster, storage, utils
from orchestrator.config import Experiment, from_dict
from orchestrator.data import ObjectStoreBlocks, StreamingBlocks
from orchestrator.training import loop

RESIZE_S = 30.0

"""Between two looks of an elastic run at whether more workers would fit; what they start again from is no older than an epoch or a save."""

FAILED = "failed.json"

"""In the run folder: what is reported of a failure that a restart would only repeat."""


def worker_loop(config: dict) -> None:
    """Ray Train's train_loop_per_worker: the same loop, reported through ray.train."""
    import ray.train
    import ray.train.torch
    import torch

    experiment = from_dict(config["experiment"])
    world, device = ray.train.get_context().get_world_size(), ray.train.torch.get_device()
    torch.set_num_threads(max(1, int(experiment.resources.cpus_per_worker)))
    loop.limit_gpu_memory(experiment.resources.gpus_per_worker, device)

    def wrap(model):
        ids = [device] if device.type == "cuda" else None
        return (
            torch.nn.parallel.DistributedDataParallel(model, device_ids=ids) if world > 1 else model
        )

    first, folder = (
        ray.train.get_context().get_world_rank() == 0,
        storage.local_path(config["folder"]),
    )
    if first:
        cluster.register_placement_group(folder.name)
    outbox = loop.restore_from_bucket(folder, exact=world > 1)

    def deliver() -> None:
        if first:
            outbox.offer()
            outbox.settle()  # a restart may find its ranks on other machines, and all of them take what is in the bucket
            cluster.ack_shutdown(folder.name)

    def report(metrics: dict) -> None:
        deliver()
        if first and storage.stop_requested(folder):
            (folder / loop.STOP).touch()
        ray.train.report(utils.without_nan(metrics))

    if (folder / FAILED).exists():  # one rank failed and took the others with it
        return report(json.loads((folder / FAILED).read_text("utf-8")))
    init = config["init"] and storage.local_path(config["init"])
    try:
        if init:
            storage.download(init.parent)
        how = {
            "device": device,
            "wrap": wrap,
            "init": init,
            "notice": cluster.shutdown_notice(),
            "kept": deliver,
        }
        loop.run_training(
            experiment, config["shared"].open, config["vocabulary"], folder, report, **how
        )
    except utils.NON_RETRYABLE as error:  # would happen again: no restart
        failed = loop.failure_metrics(error)
        with contextlib.suppress(NotSaved):
            utils.atomic_write(folder / FAILED, json.dumps(failed).encode())
        with contextlib.suppress(NotSaved):  # what failed is what is told
            deliver()
        if world > 1 and (
            isinstance(error, Unreachable) or not isinstance(error, (NonFinite, UserError))
        ):
            raise  # of this rank alone: the others wait in a collective, which only the end of the group ends
        ray.train.report(failed)
    finally:
        outbox.leave()


def make_trainer(
    experiment: Experiment,
    shared: ObjectStoreBlocks | StreamingBlocks,
    vocabulary: list[str],
    folder: Path,
    *,
    callbacks=(),
    init=None,
):
    """A TorchTrainer over the run folder. Resuming is the loop's: it finds last/ there, so Ray's own run is new each time."""
    import ray.train
    from ray.train.torch import TorchTrainer

    (folder / FAILED).unlink(missing_ok=True)
    storage.delete_remote(folder, lambda name: name == FAILED)
    place, r = (
        {"folder": storage.to_uri(folder), "init": init and storage.to_uri(init)},
        experiment.resources,
    )
    return TorchTrainer(
        worker_loop,
        train_loop_config={
            "experiment": experiment.for_workers(),
            "shared": shared,
            "vocabulary": vocabulary,
            **place,
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=(r.min_workers, r.workers) if r.elastic else r.workers,
            use_gpu=r.gpus_per_worker > 0,
            resources_per_worker=cluster.worker_resources(r),
            elastic_resize_monitor_interval_s=RESIZE_S,
        ),
        run_config=ray.train.RunConfig(
            name=f"attempt-{time.time_ns()}",
            storage_path=str(folder / "ray"),
            failure_config=ray.train.FailureConfig(max_failures=r.max_failures),
            callbacks=list(callbacks),
        ),
    )


def _save(this: storage.Run, experiment: Experiment, say) -> None:
    """What is under way is saved where it stands, before the command ends."""
    seconds = experiment.resources.grace_s
    say(utils.TERMINATING.format(seconds))
    cluster.request_checkpoints(lambda: {this.folder.name}, seconds)


def end_after_epoch(trainer, stop: Path) -> None:
    """Ray Train aborts at the first interruption: before it does, `stop` asks the workers to end by themselves."""
    theirs = trainer._register_sigint_handler

    def register(controller) -> None:
        theirs(controller)
        utils.on_interrupt(stop.touch)

    trainer._register_sigint_handler = register


def failure_of(folder: Path) -> str:
    """The sentence of a failure that a restart would only repeat, or nothing."""
    path = folder / FAILED
    return json.loads(path.read_text("utf-8"))["failed"] if path.exists() else ""
