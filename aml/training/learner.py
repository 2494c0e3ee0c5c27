"""The training step and the epoch, written once for every caller; nothing here knows a cluster.

    for result in train_epochs(learner, train_items, val_items):
        report(result.metrics)
        learner.save(folder)

A plain loop, a trial inside a process and a distributed worker drive the same generator. In a step
stage 1 (forward only) decides what to hide, and stage 2 trains on the masked image against the full
mask. A resumed run goes on where it was saved, with the same order and draws.

    B samples of this rank, H W network image, h w logits
"""

import math
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import torch

from aml.data import Batch
from aml.errors import NonFinite
from aml.masking import Masker, Pass, Step
from aml.training.config import OptimConfig, TrainConfig
from aml.training.losses import pass_losses
from aml.training.optimizer import EagerAdamW, lr_factor, parameter_groups
from aml.training.predictor import Predictor, Progress
from aml.training.scoring import TrainSums
from aml.training.world import MidEpochCheckpointer, reseed, set_generators

OWN = ("base_lr", "weight_decay")
"""Settings of an optimiser's group that a resumed run takes from its configuration.

They may have been changed on purpose.
"""

ASK_S = 2.0
"""Seconds between two steps after which several ranks ask each other whether to save.

Steps of a large model take seconds, and who asks a run to end does not wait for many.
"""

ENDED = "time/ended"
"""Metric of an epoch: when it ended, in Unix seconds."""


