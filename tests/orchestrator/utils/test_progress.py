"""What is shown of long work: a bar on a terminal, lines elsewhere, nothing with --quiet."""

import io
import logging
import sys

import pytest

from orchestrator.utils import progress
from tests.support.hearing import hear


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def loud():
    yield
    progress.progress_logger.setLevel(logging.NOTSET)


def work(clock):
    with progress.Progress("scoring", 1000, "pictures", done=200) as shown:
        for seconds, count in ((2.0, 50), (12.0, 150), (20.0, 50), (42.0, 150), (60.0, 400)):
            clock[0] = seconds
            shown.add(count)


def test_lines_say_speed_and_time_left_after_ten_seconds_and_then_every_thirty(clock):
    said = hear([])
    work(clock)
    assert said == [
        "scoring: 400 of 1,000 pictures, 16.7 a second, 36 s left",
        "scoring: 600 of 1,000 pictures, 9.52 a second, 42 s left",
    ]


def test_a_terminal_has_one_bar_and_no_lines(monkeypatch):
    said = hear([])
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(progress, "FIRST_S", 0.0)
    with progress.Progress("scoring", 8, "pictures") as outer:
        outer.add(3, "loss 0.5")
        with progress.Progress("inner", 4, "things") as inner:
            inner.add(2)
    shown = sys.stdout.getvalue()
    assert "scoring (pictures)" in shown and "3/8" in shown and "loss 0.5" in shown
    assert "inner (things)" not in shown and [line[:6] for line in said] == ["inner:"]
    with progress.Progress("again", 2, "things") as again:
        again.add()
    assert "again (things)" in sys.stdout.getvalue()


def test_quiet_shows_neither(clock, monkeypatch, loud):
    said = hear([])
    progress.quieten()
    work(clock)
    monkeypatch.setattr(sys, "stdout", Terminal())
    work(clock)
    assert not said and not sys.stdout.getvalue()


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (30, 80, "30 to 80 s"),
        (40, 180, "40 s to 3 min"),
        (361, 362, "about 6 min"),
        (3600, 9000, "60 min to 2.5 h"),
    ],
)
def test_a_range_of_time_is_said_in_few_words(low, high, text):
    assert progress.range_text(low, high) == text
