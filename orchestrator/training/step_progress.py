"""How far a run is within an epoch and its validation: measured by rank 0, worded by the driver."""

import time
from collections.abc import Callable

from aml.training import Learner, TrainSums
from orchestrator.utils import duration

FIRST_S = 10.0
"""Seconds of an epoch or a validation after which it is reported first; shorter ones are not."""

AGAIN_S = 30.0
"""Seconds between two reports."""


class StepReporter:
    """Report now and then how far an epoch is: `on_step` and `on_validation` of `train_epochs`."""

    def __init__(self, learner: Learner, send: Callable[[dict[str, float]], None]) -> None:
        """Create a reporter.

        Args:
            learner: Trains; its progress says which epoch is under way.
            send: Takes the epoch (1-based), step, steps, loss, items_s (items a second, of all
                workers) and seconds_a_step; of a validation the epoch, and of rank 0 the sentences
                that are scored, all of them, and sentences_s (sentences a second).
        """
        self.learner = learner
        self.send = send
        self.epoch = -1
        self.since = 0.0
        """time.monotonic() of the last report, or of the epoch's first step."""
        self.done = 0
        """Steps that were done then."""
        self.wait_s = FIRST_S

    def __call__(self, done: int, sums: TrainSums) -> None:
        """Report if it is time, and at the end of an epoch of which something was reported.

        Args:
            done: Steps done of the epoch.
            sums: Running sums of the epoch; reading them waits for the device.
        """
        now = time.monotonic()
        learner = self.learner
        if learner.progress.epoch != self.epoch:
            self.epoch = learner.progress.epoch
            self.since = now
            self.done = done
            self.wait_s = FIRST_S
            return
        ends = done == learner.steps and self.wait_s == AGAIN_S
        if not ends and now - self.since < self.wait_s:
            return
        counted = max(1.0, done - float(sums.skipped))
        items = (done - self.done) * learner.config.batch
        self.send(
            {
                "epoch": self.epoch + 1,
                "step": done,
                "steps": learner.steps,
                "loss": float(sums.loss) * learner.world.size / counted,
                "items_s": items / max(now - self.since, 1e-9),
                "seconds_a_step": (now - self.since) / max(1, done - self.done),
            }
        )
        self.since = now
        self.done = done
        self.wait_s = AGAIN_S

    def validate(self, done: int, sentences: int) -> None:
        """Report a validation if it is time, and at its end if something was reported of it.

        Args:
            done: Sentences that this rank has scored; 0 where the validation begins.
            sentences: Sentences that it scores in all.
        """
        now = time.monotonic()
        if not done:
            self.since = now
            self.done = 0
            self.wait_s = FIRST_S
            return
        ends = done >= sentences and self.wait_s == AGAIN_S
        if not ends and now - self.since < self.wait_s:
            return
        self.send(
            {
                "epoch": self.learner.progress.epoch + 1,
                "scored": done,
                "sentences": sentences,
                "sentences_s": (done - self.done) / max(now - self.since, 1e-9),
            }
        )
        self.since = now
        self.done = done
        self.wait_s = AGAIN_S


def progress_line(found: dict[str, float], epochs: int) -> str:
    """Return the line that is logged of a report of `StepReporter`.

    Args:
        found: The report.
        epochs: Epochs of the run.
    """
    if "sentences" in found:
        left_s = (found["sentences"] - found["scored"]) / max(found["sentences_s"], 1e-9)
        return (
            f"epoch {found['epoch']:.0f}/{epochs} validation  "
            f"{found['scored']:,.0f} of {found['sentences']:,.0f} sentences  "
            f"{found['sentences_s']:.3g} a second  {duration(left_s)} left"
        )
    left = found["steps"] - found["step"]
    left_s = left * found["seconds_a_step"]
    then = f"{duration(left_s)} left" if left else "validation follows"
    if epochs > found["epoch"]:
        all_s = left_s + (epochs - found["epoch"]) * found["steps"] * found["seconds_a_step"]
        then += f", {duration(all_s)} of all epochs' steps"
    return (
        f"epoch {found['epoch']:.0f}/{epochs}  step {found['step']:.0f}/{found['steps']:.0f}  "
        f"loss {found['loss']:.4f}  {found['items_s']:.3g} items/s  {then}"
    )
