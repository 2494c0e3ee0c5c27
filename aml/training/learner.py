"""The training loop, written once: it knows batches, a model and a masker, and no cluster.

    for result in fit(learner, train_items, val_items):
        report(result.metrics); learner.save(folder)

Plain code, a light trial and a distributed worker drive the same generator. A step is: stage 1 (forward only) decides what to hide,
stage 2 trains on the masked image against the full mask. A resumed run goes on where it was saved, with the same order and draws.

    B samples of this rank, H W network image, h w logits
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch

from aml.data import Batch
from aml.errors import NonFinite
from aml.masking import Masker, MaskSums, Pass
from aml.metrics import Sums
from aml.training.config import PRECISIONS, OptimConfig, TrainConfig
from aml.training.losses import pass_losses
from aml.training.optimizer import EagerAdamW, lr_factor, parameter_groups
from aml.training.scoring import TrainSums, score_batch, whole_image_logits
from aml.training.world import MidEpochCheckpointer, World, reseed, set_generators

OWN = ("base_lr", "weight_decay")

"""Settings of an optimiser's group that a resumed run takes from its configuration: they may have changed on purpose."""

ENDED = "time/ended"

"""Of an epoch's metrics: when it ended, in Unix seconds."""


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
            group["lr"] = group["base_lr"] * lr_factor(
                epoch * self.steps + index,
                self.total_steps,
                self.warmup,
                self.optim_config,
                self.steps,
            )
        batch, loss_before = batch.to(self.device), sums.loss.clone()
        size = len(batch.valid) // self.config.accumulate
        for micro in range(self.config.accumulate):
            self._accumulate(
                batch.part(slice(micro * size, (micro + 1) * size)),
                epoch,
                sums,
                last=micro == self.config.accumulate - 1,
            )
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
        extras = {
            name: value
            for name, value in (("visible", one.visible), ("upto", one.upto))
            if value is not None
        }
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
        parameters = [
            p
            for group in self.optimizer.param_groups
            for p in group["params"]
            if p.grad is not None
        ]
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

    def train_epoch(
        self, batches: Iterable[Batch], epoch: int, keep: MidEpochCheckpointer | None = None
    ) -> dict[str, float]:
        """All steps of an epoch (0-based), or those that progress.step says are left; fit ends it. NonFinite if too many were skipped."""
        sums = self._sums_so_far(epoch)
        self.wrapped.train()
        for index, batch in enumerate(batches, self.progress.step):
            self.step(batch, epoch, index, sums)
            if (
                keep
                and (index + 1) % keep.every == 0
                and index + 1 < self.steps
                and self._agreed(keep.due())
            ):
                self._stands_at(index + 1, sums)
                keep.save()
        self._stands_at(self.steps, sums)
        if keep and self._agreed(keep.due()):  # validation may take long
            keep.save()
        metrics = sums.means(self.steps, self.world)
        searching = (
            8 if self.scaler.is_enabled() else 0
        )  # a loss scaler finds its scale by overflowing
        if metrics["train/skipped"] > self.config.max_skipped * self.steps + searching:
            raise NonFinite(
                f"{metrics['train/skipped']:.0f} of {self.steps} steps of epoch {epoch + 1} had a non-finite loss or gradient; "
                "lower optim.lr, set optim.clip, or use train.precision bf16 or fp32"
            )
        if self.masker.calibrating is False and self.masker.config.mode == "aml":
            metrics["aml/scale"] = self.masker.scale
        return metrics | {
            "time/train_s": sums.seconds,
            "optim/lr": self.optimizer.param_groups[0]["lr"],
        }

    def _stands_at(self, step: int, sums: "TrainSums") -> None:
        """What a save from here on says of the epoch under way."""
        self.progress.step, self.progress.ranks = step, self.world.gather(sums.state())

    def _agreed(self, wanted: bool) -> bool:
        """Whether any rank wants it."""
        return (
            wanted
            if self.world.size == 1
            else bool(self.world.sum(torch.tensor(float(wanted), device=self.device)) > 0)
        )

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
            total = total + score_batch(logits, batch, threshold)
        return Sums.from_tensor(self.world.sum(total.to_tensor().to(self.device)))

    @torch.inference_mode()
    def predict(
        self, batches: Iterable[Batch], masked: bool = False, sums: MaskSums | None = None
    ) -> Iterator[tuple[Batch, torch.Tensor]]:
        """Logits (B, h, w) of each batch, on whole images or, for diagnostics, under the training mask."""
        self.model.eval()
        for batch in batches:
            batch = batch.to(self.device)
            with self.autocast():
                yield (
                    batch,
                    (
                        self._under_mask(batch, sums)
                        if masked
                        else whole_image_logits(self.model, batch)
                    ).float(),
                )

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
            self.model,
            x,
            batch.tokens,
            batch.token_mask,
            epoch=self.progress.epoch,
            item=batch.item,
            real=batch.real,
            target=batch.mask,
            probe=True,
        )

    def diagnose(
        self, batches: Iterable[Batch], clean: Iterable[Batch], threshold: float = 0.5
    ) -> dict[str, float]:
        """The probe: what the mask knows of the target, and leak = mIoU with training masks on minus without."""
        sums, masked, whole = MaskSums(self.device), Sums(), Sums()
        for batch, logits in self.predict(batches, masked=True, sums=sums):
            masked = masked + score_batch(logits, batch, threshold)
        for batch, logits in self.predict(clean):
            whole = whole + score_batch(logits, batch, threshold)
        masked, whole = (
            Sums.from_tensor(self.world.sum(s.to_tensor().to(self.device))) for s in (masked, whole)
        )
        found = {f"aml/probe_{name}": value for name, value in sums.means(self.world.sum).items()}
        return found | (
            {"aml/leak": masked.scores()["mIoU"] - whole.scores()["mIoU"]}
            if self.masker.config.mode not in ("off", "two_pass")
            else {}
        )

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
        own = [
            {k: v for k, v in group.items() if k in OWN} for group in self.optimizer.param_groups
        ]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, settings in zip(self.optimizer.param_groups, own, strict=True):
            group.update(settings)
        self.scaler.load_state_dict(state["scaler"])
        self.masker.load_state_dict(state["masker"])
        self.progress = Progress(**state["progress"])
