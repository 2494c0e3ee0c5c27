"""What a sweep says of its trials while they run: lines, and the table by arm of a terminal."""

import sys

import pytest

from tests.orchestrator.sweep.test_driver import begin, epoch, make_sweep, report
from tests.orchestrator.utils.test_progress import Terminal


@pytest.fixture
def sweep(tmp_path):
    said = []
    return make_sweep(tmp_path, said, scheduler="asha"), said


def test_a_trial_stopped_by_its_scheduler_is_told_with_rung_and_rank(sweep):
    sweep, said = sweep
    sweep.progress.open()
    assert said[-1] == "scores: mIoU and oIoU in % on the first 4 sentences of val"
    first, second = begin(sweep), begin(sweep)
    report(sweep, first, epoch(1) | {"val/mIoU": 0.3})
    (line,) = [text for text in said if "mIoU 30.0  oIoU 10.0" in text]
    assert line.startswith(first) and line.endswith(" left")
    assert report(sweep, second, epoch(1) | {"val/mIoU": 0.2}).state == "stopped"
    told = [text for text in said if text.startswith(second)][-1]
    assert " stopped by ASHA at the rung of epoch 1, rank 2 of 2 after 1 epochs" in told


def test_a_terminal_shows_each_arm_and_how_long_it_takes(sweep, monkeypatch):
    sweep, said = sweep
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("COLUMNS", "80")
    sweep.progress.open()
    trial = begin(sweep)
    report(sweep, trial, epoch(1) | {"val/mIoU": 0.3})
    before = len(said)
    for number in (2, 3, 4):
        report(sweep, trial, epoch(number) | {"val/mIoU": 0.2})
    begin(sweep)
    sweep.progress.close()
    shown = sys.stdout.getvalue()
    assert trial in shown and "…" not in shown, "names are whole"
    row = [line for line in shown.splitlines() if " off " in line and "confirm" not in line][-1]
    # of three trials one runs, one waits and one has finished, with 30 % as its best
    assert [cell.strip() for cell in row.split("│")[1:-1]] == ["off", "1", "1", "1", "", "", "30.0"]
    assert "1 of 3 trials" in shown and " left" in shown and "4/4" in shown
    assert not [text for text in said[before:] if text.startswith(trial)], "no lines beside it"
