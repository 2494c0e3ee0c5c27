"""One training run in one process: build, resume, train, save, report.

Ray Train workers, in-process Tune trials and `reproduce` all call `run_training`.

Folder of a run or trial:
    last/, best/: checkpoints.
    epochs.jsonl: the metrics of each finished epoch.
    pictures/epoch-0008.png: predictions on a few validation images.
    notes.txt: notes for the person who started the run.
"""

import gc
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from aml.data import Annotations, Items, steps_per_epoch
from aml.errors import OutOfMemory, Unreachable
from aml.inference import draw_training_grid, encode_png
from aml.masking import Masker
from aml.models import build_model
from aml.training import (
    Learner,
    keep_freed_memory,
    load_training,
    load_weights,
    probe_indices,
    train_epochs,
)
from orchestrator import storage
from orchestrator.config import DataConfig, Experiment
from orchestrator.storage import add_note, drop_drafts
from orchestrator.training.checkpoints import RunCheckpointer, save_epoch, write_history
from orchestrator.training.context import BlockSource, RunContext
from orchestrator.training.step_progress import StepReporter
from orchestrator.utils import atomic_write, failure, root_cause

STOP = "stop"
"""Name of a file in a run's folder: a person asks the run to end after the current epoch."""

_ITEMS: dict[str, tuple[Items, Items]] = {}
"""Parsed items of the current data set, shared by the trials of a reused process.

They hold no state of a trial.
"""


def run_training(
    experiment: Experiment,
    blocks: BlockSource,
    vocabulary: list[str],
    folder: Path,
    report: Callable[[dict], None],
    context: RunContext = RunContext(),  # noqa: B008 (frozen)
) -> None:
    """Train to the end, or to `context.stop_epoch`, resuming from the folder's last checkpoint.

    Only rank 0 writes to the folder. A folder that already holds a run of that many epochs
    reports its last epoch again: its process was lost before it could report.

    Args:
        experiment: The settings of the run.
        blocks: Returns the decoded blocks of the data set.
        vocabulary: The words of the data set.
        folder: The folder of the run or trial.
        report: Called with the metrics of each epoch once the epoch is on disk. It may raise to
            stop the run; a file named STOP in the folder stops it too.
        context: Device, model wrapper and hooks of the calling process.

    Raises:
        RunError: The run failed in a way that a restart would repeat.
    """
    keep_freed_memory()
    with memory_errors(experiment):
        _run(experiment, blocks, vocabulary, folder, report, context)


def _run(
    experiment: Experiment,
    blocks: BlockSource,
    vocabulary: list[str],
    folder: Path,
    report: Callable[[dict], None],
    context: RunContext,
) -> None:
    train, val = load_items(experiment, blocks)
    learner = make_learner(
        experiment, train, vocabulary, device=context.device, wrap_model=context.wrap_model
    )
    is_first = learner.world.rank == 0
    _resume(learner, folder, context.init_checkpoint)
    stop_epoch = context.stop_epoch or experiment.train.epochs
    if learner.progress.epoch >= stop_epoch:
        # The process was lost before it could report this epoch, perhaps before it wrote its line.
        if is_first:
            write_history(folder, learner)
        report(learner.progress.history[-1])
        return
    shown = probe_indices(len(val), experiment.evaluate.pictures)
    checkpointer = RunCheckpointer(learner, experiment, folder, context)
    checkpointer.begin()
    reporter = StepReporter(learner, context.on_progress) if is_first else None
    corrupted = {
        condition: partial(_val_items, experiment.data, source)
        for condition, source in context.corrupted.items()
    }
    results = train_epochs(
        learner,
        train,
        val,
        experiment.evaluate,
        checkpointer,
        on_step=reporter,
        on_validation=reporter.validate if reporter else None,
        corrupted=corrupted,
    )
    for result in results:
        checkpointer.saved_at = time.monotonic()
        if is_first:
            if len(shown):
                grid = draw_training_grid(learner, val, shown, experiment.evaluate.threshold)
                file = folder / "pictures" / f"epoch-{result.epoch:04d}.png"
                atomic_write(file, encode_png(grid))
            # Last, so that an epoch which a lost process had not finished is trained again in full.
            save_epoch(
                learner,
                experiment,
                folder,
                result.metrics,
                is_best=result.improved,
                arm=context.arm,
            )
        report(result.metrics)
        if stop_file_seen(folder, learner) or result.epoch >= stop_epoch:
            return


def _resume(learner: Learner, folder: Path, init_checkpoint: Path | None) -> None:
    """Load the folder's last checkpoint, or else the weights of `init_checkpoint`."""
    is_first = learner.world.rank == 0

    def note(text: str) -> None:
        if is_first:
            add_note(folder, text)

    if is_first:
        drop_drafts(folder)
    resumed = load_training(folder / "last", learner, note)
    if not resumed and init_checkpoint:
        load_weights(learner.model, init_checkpoint, note)
    if learner.progress.step:
        note(f"goes on at step {learner.progress.step} of epoch {learner.progress.epoch + 1}")


