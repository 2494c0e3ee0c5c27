"""Settings of training, evaluation and optimizer."""

from dataclasses import dataclass, field

import torch

from aml.errors import UserError

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Length and arithmetic of training."""

    epochs: int = 10
    batch: int = 32
    """Global batch: samples of one optimiser step over all workers."""
    accumulate: int = 1
    """Micro-steps a step: a rank's part is cut into as many."""
    precision: str = "fp32"
    """fp32, bf16 or fp16 (with a loss scaler)."""
    compile: bool = False
    """Train through torch.compile: minutes at the start, faster steps on a GPU; evaluation and stage 1 run uncompiled."""
    max_skipped: float = 0.2
    """Share of an epoch's steps that may be skipped for a non-finite loss or gradient before the run stops."""

    def __post_init__(self):
        if min(self.epochs, self.batch, self.accumulate) < 1:
            raise UserError(
                f"train.epochs {self.epochs}, batch {self.batch}, accumulate {self.accumulate}: each must be at least 1"
            )
        if self.precision not in PRECISIONS:
            raise UserError(
                f"train.precision is {self.precision!r}; known: {', '.join(PRECISIONS)}"
            )
        if not 0 <= self.max_skipped <= 1:
            raise UserError(f"train.max_skipped is {self.max_skipped}; it must lie in [0, 1]")

    def check_workers(self, workers: int) -> None:
        """UserError where some worker would have nothing to do in any step."""
        if self.batch < workers * self.accumulate:
            raise UserError(
                f"train.batch {self.batch} is less than an item for each of {workers} workers x {self.accumulate} micro-steps; "
                "raise it, or lower resources.workers or train.accumulate"
            )


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Validation at each epoch's end."""

    batch: int = 64
    """Sentences at a time on a worker."""
    threshold: float = 0.5
    """A pixel is the referent's from this probability on."""
    probe: int = 128
    """Validation sentences, always the same, on which the mask is diagnosed."""
    pictures: int = 8
    """Validation sentences, always the same, that are drawn."""

    def __post_init__(self):
        if self.batch < 1 or self.probe < 0 or self.pictures < 0:
            raise UserError(
                f"evaluate.batch {self.batch}, probe {self.probe}, pictures {self.pictures}: batch must be at least 1, the others 0"
            )
        if not 0 < self.threshold < 1:
            raise UserError(f"evaluate.threshold is {self.threshold}; it must lie between 0 and 1")


LOSSES = ("ce", "bce", "ce+dice")

SCHEDULES = ("poly", "steps")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW, warm-up then poly decay per step."""

    lr: float = 1e-3
    encoder_lr: float = 0.1
    """Rate of the parameters in model.encoders, as a share of lr."""
    weight_decay: float = 0.01
    """0 on norms, biases, scales and what the model lists in no_decay."""
    warmup_epochs: float = 0.0
    """Linear from 1e-3 of the rate; give this or warmup_steps."""
    warmup_steps: int = 0
    power: float = 0.9
    """Of the poly decay (1 - step/steps)^power."""
    schedule: str = "poly"
    """poly: decay at each step. steps: times gamma after each of the milestones."""
    milestones: list[int] = field(default_factory=list)
    """Epochs after which the rate falls, for schedule steps."""
    gamma: float = 0.1
    clip: float | None = 1.0
    """Largest gradient norm; null: none."""
    loss: str = "ce"
    """ce: cross-entropy with weights 0.9 (background) and 1.1. bce: the same without weights. ce+dice: ce plus 1 - Dice."""

    def __post_init__(self):
        if (
            not self.lr > 0
            or self.weight_decay < 0
            or self.encoder_lr < 0
            or (self.clip is not None and self.clip <= 0)
        ):
            raise UserError(
                f"optim.lr {self.lr}, weight_decay {self.weight_decay}, encoder_lr {self.encoder_lr}, clip {self.clip}: "
                "lr and clip must be above 0, the others not below"
            )
        if self.warmup_epochs and self.warmup_steps:
            raise UserError(
                f"optim.warmup_epochs is {self.warmup_epochs} and optim.warmup_steps is {self.warmup_steps}; give one of them"
            )
        if min(self.warmup_epochs, self.warmup_steps, self.power) < 0:
            raise UserError(
                f"optim.warmup_epochs, warmup_steps and power must not be below 0; got {self.warmup_epochs}, {self.warmup_steps}, {self.power}"
            )
        if self.schedule not in SCHEDULES:
            raise UserError(f"optim.schedule is {self.schedule!r}; known: {', '.join(SCHEDULES)}")
        if (self.schedule == "steps") != bool(self.milestones) or self.gamma <= 0:
            raise UserError(
                f"optim.schedule {self.schedule} with milestones {self.milestones} and gamma {self.gamma}: steps needs epochs in milestones and "
                "a gamma above 0, poly takes none"
            )
        if self.loss not in LOSSES:
            raise UserError(f"optim.loss is {self.loss!r}; known: {', '.join(LOSSES)}")
