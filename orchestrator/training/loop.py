"""One training run in one process, whatever drives it: build, resume, loop, save, report.

Folder of a run or trial:  last/ best/ (checkpoints)  epochs.jsonl  pictures/epoch-0008.png  notes.txt (what a person should know)
"""

import gc
import json
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import torch

from aml.data import Items, steps_per_epoch
from aml.errors import OutOfMemory, Unreachable
from aml.inference import png, training_rows
from aml.masking import Masker
from aml.models import build_model
from aml.training import (
    Learner,
    load_training,
    load_weights,
    probe_indices,
    save_checkpoint,
    train_epochs,
    usable_checkpoint,
)
from orchestrator import storage
from orchestrator.config import Experiment
from orchestrator.storage import add_note, drop_drafts
from orchestrator.utils import atomic_write, failure, root_cause, without_nan

STOP = "stop"

"""In a run's folder: a person asks it to end after the epoch under way."""

NOTICED_S = 30.0

"""Between saves of a run whose machine is to be taken away."""

_ITEMS: dict = {}

"""Items of the data in use, kept between the trials of a reused process; they hold no state of a trial."""


def run_training(
    experiment: Experiment,
    blocks: Callable[[], list[dict]],
    vocabulary: list[str],
    folder: Path,
    report: Callable[[dict], None],
    **how,
) -> None:
    """Train to the end, calling report(metrics) after each epoch is safely on disk; report may raise to stop, and so does a file STOP.

    how: device, wrap (DDP), init (a checkpoint to start from), until (epochs done at which to return, before the end), notice (-> why it should
    be saved now, or nothing), kept (called when the run was saved in the middle of an epoch). Only rank 0 writes. A folder that holds a
    run that came so far reports its last epoch. RunError: it would end so again.
    """
    with memory_errors(experiment):
        _run(experiment, blocks, vocabulary, folder, report, **how)


def _run(
    experiment: Experiment, blocks, vocabulary: list[str], folder: Path, report, *,
    init=None, until: int | None = None, notice: Callable[[], str] = str, kept: Callable[[], None] = lambda: None, **how,
) -> None:  # fmt: skip
    train, val = load_items(experiment, blocks)
    learner = make_learner(experiment, train, vocabulary, **how)
    first = learner.world.rank == 0

    def note(text: str) -> None:
        if first:
            add_note(folder, text)

    if first:
        drop_drafts(folder)
    resumed = load_training(folder / "last", learner, note)
    if not resumed and init:
        load_weights(learner.model, usable_checkpoint(Path(init), note))
    if learner.progress.step:
        note(f"goes on at step {learner.progress.step} of epoch {learner.progress.epoch + 1}")
    until = until or experiment.train.epochs
    if (
        learner.progress.epoch >= until
    ):  # its process was lost before it could tell, perhaps before it could note it
        if first:
            write_history(folder, learner)
        report(learner.progress.history[-1])
        return
    shown = probe_indices(len(val), experiment.evaluate.pictures)
    keeper = RunCheckpointer(learner, experiment, folder, notice, kept)
    for result in train_epochs(learner, train, val, experiment.evaluate, keeper):
        keeper.saved = time.monotonic()
        if first:
            if len(shown):
                rows = training_rows(learner, val, shown, experiment.evaluate.threshold)
                atomic_write(folder / "pictures" / f"epoch-{result.epoch:04d}.png", png(rows))
            save_epoch(
                learner, experiment, folder, result
            )  # last: an epoch that a lost process had not come to the end of is done again, all of it
        report(result.metrics)
        if stop_file_seen(folder, learner) or result.epoch >= until:
            return


def restore_from_bucket(folder: Path, *, exact: bool = False) -> storage.BackgroundUploader:
    """What the bucket has of a run is here, and the way back; nothing of either where the folder is in no bucket.

    exact: as the bucket has it, for all ranks must begin alike, and a member of a population may be to go on from another's checkpoint.
    Unreachable then where it does not answer for half a minute; any other trial goes on with what is here.
    """
    problem, deadline = (
        storage.try_download(folder, exact=exact, insist=True),
        time.monotonic() + storage.ANSWER_S,
    )
    while problem and exact and time.monotonic() < deadline:
        time.sleep(1.0)
        problem = storage.try_download(folder, exact=True)
    if problem and exact:
        raise Unreachable(problem)
    if problem:
        add_note(folder, f"{problem}; training goes on with what is on this machine")
    return storage.BackgroundUploader(folder, storage.TRIAL, lambda text: add_note(folder, text))


def stop_file_seen(folder: Path, learner: Learner) -> bool:
    """Whether a worker has seen the file STOP: all answer alike, or some would wait for the others for ever."""
    seen = torch.tensor(float((folder / STOP).exists()), device=learner.device)
    return bool(learner.world.sum(seen) > 0)


@contextmanager
def memory_errors(experiment: Experiment):
    """Memory that is not enough becomes OutOfMemory, whoever raises it."""
    try:
        yield
    except (
        MemoryError,
        RuntimeError,
    ) as error:  # torch.OutOfMemoryError is a RuntimeError; a CPU's allocator has no class of its own
        if not isinstance(
            error, (MemoryError, torch.OutOfMemoryError)
        ) and "can't allocate memory" not in str(error):
            raise
        why, share = _first_of(str(error)), experiment.resources.gpus_per_worker
        within = (
            f" within its {share:g} of a GPU"
            if isinstance(error, torch.OutOfMemoryError) and 0 < share < 1
            else ""
        )
        raise OutOfMemory(
            f"out of memory{f' ({why})' if why else ''}{within} with train.batch {experiment.train.batch} in {experiment.train.accumulate} micro-step(s), "
            f"evaluate.batch {experiment.evaluate.batch} and data.size {experiment.data.size}; raise train.accumulate (the same training in less "
            "memory) or lower evaluate.batch, train.batch or data.size"
        ) from None


