"""Test the driver of a sweep by two metrics: its records, and what a killed one goes on with."""

import json
import time

import pytest

from aml.training.learner import ENDED
from orchestrator.config import Objective
from orchestrator.sweep.finish import find_champion
from orchestrator.utils import files
from tests.orchestrator.sweep.test_driver import epoch, make_sweep, report, start, suggest

SEARCH = {
    "metric": ["val/mIoU", "robust/mIoU"],
    "space": {"optim.lr": {"low": 1e-4, "high": 1e-2}, "optim.clip": {"low": 0.5, "high": 2.0}},
    "trials": 9,
    "seeds": {"confirm": 1},
}


def train(sweep, config: dict) -> dict:
    """Train a trial for both its epochs as its process does, and return what it was given."""
    name = start(sweep, config)
    settings = sweep.trials.running[name].spec.overrides
    found = []
    for number in (1, 2):
        one = epoch(number) | {"val/mIoU": 100 * settings["optim.lr"], ENDED: time.time()}
        if number == 2 and config["stage"] == "search":
            one["robust/mIoU"] = settings["optim.clip"] / 2 - 10 * settings["optim.lr"]
        found.append(json.dumps(one) + "\n")
        path = sweep.run.folder / "trials" / name / "epochs.jsonl"
        files.atomic_write(path, "".join(found).encode())
        report(sweep, name, one)
    return {name: settings}


@pytest.mark.parametrize("method", ["tpe", {"name": "optuna", "sampler": "nsga2", "startup": 3}])
def test_a_sweep_by_two_metrics_that_was_killed_goes_on_alike(tmp_path, method):
    def sweep(name):
        return make_sweep(tmp_path / name, [], search=SEARCH | {"method": method}, epochs=2)

    def rest(driver):
        found = {}
        while config := suggest(driver):
            found |= train(driver, config)
        return found

    whole = sweep("whole")
    straight = rest(whole)
    first = sweep("killed")
    found = {}
    for _ in range(5):
        found |= train(first, suggest(first))
    cut = suggest(first)  # under way when the driver is killed
    again = sweep("killed")
    found |= rest(again)
    assert cut["trial"] in found and found == straight and len(found) == 10
    records = {r["trial"]: r for r in again.run.ledger()}
    assert records.keys() == found.keys()
    scored = [name for name, r in records.items() if "robust/mIoU" in r["history"][-1]]
    assert len(scored) == 9 and all("search" in name for name in scored)
    # the confirmed setting: the largest product of distances to the worst of both metrics
    searched = {name: records[name]["history"][-1] for name in scored}
    worst = [min(e[m] for e in searched.values()) for m in SEARCH["metric"]]

    def volume(name):
        gains = [searched[name][m] - w for m, w in zip(SEARCH["metric"], worst, strict=True)]
        return gains[0] * gains[1]

    (confirmed,) = set(records) - set(scored)
    assert records[confirmed]["overrides"] == records[max(scored, key=volume)]["overrides"]


def test_the_champion_of_a_search_by_a_score_under_corruption_is_the_best_checkpoint_there():
    """The score stands at the end of the history, whichever epoch's checkpoint it is of."""
    records = [
        {
            "trial": f"t{k}",
            "stage": "confirm",
            "state": "done",
            "epochs": 2,
            "history": [
                {"epoch": 1, "val/mIoU": 0.5, "val/oIoU": 0.5},
                {"epoch": 2, "val/mIoU": 0.4, "val/oIoU": 0.4, "robust/mIoU": robust},
            ],
        }
        for k, robust in enumerate((0.2, 0.3, 0.1))
    ]
    for select in (None, "best_mIoU"):
        best = find_champion(records, Objective("robust/mIoU", "max"), select)
        assert best["trial"] == "t1"
    assert find_champion(records, Objective("robust/mIoU", "min"))["trial"] == "t2"
