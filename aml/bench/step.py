"""Cost of a training step of each arm: time, FLOPs, memory."""

import json
import platform
import statistics
import time
from typing import Any

import torch

from aml.data import Batch
from aml.errors import UserError
from aml.masking import preset
from aml.training import (
    PRECISIONS,
    Learner,
    TrainSums,
    make_learner_and_batch,
    sample_losses,
    step_flops,
    synchronize,
    timed_steps,
)

ARMS = {
    "off": lambda: preset(mode="off"),
    "random": lambda: preset(mode="random"),
    "two_pass": lambda: preset(mode="two_pass"),
    "maskris": lambda: preset(mode="maskris"),
    "oneref": lambda: preset(mode="oneref"),
    "consistency": lambda: preset(mode="consistency"),
    "aml/calibrated": preset,
    "aml/cached": lambda: preset("cached"),
    "aml/paper": lambda: preset("paper"),
    "aml/release": lambda: preset("release"),
}

PEAK_SIDE = 4096


def peak_flops(device: str, precision: str) -> float:
    """Return the FLOPs a second of a large matrix product at this precision, as measured here."""
    dtype = PRECISIONS[precision] or torch.float32
    side = PEAK_SIDE if device.startswith("cuda") else PEAK_SIDE // 4
    a = torch.randn(side, side, device=device, dtype=dtype)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        a @ a
        synchronize(torch.device(device))
        times.append(time.perf_counter() - start)
    return 2 * side**3 / min(times)


def peak_memory_mb(learner: Learner, batch: Batch) -> float | None:
    """Return the most memory allocated on the device during one step, in MiB.

    None on a CPU, whose allocator keeps no such count.
    """
    if learner.device.type != "cuda":
        return None
    # what is made once stays: the optimiser's state, and the workspace of the first product
    timed_steps(learner, batch, 0)
    torch.cuda.reset_peak_memory_stats(learner.device)
    before = torch.cuda.memory_allocated(learner.device)
    timed_steps(learner, batch, 0)
    return (torch.cuda.max_memory_allocated(learner.device) - before + _held(learner)) / 2**20


def _held(learner: Learner) -> int:
    """Return the bytes of the learner's own parameters and optimiser state.

    Other learners are on the device, too.
    """
    state = [t for s in learner.optimizer.state.values() for t in s.values() if torch.is_tensor(t)]
    return sum(
        t.numel() * t.element_size()
        for t in [*learner.model.parameters(), *learner.model.buffers(), *state]
    )


def first_epoch(learner: Learner, batch: Batch) -> None:
    """Train an epoch of one step, so that there are predictions of it for later ones."""
    sums = TrainSums(learner.device)
    learner.step(batch, 0, 0, sums)
    learner.masker.end_epoch(sums.predictions)


def bare_step(learner: Learner, batch: Batch, optimizer) -> float:
    """Return the seconds of forward, loss, backward, clip and step, without the learner."""
    start = time.perf_counter()
    with learner.autocast():
        logits = learner.model(learner.model.normalise(batch.image), batch.tokens, batch.token_mask)
    sample_losses(logits.float(), batch.mask, "ce").mean().backward()
    torch.nn.utils.clip_grad_norm_(learner.model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    synchronize(learner.device)
    return time.perf_counter() - start


def compare(spec: dict, *, batch: int, size: int, precision: str, device: str, rounds: int) -> dict:
    """Time every arm in turn, `rounds` times.

    Returns:
        JSON-ready medians of ms with quartiles, samples/s, FLOPs, memory, and ratios to off that
        are
        paired round by round.
    """
    learners = {}
    for arm, config in ARMS.items():
        try:
            learners[arm] = make_learner_and_batch(
                config(), spec, batch=batch, size=size, precision=precision, device=device
            )
        except UserError as error:  # a preset may ask for what this model or size does not have
            print(f"{arm:16} left out: {error}")
    for pair in learners.values():
        first_epoch(*pair)
    memory: dict[str, Any] = {arm: peak_memory_mb(*pair) for arm, pair in learners.items()}
    flops = {arm: step_flops(*pair) for arm, pair in learners.items()}
    bare, bare_batch = make_learner_and_batch(
        ARMS["off"](), spec, batch=batch, size=size, precision=precision, device=device
    )
    optimizer = torch.optim.AdamW(
        [p for p in bare.model.parameters() if p.requires_grad], fused=True
    )
    best = peak_flops(device, precision)
    times: dict[str, list[float]] = {arm: [] for arm in [*learners, "bare loop"]}
    for index in range(rounds + 2):
        for arm, (learner, noise) in learners.items():
            times[arm].append(timed_steps(learner, noise, index))
        times["bare loop"].append(bare_step(bare, bare_batch, optimizer))
    times = {arm: t[2:] for arm, t in times.items()}  # the first two warm caches up
    rows = {}
    for arm, t in times.items():
        ratio = [a / b for a, b in zip(t, times["off"], strict=True)]
        rows[arm] = {
            **(
                {
                    "memory_mb": round(memory[arm], 1),
                    "memory_to_off": round(memory[arm] / memory["off"], 4),
                }
                if memory.get(arm)
                else {}
            ),
            "ms": round(1e3 * statistics.median(t), 2),
            "ms_quartiles": [round(1e3 * q, 2) for q in statistics.quantiles(t, n=4)[::2]],
            "samples_per_s": round(batch / statistics.median(t), 1),
            "time_to_off": round(statistics.median(ratio), 4),
            "time_to_off_quartiles": [round(q, 4) for q in statistics.quantiles(ratio, n=4)[::2]],
            **(
                {
                    "gflops": round(flops[arm] / 1e9, 3),
                    "flops_to_off": round(flops[arm] / flops["off"], 4),
                    "share_of_peak": round(flops[arm] / statistics.median(t) / best, 4),
                }
                if arm in flops
                else {}
            ),
        }
    return {
        "model": spec,
        "batch": batch,
        "image_size": size,
        "precision": precision,
        "device": device,
        "device_name": torch.cuda.get_device_name(device)
        if device.startswith("cuda")
        else platform.processor() or platform.machine(),
        "peak_tflops": round(best / 1e12, 3),
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "arms": rows,
    }


def plain(text: str) -> Any:
    """Return a number, true, false, null or a list as JSON has it; anything else is text."""
    try:
        return json.loads(text)
    except ValueError:
        return text
