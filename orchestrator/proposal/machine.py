"""What this machine has, and the sizes that an experiment is proposed with on it.

Trials of a sweep train beside each other, one worker each, since that keeps a machine busier than
several workers of one trial do.
"""

import math
from dataclasses import dataclass

from orchestrator import cluster

SMALL_SIDE = 128
"""Longer side in pixels up to which pictures are called small."""

SAMPLES_CPU, SAMPLES_GPU = 13_000, 400_000
"""Training samples that a trial sees; 13,000 take the quickstart's trial 45 s on one core."""

TRIAL_GB_CPU, TRIAL_GB_GPU = 2.0, 6.0
"""GiB of memory that a trial is counted with: the quickstart's takes 1.1, CUDA some more."""

VAL_LIMIT_CPU = 800
"""Validation sentences at each epoch's end, where there are more and no GPU."""

MOST_EPOCHS, FEWEST_EPOCHS = 40, 4
MOST_WORKER_CPUS = 4


@dataclass(frozen=True)
class Machine:
    """Holds the processors, memory and GPUs of a machine or a cluster."""

    cpus: int
    gpus: int
    memory_gb: float
    """GiB that Ray may give to trials."""

    @property
    def text(self) -> str:
        """Say it in words."""
        gpus = f"{self.gpus} GPU{'s' if self.gpus > 1 else ''}" if self.gpus else "no GPU"
        return f"{self.cpus} CPU cores, {self.memory_gb:.0f} GiB of memory for trials, {gpus}"


@dataclass(frozen=True)
class Proposal:
    """Sizes of an experiment."""

    size: int
    """Side of the network image in pixels."""
    batch: int
    epochs: int
    max_concurrent: int
    """Trials that train at once."""
    cpus_per_worker: int
    gpus_per_worker: int
    val_limit: int | None


def measure_machine() -> Machine:
    """Return what a sweep would run on: this machine, or the cluster of RAY_ADDRESS."""
    have = cluster.total_resources(cluster.planned_nodes())
    return Machine(int(have["CPU"]), int(have["GPU"]), have["memory"] / 2**30)


def propose(machine: Machine, refs: int, val_sentences: int, side: int | None) -> Proposal:
    """Return sizes with which a first sweep on a machine ends soon.

    Args:
        machine: What there is to run on.
        refs: Referents to train on.
        val_sentences: Sentences of the validation split.
        side: Longer side of the pictures in pixels; None where it is not known.
    """
    has_gpu = machine.gpus > 0
    size = 224 if has_gpu else 112
    if side is not None and side <= SMALL_SIDE:
        size = 64
    batch = 64 if has_gpu else 16
    while batch > 4 and refs < 8 * batch:  # an epoch has eight steps at least
        batch //= 2
    samples = SAMPLES_GPU if has_gpu else SAMPLES_CPU
    epochs = min(MOST_EPOCHS, max(FEWEST_EPOCHS, math.ceil(samples / max(refs, 1))))
    slots = machine.gpus if has_gpu else machine.cpus
    fitting = int(machine.memory_gb / (TRIAL_GB_GPU if has_gpu else TRIAL_GB_CPU))
    limited = not has_gpu and val_sentences > VAL_LIMIT_CPU
    return Proposal(
        size=size,
        batch=batch,
        epochs=epochs,
        max_concurrent=max(1, min(slots, fitting)),
        cpus_per_worker=max(1, min(MOST_WORKER_CPUS, machine.cpus // slots)) if has_gpu else 1,
        gpus_per_worker=1 if has_gpu else 0,
        val_limit=VAL_LIMIT_CPU if limited else None,
    )
