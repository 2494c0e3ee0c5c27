"""What a run does where memory is short."""

import pytest
import torch

from aml.errors import OutOfMemory, Unreachable
from aml.training.learner import Learner
from orchestrator.config.loader import from_dict
from orchestrator.training import loop
from orchestrator.utils import failures
from tests.orchestrator.storage.test_survival import TREE


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        torch.empty,  # a real one
    ],
)
def test_memory_that_is_not_enough_is_said_with_what_to_lower_and_loses_the_epoch_under_way(
    run_trial, whole, tmp_path, monkeypatch, error
):
    def step(self, batch, epoch, index, sums):
        if epoch == 2 and isinstance(error, BaseException):
            raise error
        if epoch == 2:
            error(2**60, dtype=torch.uint8)
        return real(self, batch, epoch, index, sums)

    real = Learner.step
    monkeypatch.setattr(Learner, "step", step)
    with pytest.raises(OutOfMemory) as said:
        run_trial()
    text = str(said.value)
    assert (
        text.startswith("out of memory")
        and "train.batch 8" in text
        and "data.size 64" in text
        and "raise train.accumulate" in text
    )
    assert loop.failure_metrics(said.value) == {"epoch": -1, "failed": text, "kind": "memory"}
    monkeypatch.undo()
    assert run_trial() == whole[2:]


def test_memory_of_a_part_of_a_gpu_is_said_to_be_that():
    text = (
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 139.80 GiB "
        "of which 137.81 GiB is free. Including non-PyTorch"
    )
    experiment = from_dict(TREE | {"resources": {"gpus_per_worker": 0.25}})
    said = (
        r"^out of memory \(CUDA out of memory. Tried to allocate 2.00 GiB\) "
        "within its 0.25 of a GPU with train.batch 8"
    )
    with pytest.raises(OutOfMemory, match=said), loop.memory_errors(experiment):
        raise torch.OutOfMemoryError(text)


def test_workers_that_failed_are_said_by_what_the_first_of_them_met():
    from ray.train import WorkerGroupError

    why = RuntimeError("NCCL error: duplicate GPU\n  detected")
    said = failures.failure(
        WorkerGroupError(
            "[Rank 0,1 Error Snippet]: Traceback (most recent call last): ...",
            {1: ValueError("closed"), 0: why},
        )
    )
    assert (
        said == "2 workers failed, the first with RuntimeError: NCCL error: duplicate GPU detected"
    )
    assert (
        failures.failure(WorkerGroupError("Traceback ...", {1: ValueError("closed")}))
        == "a worker failed with ValueError: closed"
    )
    away = WorkerGroupError(
        "Traceback ...",
        {0: RuntimeError("connection closed by peer"), 1: Unreachable("s3://b does not answer")},
    )
    assert loop.failure_metrics(away) == {
        "epoch": -1,
        "failed": "s3://b does not answer",
        "kind": "away",
    }, "the one that was not met for the other's sake"


def test_an_error_that_is_not_of_memory_stays_what_it_is(run_trial, monkeypatch):
    monkeypatch.setattr(
        Learner, "step", lambda *_: (_ for _ in ()).throw(RuntimeError("size mismatch"))
    )
    with pytest.raises(RuntimeError, match="^size mismatch$"):
        run_trial()