def restore_from_bucket(folder: Path, *, exact: bool = False) -> storage.BackgroundUploader:
    """Download what the bucket holds of a run and return the uploader of the way back.

    Both do nothing where the folder is in no bucket.

    Args:
        folder: The folder of the run or trial.
        exact: Require the bucket's version. All ranks of a run must start alike, and a member of
            a population may have to continue from another member's checkpoint. Without it the run
            continues with what this machine has, and notes that.

    Returns:
        The uploader of the folder.

    Raises:
        Unreachable: `exact`, and the bucket did not answer for half a minute.
    """
    problem = storage.try_download(folder, exact=exact, force=True, retry=exact)
    if problem and exact:
        raise Unreachable(problem)
    if problem:
        add_note(folder, f"{problem}; training goes on with what is on this machine")
    return storage.BackgroundUploader(folder, lambda text: add_note(folder, text))


def stop_file_seen(folder: Path, learner: Learner) -> bool:
    """Return whether any rank sees the file STOP.

    All ranks return the same, since a rank that went on alone would wait for the others for ever.
    """
    seen = torch.tensor(float((folder / STOP).exists()), device=learner.device)
    return bool(learner.world.sum(seen) > 0)


@contextmanager
def memory_errors(experiment: Experiment) -> Iterator[None]:
    """Turn any error for want of memory into OutOfMemory with what to lower."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # torch.OutOfMemoryError is a RuntimeError; the CPU allocator has no class of its own.
        is_memory = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        if not is_memory and "can't allocate memory" not in str(error):
            raise
        raise OutOfMemory(_memory_message(error, experiment)) from None


def _memory_message(error: BaseException, experiment: Experiment) -> str:
    why = _first_sentences(str(error))
    share = experiment.resources.gpus_per_worker
    is_shared_gpu = isinstance(error, torch.OutOfMemoryError) and 0 < share < 1
    within = f" within its {share:g} of a GPU" if is_shared_gpu else ""
    train = experiment.train
    return (
        f"out of memory{f' ({why})' if why else ''}{within} with train.batch {train.batch} in "
        f"{train.accumulate} micro-step(s), evaluate.batch {experiment.evaluate.batch} and "
        f"data.size {experiment.data.size}; raise train.accumulate (the same training in less "
        "memory) or lower evaluate.batch, train.batch or data.size"
    )


def _first_sentences(text: str) -> str:
    """Return the first two sentences of an allocator's text.

    The rest describes the whole GPU, the process and the allocator's own settings.
    """
    return ". ".join(" ".join(text.split())[:160].split(". ")[:2])


def failure_metrics(error: Exception) -> dict:
    """Return what is reported of a run that a NON_RETRYABLE error ended, and free its memory.

    The next run in this process needs the memory.
    """
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    return {
        "epoch": -1,
        "failed": failure(error),
        "kind": getattr(root_cause(error), "kind", "error"),
    }


def load_items(experiment: Experiment, blocks: BlockSource) -> tuple[Items, Items]:
    """Return training and validation items, parsed once for each process and data set."""
    data = experiment.data
    settings = [
        data.size,
        data.fit,
        data.unit,
        data.train_split,
        data.val_split,
        data.train_limit,
        data.val_limit,
        data.augment,
    ]
    # The block source itself, not a path: a path may mean other data under another root.
    key = json.dumps([str(getattr(blocks, "__self__", blocks)), *settings])
    if key not in _ITEMS:
        _ITEMS.clear()
        opened = blocks()
        train = Items(
            opened,
            data.train_split,
            size=data.size,
            fit=data.fit,
            unit=data.unit,
            limit=data.train_limit,
            augment=data.augment,
        )
        _ITEMS[key] = train, _val_items(data, lambda: opened, train.annotations)
    return _ITEMS[key]


def _val_items(
    data: DataConfig, blocks: BlockSource, annotations: Annotations | None = None
) -> Items:
    """Return the validation items; `annotations` are those of the blocks where they are read."""
    return Items(
        blocks(),
        data.val_split,
        size=data.size,
        fit=data.fit,
        unit="sentence",
        limit=data.val_limit,
        annotations=annotations,
    )


def make_learner(
    experiment: Experiment,
    train: Items,
    vocabulary: list[str],
    *,
    device: torch.device | str = "cpu",
    wrap_model: Callable[[torch.nn.Module], torch.nn.Module] | None = None,
) -> Learner:
    """Return a fresh learner, the same for one seed whatever ran in this process before.

    Args:
        experiment: The settings of the run.
        train: The training items; their number gives the steps of an epoch.
        vocabulary: The words of the data set.
        device: The device to train on.
        wrap_model: Wraps the model for distributed training.

    Returns:
        The learner at step 0.
    """
    torch.manual_seed(experiment.seed)
    options = dict(experiment.model)
    model = build_model(options.pop("name"), vocabulary=vocabulary, **options)
    masker = Masker(
        experiment.aml, model=model, image_size=experiment.data.size, seed=experiment.seed
    )
    return Learner(
        model,
        masker,
        optim=experiment.optim,
        train=experiment.train,
        steps=steps_per_epoch(len(train), experiment.train.batch),
        seed=experiment.seed,
        device=device,
        wrap=wrap_model,
    )


def limit_gpu_memory(gpus: float, device: torch.device | str) -> None:
    """Limit this process to its share of a GPU's memory.

    A worker that needs more then fails alone instead of making its neighbours fail.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.set_per_process_memory_fraction(min(1.0, gpus))
