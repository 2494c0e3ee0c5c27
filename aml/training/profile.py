"""FLOPs and seconds of one training step, for estimates and benchmarks."""

import inspect
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.utils import flop_counter

from aml.data import Batch
from aml.masking import Masker, MaskingConfig
from aml.models import build_model
from aml.training.config import OptimConfig, TrainConfig
from aml.training.learner import Learner
from aml.training.scoring import TrainSums

VOCABULARY = [f"word{i}" for i in range(1000)]


def noise_batch(model: Any, batch: int, size: int, device: str = "cpu") -> Batch:
    """Return a batch of noise with sentences of five words, as large as a real one."""
    generator = torch.Generator().manual_seed(0)
    tokens, token_mask = model.tokenise([" ".join(VOCABULARY[i : i + 5]) for i in range(batch)])
    ids = torch.arange(batch)
    return Batch(
        image=torch.randint(0, 256, (batch, 3, size, size), generator=generator, dtype=torch.uint8),
        tokens=tokens,
        token_mask=token_mask,
        mask=torch.rand(batch, size, size, generator=generator) < 0.05,
        real=torch.tensor([[0, 0, size, size]]).expand(batch, 4),
        size=torch.full((batch, 2), size),
        valid=torch.ones(batch, dtype=torch.bool),
        no_target=torch.zeros(batch, dtype=torch.bool),
        item=ids,
        image_id=ids,
        ref_id=ids,
        sent_id=ids,
        dataset=torch.zeros_like(ids),
        index=ids,
        total=batch,
    ).to(device)


def make_learner_and_batch(
    masking: MaskingConfig,
    spec: dict[str, Any],
    *,
    batch: int,
    size: int,
    precision: str = "fp32",
    device: str = "cpu",
    wrap: Callable | None = None,
) -> tuple[Learner, Batch]:
    """Return a learner and a batch of noise for it.

    Args:
        masking: Settings of masked learning.
        spec: Name and options of the model.
        batch: Samples of a step.
        size: Side of the image in pixels.
        precision: Arithmetic of the model.
        device: Where it computes.
        wrap: As `Learner` takes it.
    """
    torch.manual_seed(0)
    spec = dict(spec)
    model = build_model(spec.pop("name"), vocabulary=VOCABULARY, **spec)
    masker = Masker(masking, model=model, image_size=size)
    learner = Learner(
        model,
        masker,
        optim=OptimConfig(),
        train=TrainConfig(batch=batch, precision=precision),
        steps=1000,
        device=device,
        wrap=wrap,
    )
    return learner, noise_batch(model, batch, size, device)


def step_flops(learner: Learner, batch: Batch) -> int:
    """Return the FLOPs of one training step, stage 1 included.

    torch's counter counts matrix products, convolutions and attention.
    """
    learner.model.train()
    dispatch = inspect.unwrap(flop_counter._FlopCounterMode.__torch_dispatch__)
    # else torch's compiler is imported to be kept out of it, 4 s of the process
    dispatch.__dynamo_disable = dispatch
    with flop_counter.FlopCounterMode(display=False) as counter:
        learner.step(batch, learner.masker.config.first_epoch, 0, TrainSums(learner.device))
    return counter.get_total_flops()


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed_steps(learner: Learner, batch: Batch, index: int) -> float:
    """Return the seconds of step `index`, the device waited for."""
    sums = TrainSums(learner.device)
    start = time.perf_counter()
    learner.step(batch, learner.masker.config.first_epoch, index, sums)
    synchronize(learner.device)
    return time.perf_counter() - start


class StepCost(NamedTuple):
    """Cost of a training step of one worker."""

    samples: int
    seconds: float
    weight_bytes: int
    """Bytes of the model's weights in a checkpoint."""


def step_seconds(experiment: Any, steps: int = 3) -> StepCost:
    """Return samples and seconds of one step on one worker of this machine, and its weights.

    Args:
        experiment: Its sizes are those of the step.
        steps: How many steps are timed.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, int(experiment.resources.cpus_per_worker)))
    batch = experiment.train.batch // experiment.resources.workers
    device = "cuda" if experiment.resources.gpus_per_worker and torch.cuda.is_available() else "cpu"
    learner, noise = make_learner_and_batch(
        experiment.aml,
        experiment.model,
        batch=batch,
        size=experiment.data.size,
        precision=experiment.train.precision,
        device=device,
    )
    seconds = statistics.median([timed_steps(learner, noise, i) for i in range(steps + 1)][1:])
    torch.set_num_threads(before)
    weights = sum(tensor.nbytes for tensor in learner.model.state_dict().values())
    return StepCost(batch, seconds, weights)
