"""The training loop, written once: it knows batches, a model and a masker, and no cluster.

    for result in fit(learner, train_items, val_items):
        report(result.metrics); learner.save(folder)

Plain code, a light trial and a distributed worker drive the same generator. A step is: stage 1 (forward only) decides what to hide,
stage 2 trains on the masked image against the full mask. A resumed run goes on where it was saved, with the same order and draws.

    B samples of this rank, H W network image, h w logits
"""

import math
import resource
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F

from aml.data import Batch, Items, eval_batches, some_batches, train_batches
from aml.diagnostics import MaskSums
from aml.errors import NonFinite, UserError
from aml.masking import Masker, MaskingConfig, Pass
from aml.metrics import THRESHOLDS, Sums, score_masks
from aml.optim import EagerAdamW, OptimConfig, lr_factor, parameter_groups, pass_losses

OWN = ("base_lr", "weight_decay")
"""Settings of an optimiser's group that a resumed run takes from its configuration: they may have changed on purpose."""
ENDED = "time/ended"
"""Of an epoch's metrics: when it ended, in Unix seconds."""
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
            raise UserError(f"train.epochs {self.epochs}, batch {self.batch}, accumulate {self.accumulate}: each must be at least 1")
        if self.precision not in PRECISIONS:
            raise UserError(f"train.precision is {self.precision!r}; known: {', '.join(PRECISIONS)}")
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
            raise UserError(f"evaluate.batch {self.batch}, probe {self.probe}, pictures {self.pictures}: batch must be at least 1, the others 0")
        if not 0 < self.threshold < 1:
            raise UserError(f"evaluate.threshold is {self.threshold}; it must lie between 0 and 1")


class World:
    """The workers that train together; one process unless torch.distributed is up."""

    def __init__(self):
        up = dist.is_available() and dist.is_initialized()
        self.rank, self.size = (dist.get_rank(), dist.get_world_size()) if up else (0, 1)

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        if self.size > 1:
            dist.all_reduce(x)
        return x

    def mean(self, x: torch.Tensor) -> torch.Tensor:
        return self.sum(x) / self.size

    def gather(self, mine) -> list:
        """What each rank has, in the order of ranks."""
        every = [mine] * self.size
        if self.size > 1:
            dist.all_gather_object(every, mine)
        return every


class Keeper(Protocol):
    """Who saves a run in the middle of an epoch."""

    every: int
    """Steps after which it is asked; also when all steps of the epoch are done."""

    def due(self) -> bool:
        """Whether this rank wants it saved now; where one does, all save."""

    def save(self) -> None:
        """Save the learner as it is: called on every rank, and one writes."""


class Result(NamedTuple):
    """What an epoch brought."""

    epoch: int
    """1-based: epochs done."""
    metrics: dict[str, float]
    improved: bool
    """The best validation mIoU so far."""


@dataclass
class Progress:
    """What resuming needs besides model, optimiser and masker."""

    epoch: int = 0
    """Epochs done."""
    step: int = 0
    """Steps done of the epoch under way."""
    ranks: list[dict] = field(default_factory=list)
    """At that step each rank's running sums and random generators."""
    best: float = -1.0
    """Best validation mIoU so far."""
    history: list[dict] = field(default_factory=list)


