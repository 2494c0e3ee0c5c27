"""What an interruption costs a run: nothing or the current epoch."""

import signal
import threading
import time

import pytest

from orchestrator.config.loader import from_dict
from orchestrator.storage import run as run_module
from orchestrator.tracking.tracker import MemoryTracker
from orchestrator.training import loop
from orchestrator.training.epochs import EpochListener
from orchestrator.utils import signals as signals_module
from tests.orchestrator.storage.test_survival import TREE, epochs_on_disk
from tests.support.hearing import hear


@pytest.fixture
def signals():
    """Set Python's own handler of SIGINT, and restore all handlers at the end."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_the_first_interruption_is_noted_the_second_stops(signals):
    noted = []
    with signals_module.restored_handlers():
        signals_module.on_interrupt(lambda: noted.append(1))
        signal.raise_signal(signal.SIGINT)
        assert noted == [1]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert noted == [1] and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_process_that_ignores_sigint_as_those_in_the_background_do_can_still_be_stopped(signals):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signals_module.stop_at_once)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)


def test_a_sigterm_where_nothing_trains_stops_at_once(signals):
    noted = []
    signal.signal(signal.SIGTERM, signals_module.stop_at_once)
    signals_module.on_interrupt(lambda: noted.append(1))
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)
    assert noted == []


@pytest.mark.parametrize("how", ["saved", "out of time", "asked twice"])
def test_a_sigterm_has_what_is_under_way_saved_before_it_stops(signals, monkeypatch, how):
    monkeypatch.setattr(signals_module, "SAME_S", 0 if how == "asked twice" else 60)
    begun, over, noted = threading.Event(), threading.Event(), []

    def save():
        begun.set()
        over.wait(60)
        noted.append("saved")

    with signals_module.restored_handlers():
        signals_module.on_interrupt(lambda: noted.append("interrupted"))
        signals_module.save_on_terminate(save, 0.2 if how == "out of time" else 60)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
            assert begun.wait(60) and noted == []
            if how != "asked twice":
                # as `timeout` does, which signals its command and then the command's group
                signal.raise_signal(signal.SIGTERM)
            if how == "saved":
                over.set()
            elif how == "asked twice":
                signal.raise_signal(signal.SIGTERM)
            for _ in range(600):
                time.sleep(0.1)
    assert noted == (["saved"] if how == "saved" else [])
    over.set()


def test_a_training_that_ends_while_it_is_saved_is_not_stopped_after_that(signals):
    begun, over = threading.Event(), threading.Event()

    def save():
        begun.set()
        over.wait(60)

    with signals_module.restored_handlers():
        signals_module.save_on_terminate(save, 60)
        signal.raise_signal(signal.SIGTERM)
        assert begun.wait(60)
    signal.signal(
        signal.SIGTERM, lambda *_: pytest.fail("stopped in the middle of what comes after")
    )
    over.set()
    for thread in [t for t in threading.enumerate() if t.name == "ending"]:
        thread.join(60)


def test_a_run_that_is_asked_to_stop_ends_after_its_epoch_and_goes_on_as_if_nothing_had_been(
    run_trial, whole, tmp_path
):
    assert run_trial(epochs=1) == whole[:1] and epochs_on_disk(tmp_path / "run") == [1]
    assert run_trial() == whole[1:]


def test_what_ray_trains_handler_would_abort_ends_after_the_epoch(signals, tmp_path):
    """The command `train` puts its handler before the one that Ray Train sets in fit()."""
    from orchestrator.training.trainer import end_after_epoch

    class Trainer:
        def _register_sigint_handler(self, controller):
            signal.signal(signal.SIGINT, lambda *_: controller.append("aborted"))

    trainer, controller, said = Trainer(), [], hear([])
    end_after_epoch(trainer, tmp_path / loop.STOP)
    trainer._register_sigint_handler(controller)
    listener = EpochListener(
        run_module.Run(tmp_path, "train"),
        from_dict(TREE),
        MemoryTracker(tmp_path),
        "train",
    )
    listener.start()
    signal.raise_signal(signal.SIGINT)
    listener.close()
    assert (
        (tmp_path / loop.STOP).exists()
        and controller == []
        and said == [signals_module.INTERRUPTED]
    )
    signal.raise_signal(signal.SIGINT)
    assert controller == ["aborted"]
