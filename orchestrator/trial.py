"""One training run in one process, whatever drives it: build, resume, loop, save, report.

Folder of a run or trial:  last/ best/ (checkpoints)  epochs.jsonl  pictures/epoch-0008.png
"""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import torch

from aml import checkpoint
from aml.data import Items, steps_per_epoch
from aml.errors import UserError
from aml.learner import Learner, NonFinite, fit, probe_indices
from aml.masking import Masker
from aml.models import build
from aml.pictures import png, training_rows
from orchestrator.config import Experiment

_ITEMS: dict = {}
"""Items of the data in use, kept between the trials of a reused process; they hold no state of a trial."""


def run(experiment: Experiment, blocks: Callable[[], list[dict]], vocabulary: list[str], folder: Path, report: Callable[[dict], None], **how) -> None:
    """Train to the end, calling report(metrics) after each epoch is safely on disk; report may raise to stop.

    how: device, wrap (DDP), init (a checkpoint to start from). Only rank 0 writes. A folder that holds a finished run reports its last epoch.
    """
    init = how.pop("init", None)
    train, val = items(experiment, blocks)
    learner = make_learner(experiment, train, vocabulary, **how)
    resumed = checkpoint.load_training(folder / "last", learner)
    if not resumed and init:
        checkpoint.load_weights(learner.model, Path(init))
    if learner.progress.epoch >= experiment.train.epochs:
        report(learner.progress.history[-1])
        return
    shown = probe_indices(len(val), experiment.evaluate.pictures)
    for result in fit(learner, train, val, experiment.evaluate):
        if learner.world.rank == 0:
            save(learner, experiment, folder, result)
            if len(shown):
                write_atomic(
                    folder / "pictures" / f"epoch-{result.epoch:04d}.png", png(training_rows(learner, val, shown, experiment.evaluate.threshold))
                )
        report(result.metrics)


def items(experiment: Experiment, blocks: Callable[[], list[dict]]) -> tuple[Items, Items]:
    """Training and validation items; parsed once a process and data set."""
    data = experiment.data
    which = [data.size, data.fit, data.unit, data.train_split, data.val_split, data.train_limit, data.val_limit, data.augment]
    key = json.dumps([str(getattr(blocks, "__self__", blocks)), *which])  # the very blocks: a path may mean other data in another root
    if key not in _ITEMS:
        _ITEMS.clear()
        opened = blocks()
        train = Items(opened, data.train_split, size=data.size, fit=data.fit, unit=data.unit, limit=data.train_limit, augment=data.augment)
        val = Items(opened, data.val_split, size=data.size, fit=data.fit, unit="sentence", limit=data.val_limit)
        _ITEMS[key] = train, val
    return _ITEMS[key]


def make_learner(experiment: Experiment, train: Items, vocabulary: list[str], *, device="cpu", wrap=None) -> Learner:
    """A fresh learner, the same for one seed whatever ran in this process before."""
    torch.manual_seed(experiment.seed)
    spec = dict(experiment.model)
    model = build(spec.pop("name"), vocabulary=vocabulary, **spec)
    masker = Masker(experiment.aml, model=model, image_size=experiment.data.size, seed=experiment.seed)
    steps = steps_per_epoch(len(train), experiment.train.batch)
    return Learner(model, masker, optim=experiment.optim, train=experiment.train, steps=steps, seed=experiment.seed, device=device, wrap=wrap)


def save(learner: Learner, experiment: Experiment, folder: Path, result) -> None:
    """last/ with the training state, best/ where this epoch is the best, and the epoch's line."""
    folder.mkdir(parents=True, exist_ok=True)
    info = {
        "image_size": experiment.data.size,
        "fit": experiment.data.fit,
        "threshold": experiment.evaluate.threshold,
        "arm": experiment.aml.arm,
        "seed": experiment.seed,
        "epoch": result.epoch,
        "metrics": clean(result.metrics),
    }
    if result.improved:
        checkpoint.save(folder / "best", learner.model, info)
    checkpoint.save(folder / "last", learner.model, info, learner.state_dict())
    lines = "".join(json.dumps(clean(metrics)) + "\n" for metrics in learner.progress.history)
    write_atomic(folder / "epochs.jsonl", lines.encode())


def read_history(folder: Path) -> list[dict]:
    """Every finished epoch of the run in `folder`."""
    path = folder / "epochs.jsonl"
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


def clean(metrics: dict) -> dict:
    """JSON has no NaN: null instead."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in metrics.items()}


def keep_to_share(gpus: float, device) -> None:
    """A worker with a part of a GPU may allocate that part of its memory: one that wants more fails alone, not its neighbours."""
    if torch.device(device).type == "cuda":
        torch.cuda.set_per_process_memory_fraction(min(1.0, gpus))


def write_atomic(path: Path, data: bytes) -> None:
    """Complete or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".tmp")
    draft.write_bytes(data)
    os.replace(draft, path)


def failure(error: BaseException) -> str:
    """An error in one sentence, for the ledger and the user."""
    if isinstance(error, (NonFinite, UserError)):
        return str(error)
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
