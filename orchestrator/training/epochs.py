"""Follow the epochs, notes and failures of a Ray Train run from its driver."""

import contextlib
import logging
import math
import threading
import time

from aml.training import vacuous_mask
from orchestrator import cluster, storage, utils
from orchestrator.config import Experiment
from orchestrator.storage import read_history
from orchestrator.tracking import TrackerBase
from orchestrator.training import loop
from orchestrator.training.step_progress import progress_line

logger = logging.getLogger(__name__)

PENDING_S = 60.0
"""Seconds without workers after which the driver logs what the run waits for."""


class EpochListener:
    """Log and track what rank 0 writes to `epochs.jsonl`, in a thread, while `fit()` blocks.

    It has fifteen attributes, most of them the progress of its thread.
    """

    POLL_S = 0.5
    BUCKET_POLLS = 6
    """Number of polls between two reads of the bucket."""

    def __init__(
        self, run: storage.Run, experiment: Experiment, tracker: TrackerBase, key: str
    ) -> None:
        """Prepare the listener; `start` begins to listen.

        Args:
            run: The run whose folder is read.
            experiment: The settings of the run.
            tracker: The tracker that epochs are logged to.
            key: The tracker's key of the run.
        """
        self.folder = run.folder
        self.experiment = experiment
        self.tracker = tracker
        self.key = key
        self.last_epoch = 0
        """The last epoch that was logged."""
        self.notes_logged = len(storage.read_notes(self.folder))
        self.stop_announced = False
        self.last_report_time = math.inf
        """time.monotonic() of the last epoch, or of the request for workers; infinite before."""
        self.no_workers_since: float | None = None
        """time.monotonic() at which the run was first seen without workers."""
        self.waits_logged = False
        """What the run waits for was logged, and its workers have not started since."""
        self.progress: dict[str, float] | None = None
        """The last report within an epoch that was logged."""
        self._bar: utils.Progress | None = None
        """The bar of the epoch under way, where one is shown."""
        self._bars = contextlib.ExitStack()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="epochs", daemon=True)

    def start(self) -> None:
        """Track the epochs of earlier attempts again and begin to listen.

        An earlier attempt logged those epochs, but may have died before MLflow had them.
        """
        for metrics in read_history(self.folder):
            self.tracker.epoch(self.key, metrics)
            self.last_epoch = metrics["epoch"]
        self._thread.start()

    def close(self) -> None:
        """Read what is left and end the thread. Further calls do nothing."""
        self._closing.set()
        self._thread.join()
        self._close_bar()

    def _listen(self) -> None:
        is_last = False
        polls = 0
        while not is_last:
            is_last = self._closing.wait(self.POLL_S)
            polls += 1
            reads_bucket = polls % self.BUCKET_POLLS == 0
            if is_last or reads_bucket:
                wanted = storage.without_checkpoints
                storage.try_download(self.folder, wanted=wanted, wait=False)
            self._pass_on_stop_request()
            self._log_notes()
            for metrics in read_history(self.folder)[self.last_epoch :]:
                self.on_epoch(metrics)
            if not is_last:
                self.end_silent_workers()
                if reads_bucket and self.last_report_time < math.inf:
                    self.log_pending()
                    self.log_progress()

    def _pass_on_stop_request(self) -> None:
        """Tell workers on other machines once that a person asked the run to end."""
        if not self.stop_announced and (self.folder / loop.STOP).exists():
            self.stop_announced = True
            storage.request_stop(self.folder, True)
            logger.info(utils.INTERRUPTED)

    def _log_notes(self) -> None:
        notes = storage.read_notes(self.folder)
        for text in notes[self.notes_logged :]:
            logger.info(f"note: {text}")
        self.notes_logged = len(notes)

    def on_epoch(self, metrics: dict) -> None:
        """Log and track one finished epoch."""
        self.last_epoch = metrics["epoch"]
        self.last_report_time = time.monotonic()
        self._close_bar()
        self.tracker.epoch(self.key, metrics)
        utils.progress_logger.info(epoch_line(metrics, self.experiment.train.epochs))
        if text := vacuous_mask(self.experiment.aml, metrics):
            logger.info(f"warning: {text}")

    def _close_bar(self) -> None:
        self._bars.close()
        self._bar = None

    def log_pending(self) -> None:
        """Log once what the run waits for after PENDING_S seconds without workers, and its end."""
        with contextlib.suppress(Exception):  # Ray's head node does not answer
            if not cluster.is_pending(self.folder.name):
                self.no_workers_since = None
                if self.waits_logged:
                    self.waits_logged = False
                    logger.info("the workers have started")
            elif self.no_workers_since is None:
                self.no_workers_since = time.monotonic()
            elif time.monotonic() - self.no_workers_since > PENDING_S:
                resources = self.experiment.resources
                wanted = cluster.required_resources(resources)
                if cluster.has_place(resources):
                    text = (
                        f"{wanted} have their place and are starting: their processes load torch "
                        "and the model, which takes longer on a busy machine"
                    )
                else:
                    text = (
                        f"waiting for {wanted}: the cluster has "
                        f"{cluster.available_resources(resources)} free; without room they start "
                        "when others end, or nodes come"
                    )
                logger.info(text)
                self.no_workers_since = math.inf
                self.waits_logged = True

    def log_progress(self) -> None:
        """Log how far the epoch under way is, each time that rank 0 reports it anew."""
        found = None
        with contextlib.suppress(Exception):  # Ray's head node does not answer
            found = cluster.progress_of(self.folder.name)
        if found and found != self.progress and found["epoch"] > self.last_epoch:
            self.progress = found
            line = progress_line(found, self.experiment.train.epochs)
            if utils.shows_live():
                self._show_bar(line, found)
            else:
                utils.progress_logger.info(line)

    def _show_bar(self, line: str, found: dict[str, float]) -> None:
        """Show a report within an epoch as a bar of its steps, or of its validation."""
        what = line.partition("  ")[0]
        if self._bar is None or self._bar.what != what:
            self._close_bar()
            unit = "sentences" if "sentences" in found else "steps"
            self._bar = utils.Progress(what, int(found[unit]), unit)
            self._bars.enter_context(self._bar)
        if "sentences" in found:
            self._bar.set(int(found["scored"]), f"{found['sentences_s']:.3g} a second")
        else:
            note = f"loss {found['loss']:.4f}, {found['items_s']:.3g} items/s"
            self._bar.set(int(found["step"]), note)

    def end_silent_workers(self) -> None:
        """Kill workers that take longer than resources.epoch_timeout_s for an epoch.

        Ray Train then starts others.
        """
        limit = self.experiment.resources.epoch_timeout_s
        if limit is None or time.monotonic() - self.last_report_time <= limit:
            return
        has_killed = False
        with contextlib.suppress(Exception):  # Ray's head node and the workers are gone
            has_killed = cluster.remove_placement_groups([self.folder.name])
        if has_killed:
            self.last_report_time = time.monotonic()
            logger.info(
                f"no epoch was finished in {limit:g} s (resources.epoch_timeout_s), so the workers "
                f"were killed, to start again after epoch {self.last_epoch}; raise that limit if "
                "they were only slow"
            )


def epoch_line(metrics: dict, epochs: int) -> str:
    """Return the line that is logged for an epoch of a run of so many epochs."""
    left_s = metrics["time/epoch_s"] * (epochs - metrics["epoch"])
    return (
        f"epoch {metrics['epoch']}/{epochs}  loss {metrics['train/loss']:.4f}  "
        f"mIoU {metrics['val/mIoU']:.1%} (best {metrics['val/mIoU_best']:.1%})  "
        f"oIoU {metrics['val/oIoU']:.1%}  hidden {metrics.get('aml/hidden', 0):.1%}  "
        f"{metrics['time/epoch_s']:.1f} s, {left_s:.0f} s left"
    )