def _first_of(text: str) -> str:
    """The first sentences of an allocator's text, which goes on with the whole GPU, the process and settings of its own."""
    return ". ".join(" ".join(text.split())[:160].split(". ")[:2])


def failure_metrics(error: Exception) -> dict:
    """What is reported of a run that has ended by one of FINAL; the memory it held is given back for the next in this process."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    return {
        "epoch": -1,
        "failed": failure(error),
        "kind": getattr(root_cause(error), "kind", "error"),
    }


def load_items(experiment: Experiment, blocks: Callable[[], list[dict]]) -> tuple[Items, Items]:
    """Training and validation items; parsed once a process and data set."""
    data = experiment.data
    which = [
        data.size,
        data.fit,
        data.unit,
        data.train_split,
        data.val_split,
        data.train_limit,
        data.val_limit,
        data.augment,
    ]
    key = json.dumps(
        [str(getattr(blocks, "__self__", blocks)), *which]
    )  # the very blocks: a path may mean other data in another root
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
        val = Items(
            opened,
            data.val_split,
            size=data.size,
            fit=data.fit,
            unit="sentence",
            limit=data.val_limit,
            meta=train.meta,
        )
        _ITEMS[key] = train, val
    return _ITEMS[key]


def make_learner(
    experiment: Experiment, train: Items, vocabulary: list[str], *, device="cpu", wrap=None
) -> Learner:
    """A fresh learner, the same for one seed whatever ran in this process before."""
    torch.manual_seed(experiment.seed)
    spec = dict(experiment.model)
    model = build_model(spec.pop("name"), vocabulary=vocabulary, **spec)
    masker = Masker(
        experiment.aml, model=model, image_size=experiment.data.size, seed=experiment.seed
    )
    steps = steps_per_epoch(len(train), experiment.train.batch)
    return Learner(
        model,
        masker,
        optim=experiment.optim,
        train=experiment.train,
        steps=steps,
        seed=experiment.seed,
        device=device,
        wrap=wrap,
    )


class RunCheckpointer:
    """Saves a run into last/ in the middle of an epoch (aml.learner.Keeper): every resources.save_every_s, and when there is a notice (its machine
    is to be taken away, its driver is to end), at once and then twice a minute until it comes true."""

    def __init__(
        self,
        learner: Learner,
        experiment: Experiment,
        folder: Path,
        notice: Callable[[], str],
        kept: Callable[[], None],
    ):
        self.learner, self.experiment, self.folder, self.notice, self.kept = (
            learner,
            experiment,
            folder,
            notice,
            kept,
        )
        self.saved, self.noticed = time.monotonic(), ""
        self.every = 1 if learner.world.size == 1 else 16  # ranks wait for each other to agree

    def due(self) -> bool:
        since, every_s = time.monotonic() - self.saved, self.experiment.resources.save_every_s
        if why := self.notice():
            return why != self.noticed or since >= NOTICED_S
        return every_s is not None and since >= every_s

    def save(self) -> None:
        self.saved, self.noticed = time.monotonic(), self.notice()
        if self.learner.world.rank == 0:
            learner, done = self.learner, self.learner.progress
            metrics = done.history[-1] if done.history else {}
            save_checkpoint(
                self.folder / "last",
                learner.model,
                checkpoint_info(self.experiment, done.epoch, metrics),
                learner.state_dict(),
            )
            if self.noticed:
                add_note(
                    self.folder,
                    f"{self.noticed}: saved at step {done.step} of epoch {done.epoch + 1}",
                )
            self.kept()


def checkpoint_info(experiment: Experiment, epoch: int, metrics: dict) -> dict:
    """What a checkpoint says of itself after so many epochs."""
    return {
        "image_size": experiment.data.size,
        "fit": experiment.data.fit,
        "threshold": experiment.evaluate.threshold,
        "precision": experiment.train.precision,
        "arm": experiment.aml.arm,
        "seed": experiment.seed,
        "epoch": epoch,
        "metrics": without_nan(metrics),
    }


def save_epoch(learner: Learner, experiment: Experiment, folder: Path, result) -> None:
    """best/ where this epoch is the best, last/ with the training state, and the epoch's line."""
    folder.mkdir(parents=True, exist_ok=True)
    info = checkpoint_info(experiment, result.epoch, result.metrics)
    if result.improved:
        save_checkpoint(folder / "best", learner.model, info)
    save_checkpoint(folder / "last", learner.model, info, learner.state_dict())
    write_history(folder, learner)


def write_history(folder: Path, learner: Learner) -> None:
    lines = "".join(json.dumps(without_nan(metrics)) + "\n" for metrics in learner.progress.history)
    atomic_write(folder / "epochs.jsonl", lines.encode())


def limit_gpu_memory(gpus: float, device) -> None:
    """A worker with a part of a GPU may allocate that part of its memory: one that wants more fails alone, not its neighbours."""
    if torch.device(device).type == "cuda":
        torch.cuda.set_per_process_memory_fraction(min(1.0, gpus))
