"""Measure what a step gains from more workers, and what communication costs.

    python -m aml.bench workers --workers 2 --image-size 64 --batch 16

The same global batch is trained three ways in turn: by one worker while the others wait, by all of
them with their gradients summed, and by all of them each for itself. What the second takes over the
third is communication, and waiting for the slowest.
"""

import json
import platform
import statistics
import tempfile
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from aml.bench.step import ARMS
from aml.data import rank_part
from aml.errors import UserError
from aml.training import make_learner_and_batch, timed_steps

WARM = 3

WAYS = ("alone", "together", "apart")


def measure(
    spec: dict, *, workers: int, batch: int, size: int, precision: str, device: str, rounds: int
) -> dict:
    """Time the three ways.

    Returns:
        JSON-ready medians: milliseconds of the three ways, `speedup` (alone over together) and
        `communication_share` (of a step together), each with its quartiles over rounds paired one
        by one.

    Raises:
        UserError: A worker would have no sample, or no GPU.
    """
    if not 2 <= workers <= batch:
        raise UserError(
            f"bench workers was given {workers} workers for a batch of {batch}; it needs at "
            "least 2, and a sample for each"
        )
    if device.startswith("cuda") and torch.cuda.device_count() < workers:
        raise UserError(
            f"bench workers was given {workers} workers on cuda, but {torch.cuda.device_count()} "
            "GPUs are here; use --device cpu or fewer"
        )
    with tempfile.TemporaryDirectory() as folder:
        given = (
            folder,
            spec,
            workers,
            batch,
            size,
            precision,
            device.split(":")[0],
            rounds,
            torch.get_num_threads(),
        )
        mp.spawn(_worker, args=given, nprocs=workers)
        times = json.loads((Path(folder) / "times.json").read_text("utf-8"))
    speedup = [a / t for a, t in zip(times["alone"], times["together"], strict=True)]
    share = [1 - a / t for a, t in zip(times["apart"], times["together"], strict=True)]
    return {
        "model": spec,
        "workers": workers,
        "batch": batch,
        "image_size": size,
        "precision": precision,
        "device": device,
        "device_name": torch.cuda.get_device_name(0)
        if device.startswith("cuda")
        else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        **{f"{way}_ms": round(1e3 * statistics.median(times[way]), 2) for way in WAYS},
        "speedup": round(statistics.median(speedup), 4),
        "speedup_quartiles": [round(q, 4) for q in statistics.quantiles(speedup, n=4)[::2]],
        "communication_share": round(statistics.median(share), 4),
        "communication_share_quartiles": [
            round(q, 4) for q in statistics.quantiles(share, n=4)[::2]
        ],
    }


def lines(found: dict) -> list[str]:
    """Return what `measure` found as lines of text."""
    low, high = found["communication_share_quartiles"]
    return [
        f"a step of {found['batch']}: one worker {found['alone_ms']:.2f} ms, {found['workers']} "
        f"workers {found['together_ms']:.2f} ms (x{found['speedup']:.3f} faster), "
        f"without summing gradients {found['apart_ms']:.2f} ms",
        f"communication and waiting: {found['communication_share']:.1%} of a step (quartiles "
        f"{low:.1%} to {high:.1%})",
    ]


def _worker(
    rank: int,
    folder: str,
    spec: dict,
    workers: int,
    batch: int,
    size: int,
    precision: str,
    device: str,
    rounds: int,
    threads: int,
) -> None:
    torch.set_num_threads(threads)
    where = f"cuda:{rank}" if device == "cuda" else "cpu"
    if device == "cuda":
        torch.cuda.set_device(rank)
    dist.init_process_group(
        "nccl" if device == "cuda" else "gloo",
        init_method=f"file://{folder}/meet",
        rank=rank,
        world_size=workers,
    )
    learner, noise = make_learner_and_batch(
        ARMS["off"](),
        spec,
        batch=batch,
        size=size,
        precision=precision,
        device=where,
        wrap=DistributedDataParallel,
    )
    mine = replace(noise.part(rank_part(batch, rank, workers)), total=batch)
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for index in range(rounds + WARM):
        for way in WAYS:
            dist.barrier()
            if way == "alone" and rank:
                continue
            with nullcontext() if way == "together" else learner.wrapped.no_sync():
                times[way].append(timed_steps(learner, noise if way == "alone" else mine, index))
    if rank == 0:
        (Path(folder) / "times.json").write_text(
            json.dumps({way: t[WARM:] for way, t in times.items()}), "utf-8"
        )
    dist.destroy_process_group()