class Learner(Predictor):
    """Model, masker and optimiser, and the step that moves them.

    It holds a training's whole state, so it has more attributes than other classes: what it
    predicts with is in `Predictor`; settings, optimiser and loss scaler are added here.
    """

    def __init__(
        self,
        model: Any,
        masker: Masker,
        *,
        optim: OptimConfig,
        train: TrainConfig,
        steps: int,
        seed: int = 0,
        device: str | torch.device = "cpu",
        wrap: Callable | None = None,
    ) -> None:
        """Put the model on its device and make its optimiser.

        Args:
            model: The model.
            masker: Decides what is hidden.
            optim: Settings of the optimiser.
            train: Length and arithmetic of training.
            steps: Optimiser steps of an epoch.
            seed: Of dropout.
            device: Where training computes.
            wrap: Makes the module that training calls (DDP); all else uses the bare model.
        """
        super().__init__(model, masker, device, train.precision)
        train.check_workers(self.world.size)
        wrapped = wrap(self.model) if wrap else self.model
        self.wrapped: Any = torch.compile(wrapped) if train.compile else wrapped
        self.optim_config = optim
        self.config = train
        self.steps = steps
        self.seed = seed
        kind = torch.optim.AdamW if train.compile else EagerAdamW
        self.optimizer = kind(parameter_groups(model, optim), lr=optim.lr, fused=True)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=train.precision == "fp16")

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole training."""
        return self.steps * self.config.epochs

    # -- one step

    def step(self, batch: Batch, epoch: int, index: int, sums: TrainSums) -> None:
        """Do one optimiser step.

        Args:
            batch: This rank's part of a global batch.
            epoch: 0-based.
            index: The step within the epoch.
            sums: Running sums of the epoch.
        """
        optim = self.optim_config
        warmup = optim.warmup_steps(self.steps)
        done = epoch * self.steps + index
        for group in self.optimizer.param_groups:
            factor = lr_factor(done, self.total_steps, warmup, optim, self.steps)
            group["lr"] = group["base_lr"] * factor
        batch = batch.to(self.device)
        teacher = self.masker.teacher
        if teacher is not None and teacher.model is None:
            teacher.start(self.model)
        loss_before = sums.loss.clone()
        parts = self.config.accumulate
        size = len(batch.valid) // parts
        for micro in range(parts):
            part = batch.part(slice(micro * size, (micro + 1) * size))
            self._accumulate(part, epoch, sums, last=micro == parts - 1)
        skipped = self._update()
        if teacher is not None:
            teacher.update()
        sums.skipped += skipped
        sums.loss = torch.where(skipped > 0, loss_before, sums.loss)

    def _accumulate(self, batch: Batch, epoch: int, sums: TrainSums, *, last: bool) -> None:
        """Run the passes that the masking method asks for, forward and backward.

        Gradients are summed over the ranks in the last backward of the last micro-batch only.
        """
        passes_s = 0.0
        passes = 0

        def run(one: Pass) -> tuple[torch.Tensor, Any]:
            nonlocal passes_s, passes
            start = time.perf_counter()
            if one.mask is not None:
                sums.masks.add(one.mask, batch.mask, batch.valid, self.masker.block)
            answer = self._backward(one, batch, sums, sync=last and one.last)
            passes_s += time.perf_counter() - start
            passes += 1
            if passes == 1:  # the clean one, where there is one
                sums.keep(self.masker.predicted(answer[0], step.inputs, one.mask))
            return answer

        step = Step(self.masker, self.model, batch, epoch, run, self.autocast)
        start = time.perf_counter()
        step.train()
        sums.stage1_s += time.perf_counter() - start - passes_s

    def _backward(
        self, one: Pass, batch: Batch, sums: TrainSums, *, sync: bool
    ) -> tuple[torch.Tensor, Any]:
        """Compute the loss of one pass at its weight, and its gradients.

        Returns:
            Logits (B, h, w) without gradient, and the features or None.
        """
        extras: dict[str, Any] = {}
        if one.visible is not None:
            extras["visible"] = one.visible
        if one.drop:
            extras["drop"] = True
        if one.upto is not None:
            extras["upto"] = one.upto
        with nullcontext() if sync or self.world.size == 1 else self.wrapped.no_sync():
            with self.autocast():
                out = self.wrapped(one.x, one.tokens, one.token_mask, **extras)
            logits, features = out if one.upto else (out, None)
            each = pass_losses(logits.float(), batch.mask, one, self.optim_config.loss)
            loss = one.weight * torch.where(batch.valid, each, 0.0).sum() / batch.total
            # DDP averages gradients over ranks; the loss is divided by all ranks' samples already.
            self.scaler.scale(loss * self.world.size).backward()
        sums.loss += loss.detach()
        return logits.detach(), features

    def _update(self) -> torch.Tensor:
        """Clip the gradients, do the optimiser's step and clear them.

        A non-finite gradient skips the step on every rank alike: gradients are summed over the
        ranks before, so their norm is finite on all of them or on none. No message and no wait is
        needed, as the fused optimiser reads the flag on the device.

        Returns:
            () float: 1 where the step was skipped.
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
            # the fused step reads it
            self.optimizer.found_inf = skipped  # type: ignore[attr-defined]
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return skipped

    # -- epochs

    def train_epoch(
        self,
        batches: Iterable[Batch],
        epoch: int,
        checkpointer: MidEpochCheckpointer | None = None,
        on_step: Callable[[int, TrainSums], None] | None = None,
    ) -> dict[str, float]:
        """Do all steps of an epoch (0-based), or those left of it after progress.step.

        `train_epochs` ends the epoch.

        Args:
            batches: This rank's parts of the global batches of the steps.
            epoch: 0-based.
            checkpointer: Is asked whether the run should be saved in the middle of the epoch.
            on_step: Called after each step with the steps done of the epoch and its sums.

        Returns:
            The epoch's metrics.

        Raises:
            NonFinite: Too many steps were skipped.
        """
        sums = self._sums_so_far(epoch)
        self.wrapped.train()
        asked_at, asked_after, wait = time.perf_counter(), self.progress.step, 1
        for index, batch in enumerate(batches, self.progress.step):
            self.step(batch, epoch, index, sums)
            done = index + 1
            if on_step is not None:
                on_step(done, sums)
            if checkpointer is None or done < asked_after + wait or done >= self.steps:
                continue
            seconds = (time.perf_counter() - asked_at) / (done - asked_after)
            wanted, wait = self._ask_ranks(checkpointer, seconds)
            if wanted:
                self._note_progress(done, sums)
                checkpointer.save()
            asked_at, asked_after = time.perf_counter(), done
        self._note_progress(self.steps, sums)
        # validation may take long
        if checkpointer is not None and self._ask_ranks(checkpointer, ASK_S)[0]:
            checkpointer.save()
        metrics = sums.means(self.steps, self.world)
        self._check_skipped(metrics["train/skipped"], epoch)
        if not self.masker.calibrating and self.masker.method.selects_by_alignment:
            metrics["aml/scale"] = self.masker.scale
        lr = self.optimizer.param_groups[0]["lr"]
        return metrics | {"time/train_s": sums.seconds, "optim/lr": lr}

    def end_epoch(self, score: float) -> None:
        """Move on to the next epoch, after a validation with this score."""
        progress = self.progress
        self.masker.end_epoch([s["predictions"] for s in progress.ranks if "predictions" in s])
        progress.best = max(progress.best, score)
        progress.epoch += 1
        progress.step = 0
        progress.ranks = []

    def _check_skipped(self, skipped: float, epoch: int) -> None:
        # a loss scaler finds its scale by overflowing
        searching = 8 if self.scaler.is_enabled() else 0
        if skipped > self.config.max_skipped * self.steps + searching:
            raise NonFinite(
                f"{skipped:.0f} of {self.steps} steps of epoch {epoch + 1} had a non-finite loss "
                "or gradient; lower optim.lr, set optim.clip, or use train.precision bf16 or fp32"
            )

    def _note_progress(self, step: int, sums: TrainSums) -> None:
        """Note how far the epoch is, for checkpoints written from here on."""
        self.progress.step = step
        self.progress.ranks = self.world.gather(sums.state())

    def _ask_ranks(self, checkpointer: MidEpochCheckpointer, seconds: float) -> tuple[bool, int]:
        """Return whether any rank wants to save, and after how many steps to ask again.

        All ranks return the same.

        Args:
            checkpointer: That of this rank.
            seconds: What a step takes on this rank.
        """
        wanted = checkpointer.due()
        if self.world.size == 1:
            return wanted, checkpointer.every
        mine = torch.tensor([float(wanted), seconds], device=self.device)
        ranks, total = self.world.sum(mine).tolist()
        steps = ASK_S * self.world.size / max(total, 1e-6)
        return ranks > 0, max(1, min(checkpointer.every, int(steps)))

    def _sums_so_far(self, epoch: int) -> TrainSums:
        """Return the sums of the epoch under way and set dropout's generators to where it stands.

        On another number of ranks than before the draws go on as new ones.
        """
        rank = self.world.rank
        saved = self.progress.ranks
        sums = TrainSums(self.device)
        if len(saved) == self.world.size:
            sums.add(saved[rank])
            set_generators(saved[rank])
            return sums
        reseed(self.seed, epoch, rank, self.progress.step)
        for state in saved if rank == 0 else ():
            sums.add(state)
        return sums

    # -- state

    def state_dict(self) -> dict[str, Any]:
        """Return everything that an exact resume needs besides the model's weights."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "masker": self.masker.state_dict(),
            "progress": vars(self.progress),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the state of the run that goes on, but its own rates and decays."""
        own = [
            {k: v for k, v in group.items() if k in OWN} for group in self.optimizer.param_groups
        ]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, settings in zip(self.optimizer.param_groups, own, strict=True):
            group.update(settings)
        self.scaler.load_state_dict(state["scaler"])
        if self.masker.teacher is not None:
            self.masker.teacher.start(self.model)
        self.masker.load_state_dict(state["masker"])
        self.progress = Progress(**state["progress"])
