"""Compare several workers with one, step by step and without Ray.

Batches, losses and validation sums are the same, even if the number of workers changes.
"""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from aml.data.batches import eval_batches, train_batches
from aml.data.dataset import Items
from aml.data.window import Window
from aml.masking.config import preset
from aml.masking.masker import Masker
from aml.training import checkpoint
from aml.training.config import OptimConfig, TrainConfig
from aml.training.learner import Learner
from aml.training.scoring import TrainSums
from orchestrator.data.decoded import ShardSelection
from orchestrator.data.streaming import RowGroupReader
from tests.conftest import SIZE
from tests.support.stores import write_store

BATCH, STEPS = 16, 4


def one_epoch(items, model, mode: str, wrap=None) -> tuple[list[float], list[int]]:
    """Per-step loss of the global batch, then validation I, U and n."""
    masker = Masker(
        preset(mode=mode, tau=0.5, rho=0.5, stage1_scale=1.0), model=model, image_size=64
    )
    learner = Learner(
        model,
        masker,
        optim=OptimConfig(clip=1.0),
        train=TrainConfig(batch=BATCH, epochs=2),
        steps=STEPS,
        wrap=wrap,
    )
    per_step, world = [], learner.world
    for index, batch in enumerate(
        train_batches(
            items["train"], model, batch=BATCH, seed=0, epoch=0, rank=world.rank, world=world.size
        )
    ):
        sums = TrainSums("cpu")
        learner.wrapped.train()
        learner.step(batch, 0, index, sums)
        per_step.append(float(world.sum(sums.loss)))
    found = learner.evaluate(
        eval_batches(items["val"], model, batch=7, rank=world.rank, world=world.size)
    )
    return per_step, [found.intersection, found.union, found.n]


def windowed(store) -> dict[str, Items]:
    """Items whose pictures are read two row groups at a time."""
    pictures = RowGroupReader(
        (ShardSelection(store, frozenset({"train", "val"}), {}),), SIZE, "square"
    )
    window = Window(pictures, nbytes=2 * max(pictures.nbytes))
    return {
        split: Items(window, split, size=SIZE, unit=unit)
        for split, unit in (("train", "ref"), ("val", "sentence"))
    }


def worker(rank: int, port: int, items, model, mode: str, results) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    model = copy.deepcopy(
        model
    )  # what spawn hands over is shared memory: both workers would update one set of weights
    results[rank] = one_epoch(items, model, mode, wrap=torch.nn.parallel.DistributedDataParallel)
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("mode", "where"), [("off", "memory"), ("aml", "memory"), ("off", "window")]
)
def test_two_workers_take_the_steps_one_takes(
    items, rows, tmp_path, make_model, mode, where, unused_port
):
    if where == "window":
        items = windowed(write_store(tmp_path / "shards", rows))
    alone, sums = one_epoch(items, make_model(dropout=0.0), mode)
    assert len(alone) == STEPS
    with mp.get_context("spawn").Manager() as manager:
        results = manager.dict()
        mp.spawn(
            worker, args=(unused_port, items, make_model(dropout=0.0), mode, results), nprocs=2
        )
        (first, both), (second, _) = results[0], results[1]
    assert first == second == pytest.approx(alone, rel=1e-4)
    assert both[2] == sums[2] == len(items["val"])
    assert both[:2] == pytest.approx(sums[:2], rel=1e-3)


def second_epoch(items, model, folder, wrap=None) -> list[float]:
    """Return the loss of the global batch at each step of one epoch.

    It is the epoch after the one whose training state lies in `folder`.
    """
    masker = Masker(
        preset(mode="aml", tau=0.5, rho=0.5, stage1_scale=1.0), model=model, image_size=64
    )
    learner = Learner(
        model,
        masker,
        optim=OptimConfig(clip=1.0),
        train=TrainConfig(batch=BATCH, epochs=2),
        steps=STEPS,
        wrap=wrap,
    )
    world, losses = learner.world, []
    if not checkpoint.load_training(folder / "last", learner):
        run_epoch(learner, items, 0)
        learner.progress.epoch = 1
        checkpoint.save_checkpoint(folder / "last", model, {}, learner.state_dict())
    for sums in run_epoch(learner, items, 1):
        losses.append(float(world.sum(sums.loss)))
    return losses


def run_epoch(learner, items, epoch: int) -> list[TrainSums]:
    world, found = learner.world, []
    learner.wrapped.train()
    batches = train_batches(
        items["train"],
        learner.model,
        batch=BATCH,
        seed=0,
        epoch=epoch,
        rank=world.rank,
        world=world.size,
    )
    for index, batch in enumerate(batches):
        found.append(TrainSums("cpu"))
        learner.step(batch, epoch, index, found[-1])
    return found


def late_worker(rank: int, port: int, items, model, folder, results) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=3)
    results[rank] = second_epoch(
        items, copy.deepcopy(model), folder, wrap=torch.nn.parallel.DistributedDataParallel
    )
    dist.destroy_process_group()


def test_three_workers_go_on_where_one_stopped(items, make_model, tmp_path, unused_port):
    alone = second_epoch(
        items, make_model(dropout=0.0), tmp_path
    )  # its first epoch is saved, its second is what the three must repeat
    with mp.get_context("spawn").Manager() as manager:
        results = manager.dict()
        mp.spawn(
            late_worker,
            args=(unused_port, items, make_model(1, dropout=0.0), tmp_path, results),
            nprocs=3,
        )  # 16 items: 5, 5 and 6
        found = dict(results)
    assert len(alone) == STEPS and found[0] == found[1] == found[2] == pytest.approx(
        alone, rel=1e-4
    )