class Learner:
    """Model, masker and optimiser, and the step that moves them."""

    def __init__(
        self,
        model,
        masker: Masker,
        *,
        optim: OptimConfig,
        train: TrainConfig,
        steps: int,
        seed: int = 0,
        device="cpu",
        wrap: Callable | None = None,
    ):
        """steps: optimiser steps an epoch. wrap: makes the module that training calls (DDP); everything else uses the bare model."""
        self.world, self.device, self.seed = World(), torch.device(device), seed
        train.check_workers(self.world.size)
        self.model, self.masker = model.to(self.device), masker
        masker.mean_over_ranks = self.world.mean
        wrapped = wrap(self.model) if wrap else self.model
        self.wrapped = torch.compile(wrapped) if train.compile else wrapped
        self.optim_config, self.config, self.steps = optim, train, steps
        self.total_steps = steps * train.epochs
        self.warmup = optim.warmup_steps or round(optim.warmup_epochs * steps)
        kind = torch.optim.AdamW if train.compile else EagerAdamW
        self.optimizer = kind(parameter_groups(model, optim), lr=optim.lr, fused=True)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=train.precision == "fp16")
        self.progress = Progress()

    # -- one step

    def step(self, batch: Batch, epoch: int, index: int, sums: "TrainSums") -> None:
        """One optimiser step on this rank's part of a global batch; index counts steps within the epoch."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * lr_factor(epoch * self.steps + index, self.total_steps, self.warmup, self.optim_config, self.steps)
        batch, loss_before = batch.to(self.device), sums.loss.clone()
        size = len(batch.valid) // self.config.accumulate
        for micro in range(self.config.accumulate):
            self._accumulate(batch.part(slice(micro * size, (micro + 1) * size)), epoch, sums, last=micro == self.config.accumulate - 1)
        skipped = self._update()
        sums.skipped += skipped
        sums.loss = torch.where(skipped > 0, loss_before, sums.loss)

    def _accumulate(self, batch: Batch, epoch: int, sums: "TrainSums", *, last: bool) -> None:
        """The passes the mode asks for, forward and backward; gradients meet the other ranks' in the last backward only."""
        passes = self.masker.passes(self.model, self.model.normalise(batch.image), batch, epoch)
        sent = None
        while True:
            start = time.perf_counter()
            try:
                with self.autocast():
                    one = passes.send(sent)
            except StopIteration:
                return
            sums.stage1_s += time.perf_counter() - start
            if one.mask is not None:
                sums.masks.add(one.mask, batch.mask, batch.valid, self.masker.block)
            sent = self._backward(one, batch, sums, sync=last and one.last)

    def _backward(self, one: Pass, batch: Batch, sums: "TrainSums", *, sync: bool):
        """Loss of one pass at its weight, backward.   -> logits (B, h, w) and Features (or None), without gradient"""
        extras = {name: value for name, value in (("visible", one.visible), ("upto", one.upto)) if value is not None}
        with nullcontext() if sync or self.world.size == 1 else self.wrapped.no_sync():
            with self.autocast():
                out = self.wrapped(one.x, one.tokens, one.token_mask, **extras)
            logits, features = out if one.upto else (out, None)
            each = pass_losses(logits.float(), batch.mask, one, self.optim_config.loss)
            loss = one.weight * torch.where(batch.valid, each, 0.0).sum() / batch.total
            # DDP averages gradients over ranks; the loss is divided by the samples of all ranks already.
            self.scaler.scale(loss * self.world.size).backward()
        sums.loss += loss.detach()
        return logits.detach(), features

    def _update(self) -> torch.Tensor:
        """Clip, step, clear. A non-finite gradient skips the step on every rank alike.   -> () float: 1 where skipped

        Gradients are summed over ranks before, so the norm is not finite on all ranks or on none: no message and no wait is needed,
        the fused optimiser reads the flag on the device.
        """
        self.scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.optim_config.clip or math.inf)
        skipped = (~torch.isfinite(norm)).float()
        if self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.found_inf = skipped
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return skipped

    def autocast(self):
        dtype = PRECISIONS[self.config.precision]
        return torch.autocast(self.device.type, dtype=dtype) if dtype else nullcontext()

    # -- epochs

    def train_epoch(self, batches: Iterable[Batch], epoch: int, keep: Keeper | None = None) -> dict[str, float]:
        """All steps of an epoch (0-based), or those that progress.step says are left; fit ends it. NonFinite if too many were skipped."""
        sums = self._sums_so_far(epoch)
        self.wrapped.train()
        for index, batch in enumerate(batches, self.progress.step):
            self.step(batch, epoch, index, sums)
            if keep and (index + 1) % keep.every == 0 and index + 1 < self.steps and self._agreed(keep.due()):
                self._stands_at(index + 1, sums)
                keep.save()
        self._stands_at(self.steps, sums)
        if keep and self._agreed(keep.due()):  # validation may take long
            keep.save()
        metrics = sums.means(self.steps, self.world)
        searching = 8 if self.scaler.is_enabled() else 0  # a loss scaler finds its scale by overflowing
        if metrics["train/skipped"] > self.config.max_skipped * self.steps + searching:
            raise NonFinite(
                f"{metrics['train/skipped']:.0f} of {self.steps} steps of epoch {epoch + 1} had a non-finite loss or gradient; "
                "lower optim.lr, set optim.clip, or use train.precision bf16 or fp32"
            )
        if self.masker.calibrating is False and self.masker.config.mode == "aml":
            metrics["aml/scale"] = self.masker.scale
        return metrics | {"time/train_s": sums.seconds, "optim/lr": self.optimizer.param_groups[0]["lr"]}

    def _stands_at(self, step: int, sums: "TrainSums") -> None:
        """What a save from here on says of the epoch under way."""
        self.progress.step, self.progress.ranks = step, self.world.gather(sums.state())

    def _agreed(self, wanted: bool) -> bool:
        """Whether any rank wants it."""
        return wanted if self.world.size == 1 else bool(self.world.sum(torch.tensor(float(wanted), device=self.device)) > 0)

    def _sums_so_far(self, epoch: int) -> "TrainSums":
        """Of the epoch under way, dropout's generators set to where it stands; on another number of ranks the draws go on as new ones."""
        rank, saved, sums = self.world.rank, self.progress.ranks, TrainSums(self.device)
        if len(saved) == self.world.size:
            sums.add(saved[rank])
            set_generators(saved[rank])
            return sums
        reseed(self.seed, epoch, rank, self.progress.step)
        for state in saved if rank == 0 else ():
            sums.add(state)
        return sums

    def evaluate(self, batches: Iterable[Batch], threshold: float = 0.5) -> Sums:
        """Sums over the sentences of all ranks, square protocol (prediction and truth at network size)."""
        total = Sums()
        for batch, logits in self.predict(batches):
            total = total + scored(logits, batch, threshold)
        return Sums.from_tensor(self.world.sum(total.to_tensor().to(self.device)))

    @torch.inference_mode()
    def predict(self, batches: Iterable[Batch], masked: bool = False, sums: MaskSums | None = None) -> Iterator[tuple[Batch, torch.Tensor]]:
        """Logits (B, h, w) of each batch, on whole images or, for diagnostics, under the training mask."""
        self.model.eval()
        for batch in batches:
            batch = batch.to(self.device)
            with self.autocast():
                yield batch, (self._under_mask(batch, sums) if masked else whole(self.model, batch)).float()

    def _under_mask(self, batch: Batch, sums: MaskSums) -> torch.Tensor:
        """Logits (B, h, w) of the images as training would mask them; sums hears of the masks."""
        x = self.model.normalise(batch.image)
        mask = self.mask(x, batch)
        sums.add(mask, batch.mask, batch.valid, self.masker.block)
        x, visible = self.masker.view(x, mask)
        extras = {} if visible is None else {"visible": visible}
        return self.model(x, batch.tokens, batch.token_mask, **extras)

    def mask(self, x, batch: Batch):
        """The mask of normalised x (B, 3, H, W) as training would draw it in the present epoch, warm-up or not."""
        return self.masker(
            self.model, x, batch.tokens, batch.token_mask, epoch=self.progress.epoch, item=batch.item, real=batch.real, target=batch.mask, probe=True
        )

    def diagnose(self, batches: Iterable[Batch], clean: Iterable[Batch], threshold: float = 0.5) -> dict[str, float]:
        """The probe: what the mask knows of the target, and leak = mIoU with training masks on minus without."""
        sums, masked, whole = MaskSums(self.device), Sums(), Sums()
        for batch, logits in self.predict(batches, masked=True, sums=sums):
            masked = masked + scored(logits, batch, threshold)
        for batch, logits in self.predict(clean):
            whole = whole + scored(logits, batch, threshold)
        masked, whole = (Sums.from_tensor(self.world.sum(s.to_tensor().to(self.device))) for s in (masked, whole))
        found = {f"aml/probe_{name}": value for name, value in sums.means(self.world.sum).items()}
        return found | ({"aml/leak": masked.scores()["mIoU"] - whole.scores()["mIoU"]} if self.masker.config.mode not in ("off", "two_pass") else {})

    # -- state

    def state_dict(self) -> dict:
        """Everything an exact resume needs besides the model's weights."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "masker": self.masker.state_dict(),
            "progress": vars(self.progress),
        }

    def load_state_dict(self, state: dict) -> None:
        own = [{k: v for k, v in group.items() if k in OWN} for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, settings in zip(self.optimizer.param_groups, own, strict=True):
            group.update(settings)
        self.scaler.load_state_dict(state["scaler"])
        self.masker.load_state_dict(state["masker"])
        self.progress = Progress(**state["progress"])


class TrainSums:
    """Running sums of an epoch, on the device."""

    def __init__(self, device):
        self.loss, self.skipped = torch.zeros((), device=device), torch.zeros((), device=device)
        self.masks, self.stage1_s = MaskSums(device), 0.0
        self.start, self.earlier_s = time.perf_counter(), 0.0

    @property
    def seconds(self) -> float:
        """That the epoch has taken so far."""
        return self.earlier_s + time.perf_counter() - self.start

    def state(self) -> dict:
        """All of it, and the generators that dropout draws from, as a checkpoint keeps it."""
        cuda = {"cuda": torch.cuda.get_rng_state()} if self.loss.is_cuda else {}
        sums = {"loss": self.loss.cpu().clone(), "skipped": self.skipped.cpu().clone(), "masks": self.masks.sums.cpu().clone()}
        return sums | {"stage1_s": self.stage1_s, "seconds": self.seconds, "cpu": torch.get_rng_state()} | cuda

    def add(self, state: dict) -> None:
        """Sums that were kept."""
        device = self.loss.device
        self.loss, self.skipped = self.loss + state["loss"].to(device), self.skipped + state["skipped"].to(device)
        self.masks.sums += state["masks"].to(device)
        self.stage1_s, self.earlier_s = self.stage1_s + state["stage1_s"], max(self.earlier_s, state["seconds"])

    def means(self, steps: int, world: World) -> dict[str, float]:
        loss = float(world.sum(self.loss)) / max(1.0, steps - float(self.skipped))
        masks = {f"aml/{name}": value for name, value in ({"hidden": 0.0} | self.masks.means(world.sum)).items()}
        return {"train/loss": loss, "train/skipped": float(self.skipped), **masks, "time/stage1_s": self.stage1_s}


def fit(
    learner: Learner,
    train: Items,
    val: Items,
    config: EvalConfig = EvalConfig(),  # noqa: B008 (frozen)
    keep: Keeper | None = None,
) -> Iterator[Result]:
    """Train from learner.progress to the last epoch, one Result an epoch; the caller saves, reports and may stop at any of them.

    keep: is asked during an epoch whether the run is to be saved there, too.
    """
    world, batch, accumulate = learner.world, learner.config.batch, learner.config.accumulate
    probe = probe_indices(len(val), config.probe)
    for epoch in range(learner.progress.epoch, learner.config.epochs):
        part = {"rank": world.rank, "world": world.size, "accumulate": accumulate, "start": learner.progress.step}
        metrics = learner.train_epoch(train_batches(train, learner.model, batch=batch, seed=learner.seed, epoch=epoch, **part), epoch, keep)
        before = time.perf_counter()
        batches = eval_batches(val, learner.model, batch=config.batch, rank=world.rank, world=world.size)
        sums = learner.evaluate(batches if keep is None or world.size > 1 else kept(batches, keep), config.threshold)
        metrics |= validation_metrics(sums)
        if len(probe):
            mine = probe[world.rank :: world.size]
            metrics |= learner.diagnose(
                some_batches(val, learner.model, mine, config.batch), some_batches(val, learner.model, mine, config.batch), config.threshold
            )
        improved = metrics["val/mIoU"] > learner.progress.best
        learner.progress.best = max(learner.progress.best, metrics["val/mIoU"])
        learner.progress.epoch, learner.progress.step, learner.progress.ranks = epoch + 1, 0, []
        metrics |= {
            "epoch": epoch + 1,
            "train/workers": world.size,
            "val/mIoU_best": learner.progress.best,
            "time/val_s": time.perf_counter() - before,
            "time/epoch_s": metrics["time/train_s"] + time.perf_counter() - before,
            ENDED: time.time(),
            "mem/peak_mb": peak_memory_mb(learner.device),
        }
        if text := vacuous_mask(learner.masker.config, metrics):
            warnings.warn(text, stacklevel=2)
        learner.progress.history.append(metrics)
        yield Result(epoch + 1, metrics, improved)


def kept(batches: Iterable[Batch], keep: Keeper) -> Iterator[Batch]:
    """The batches of a validation, between which the epoch that was trained may be saved; where ranks have different numbers of them they
    could not agree."""
    for batch in batches:
        yield batch
        if keep.due():
            keep.save()


def validation_metrics(sums: Sums) -> dict[str, float]:
    """The scores under the names the tracker takes: val/P0.5, since it refuses @."""
    scores = sums.scores()
    precision = {f"val/P0.{x // 10}": scores[f"P@0.{x // 10}"] for x in THRESHOLDS}
    accuracy = {f"val/{name}": scores[name] for name in ("N-acc", "T-acc") if name in scores}
    return {"val/mIoU": scores["mIoU"], "val/oIoU": scores["oIoU"], **precision, **accuracy, "val/n": scores["n"]}


def probe_indices(n: int, count: int) -> np.ndarray:
    """`count` places spread evenly over n, the same in every run on the same data."""
    return np.unique(np.linspace(0, n - 1, min(n, count)).round().astype(int)) if count else np.array([], int)


def vacuous_mask(config: MaskingConfig, metrics: dict) -> str:
    """One sentence with the realised numbers where the first masked epoch hid nearly all or nothing; else nothing."""
    hidden = metrics.get("aml/hidden")
    first = metrics["epoch"] == config.warmup_epochs + 1 and "aml/scale" in metrics  # the scale is there once it is calibrated
    if config.mode != "aml" or not first or hidden is None or 0.001 < hidden < 0.9:
        return ""
    what = "nearly the whole image" if hidden >= 0.9 else "almost nothing"
    return (
        f"{config.arm} with tau {config.tau} and rho {config.rho} called {metrics['aml/weak']:.1%} of the image weak and hid "
        f"{hidden:.1%}, {what}; its settings say little about alignment (aml.threshold_mode quantile hides tau*rho exactly)"
    )


# ---- pure parts -----------------------------------------------------------------------------------------------------


def whole(model, batch: Batch) -> torch.Tensor:
    """Logits (B, h, w) of whole images, without augmentation. A picture whose sentences follow one another is encoded once for them."""
    if model.fuses:
        return model(model.normalise(batch.image), batch.tokens, batch.token_mask)
    picture = torch.stack([batch.dataset, batch.image_id])
    another = torch.cat([picture.new_ones(1, dtype=torch.bool), (picture[:, 1:] != picture[:, :-1]).any(0)])
    maps = model.encode(model.normalise(batch.image[another]))
    of = another.cumsum(0) - 1
    return model.decode([m[of] for m in maps], batch.tokens, batch.token_mask)


def segment(logits, size: tuple[int, int], threshold: float = 0.5) -> torch.Tensor:
    """logits (B, h, w) -> prediction (B, H, W) bool: probability at or above the threshold, after bilinear resizing."""
    z = F.interpolate(logits[:, None], tuple(size), mode="bilinear", align_corners=False)[:, 0]
    return z >= math.log(threshold / (1 - threshold))


def scored(logits: torch.Tensor, batch: Batch, threshold: float) -> Sums:
    """Sums of a batch at network size.   logits (B, h, w)"""
    no_target = batch.no_target if batch.generalised else None
    return score_masks(segment(logits, batch.mask.shape[1:], threshold), batch.mask, batch.valid, no_target)


def reseed(seed: int, epoch: int, rank: int, step: int = 0) -> None:
    """Dropout's generator, a function of where we are: an interrupted epoch repeats with the same draws."""
    key = [seed, epoch, rank, *([step] if step else [])]
    torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))


def set_generators(state: dict) -> None:
    """Put dropout's generators where they were (TrainSums.state)."""
    torch.set_rng_state(state["cpu"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


def peak_memory_mb(device: torch.device) -> float:
    """Peak of this process (CPU, resident) or of this device's allocator (CUDA), in MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
