"""Device, data source and hooks that a process gives to the training loop."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from aml.conditions import Condition
from aml.data import Window

BlockSource = Callable[[], list[dict] | Window]
"""Returns the decoded blocks of a data set, or a window that streams them."""


def _no_notice() -> str:
    return ""


def _ignore() -> None:
    return None


def _ignore_progress(_: dict[str, float]) -> None:
    return None


@dataclass(frozen=True)
class RunContext:
    """Device, model wrapper and hooks of the process that calls `run_training`."""

    device: torch.device | str = "cpu"
    wrap_model: Callable[[torch.nn.Module], torch.nn.Module] | None = None
    """Wraps the model for distributed training (DDP)."""
    arm: str | None = None
    """What checkpoints call the arm; None: what the masking settings say."""
    init_checkpoint: Path | None = None
    """A checkpoint whose weights a run without a checkpoint of its own starts from."""
    corrupted: Mapping[Condition, BlockSource] = field(default_factory=dict)
    """Returns the validation pictures under each corruption that a search trial is scored under
    after its last epoch."""
    stop_epoch: int | None = None
    """Number of finished epochs at which `run_training` returns; None: train.epochs."""
    should_checkpoint: Callable[[], str] = _no_notice
    """Returns why the run should be saved now, in the middle of an epoch; "" otherwise."""
    on_checkpoint: Callable[[], None] = _ignore
    """Called on rank 0 after the run was saved in the middle of an epoch."""
    on_progress: Callable[[dict[str, float]], None] = _ignore_progress
    """Called on rank 0 now and then within an epoch, with what `StepReporter` says."""
