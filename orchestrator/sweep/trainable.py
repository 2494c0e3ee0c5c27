"""What runs inside a Tune trial: the loop itself, or the driver of a Ray Train run."""

import contextlib

from aml.errors import NotSaved
from orchestrator import cluster, storage, training, utils
from orchestrator.config import from_dict
from orchestrator.data import ObjectStoreBlocks, StreamingBlocks


def light_trial(
    config: dict, shared: ObjectStoreBlocks | StreamingBlocks, vocabulary: list[str]
) -> None:
    """One worker, the loop in the Tune process itself; the process may have run other trials before."""
    import torch
    from ray import tune

    legs = [(from_dict(tree), until) for tree, until in config["legs"]]
    resources = legs[0][0].resources
    torch.set_num_threads(max(1, int(resources.cpus_per_worker)))
    device = "cuda" if resources.gpus_per_worker and torch.cuda.is_available() else "cpu"
    training.limit_gpu_memory(resources.gpus_per_worker, device)

    folder = storage.local_path(config["folder"])
    try:
        outbox = training.restore_from_bucket(folder, exact=config["exact"])
    except utils.NON_RETRYABLE as error:
        return tune.report(training.failure_metrics(error))
    notice = cluster.shutdown_notice()

    def kept() -> None:
        outbox.offer()
        if notice() == cluster.SHUTDOWN:
            outbox.settle()
            cluster.ack_shutdown(folder.name)

    def report(metrics: dict) -> None:
        kept()
        if metrics["epoch"] >= legs[-1][1]:  # the process may be gone before the next chance
            outbox.settle()
        tune.report(utils.without_nan(metrics))

    try:
        for experiment, until in legs:
            how = {"device": device, "until": until, "notice": notice, "kept": kept}
            training.run_training(experiment, shared.open, vocabulary, folder, report, **how)
    except utils.NON_RETRYABLE as error:  # would happen again: the trial fails alone, no restart
        with contextlib.suppress(NotSaved):  # what failed is what is told
            outbox.offer()
        tune.report(training.failure_metrics(error))
    finally:
        outbox.leave()


def distributed_trial(
    config: dict, shared: ObjectStoreBlocks | StreamingBlocks, vocabulary: list[str]
) -> None:
    """The driver of a Ray Train run; it waits while the workers train. Train restarts workers, Tune this driver: neither repeats the other."""
    from ray import tune
    from ray.train import TrainingFailedError
    from ray.tune.integration.ray_train import TuneReportCallback

    from orchestrator.training import make_trainer

    folder = storage.local_path(config["folder"])
    cluster.remove_placement_groups(
        [*config["over"], folder.name]
    )  # of its own, too: its driver may have been lost before
    try:
        make_trainer(
            from_dict(config["legs"][-1][0]),
            shared,
            vocabulary,
            folder,
            callbacks=[TuneReportCallback()],
        ).fit()
    except TrainingFailedError as error:
        tune.report(training.failure_metrics(error))
