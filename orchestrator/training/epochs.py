"""Listen to the epochs, notes and failures of a Ray Train run."""

import contextlib
import math
import threading
import time

from aml.training import vacuous_mask
from orchestrator import cluster, storage, utils
from orchestrator.config import Experiment
from orchestrator.storage import read_history
from orchestrator.training import loop

WAITING_S = 60.0

"""Without workers for so long, a run says what it waits for."""


class EpochListener:
    """The driver's ear while fit() blocks: rank 0 keeps `epochs.jsonl`, and what is new in it is said and logged."""

    EVERY_S = 0.5
    BUCKET_EVERY = 6
    """Looks between two at the bucket."""

    def __init__(self, this: storage.Run, experiment: Experiment, tracker, key: str, say):
        self.folder, self.experiment, self.tracker, self.key, self.say = (
            this.folder,
            experiment,
            tracker,
            key,
            say,
        )
        self.heard = 0
        for metrics in read_history(
            self.folder
        ):  # an earlier attempt said these, but may have died before MLflow had them
            self.tracker.epoch(key, metrics)
            self.heard = metrics["epoch"]
        self.noted, self.stopping = len(storage.read_notes(self.folder)), False
        self.sign = math.inf
        """time.monotonic() of the last epoch, or of when its workers were asked for; infinite: not yet."""
        self.without: float | None = None
        """time.monotonic() of when the run was first seen without workers."""
        self.closing = threading.Event()
        self.thread = threading.Thread(target=self._listen, name="epochs", daemon=True)
        self.thread.start()

    def close(self) -> None:
        """Hear what is left."""
        self.closing.set()
        self.thread.join()

    def _listen(self) -> None:
        over, looks = False, 0
        while not over:
            over = self.closing.wait(self.EVERY_S)  # set: one last look
            looks += 1
            if over or looks % self.BUCKET_EVERY == 0:
                storage.try_download(self.folder, wanted=storage.without_checkpoints, wait=False)
            if not self.stopping and (self.folder / loop.STOP).exists():
                self.stopping = True
                storage.request_stop(self.folder, True)
                self.say(utils.INTERRUPTED)
            notes = storage.read_notes(self.folder)
            for text in notes[self.noted :]:
                self.say(f"note: {text}")
            self.noted = len(notes)
            for metrics in read_history(self.folder)[self.heard :]:
                self._tell(metrics)
            if not over:
                self._end_silence()
                if looks % self.BUCKET_EVERY == 0 and self.sign < math.inf:
                    self._say_what_it_waits_for()

    def _say_what_it_waits_for(self) -> None:
        with contextlib.suppress(Exception):  # the head is away
            if not cluster.is_pending(self.folder.name):
                self.without = None
            elif self.without is None:
                self.without = time.monotonic()
            elif time.monotonic() - self.without > WAITING_S:
                self.without, r = math.inf, self.experiment.resources
                self.say(
                    f"waiting for {cluster.required_resources(r)}: the cluster has {cluster.available_resources(r)} free; without room they start when others end, or nodes come"
                )

    def _end_silence(self) -> None:
        """Workers that take too long for an epoch are killed: Ray Train starts others."""
        limit, killed = self.experiment.resources.trial_timeout_s, False
        if limit is not None and time.monotonic() - self.sign > limit:
            with contextlib.suppress(Exception):  # the head is away, and the workers with it
                killed = cluster.remove_placement_groups([self.folder.name])
        if killed:
            self.sign = time.monotonic()
            self.say(
                f"no epoch was finished in {limit:g} s (resources.trial_timeout_s), so the workers were killed, to start again after epoch "
                f"{self.heard}; raise that limit if they were only slow"
            )

    def _tell(self, metrics: dict) -> None:
        self.heard, self.sign = metrics["epoch"], time.monotonic()
        self.tracker.epoch(self.key, metrics)
        self.say(epoch_line(metrics, self.experiment.train.epochs))
        if text := vacuous_mask(self.experiment.aml, metrics):
            self.say(f"warning: {text}")


def epoch_line(m: dict, epochs: int) -> str:
    left = m["time/epoch_s"] * (epochs - m["epoch"])
    return (
        f"epoch {m['epoch']}/{epochs}  loss {m['train/loss']:.4f}  mIoU {m['val/mIoU']:.4f} (best {m['val/mIoU_best']:.4f})  "
        f"oIoU {m['val/oIoU']:.4f}  hidden {m.get('aml/hidden', 0):.1%}  {m['time/epoch_s']:.1f} s, {left:.0f} s left"
    )
