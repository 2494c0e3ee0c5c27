"""Fixtures of several files: runs that are trained."""

from pathlib import Path

import pytest

from orchestrator.config.loader import from_dict
from orchestrator.training import loop
from tests.orchestrator.storage.test_survival import NUMBERS, TREE


@pytest.fixture
def run_trial(blocks, rows, tmp_path):
    """Return a function that trains and returns the numbers of every epoch that was reported."""
    from aml.data.refer_counts import vocabulary

    def run(epochs: int = 4, report=None, folder: Path = tmp_path / "run") -> list[list[float]]:
        heard = []
        experiment = from_dict(TREE | {"train": {"epochs": 4, "batch": 8}})

        def hear(metrics):
            heard.append([metrics[n] for n in NUMBERS])
            if report:
                report(metrics)
            if metrics["epoch"] == epochs:
                (folder / loop.STOP).touch()

        loop.run_training(experiment, lambda: blocks, vocabulary(rows), folder, hear)
        (folder / loop.STOP).unlink(missing_ok=True)
        return heard

    return run


@pytest.fixture
def whole(run_trial, tmp_path):
    """Return the numbers of a run without faults."""
    return run_trial(folder=tmp_path / "whole")
