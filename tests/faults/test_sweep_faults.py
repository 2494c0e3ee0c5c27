"""Stop the trials of a sweep at a limit of time, memory or money."""

import pytest

from orchestrator.storage import run as run_module
from tests.orchestrator.sweep import test_sweep

pytestmark = pytest.mark.fault

home = test_sweep.home  # a fixture


def test_a_trial_stops_at_its_time_limit(home, ray_session):
    small = [
        "search.arms=[off]",
        "search.space={}",
        "search.seeds={confirm: 0}",
        "search.budget.trial_hours=2.8e-7",
    ]
    code, text = ray_session(
        ["sweep", str(home / "tiny.yaml"), f"storage.root={home}", "name=late", *small]
    )
    assert code == 0, text
    (record,) = run_module.find_run(home, "late").ledger()
    assert (record["state"], record["stopped_by"], record["epochs"]) == ("stopped", "time", 1)


def test_a_trial_that_wants_more_memory_than_there_is_fails_alone(home, ray_session):
    """An attention of 2^19 channels takes a terabyte, which the allocator refuses."""
    small = [
        "search.arms=[off]",
        f"search.space={{model.width: [{2**19}, 16]}}",
        "search.seeds={confirm: 1}",
        "search.scheduler=none",
    ]
    code, text = ray_session(
        ["sweep", str(home / "tiny.yaml"), f"storage.root={home}", "name=vast", *small]
    )
    assert code == 0 and "out of memory" in text and "Traceback" not in text, text
    found = {
        r["overrides"].get("model.width"): r for r in run_module.find_run(home, "vast").ledger()
    }
    assert (found[2**19]["state"], found[2**19]["stopped_by"], found[2**19]["epochs"]) == (
        "failed",
        "memory",
        0,
    )
    assert "raise train.accumulate" in found[2**19]["error"] and found[16]["state"] == "done"


def test_money_that_is_spent_stops_trials_at_the_end_of_their_epoch(home, ray_session):
    small = [
        "search.arms=[off]",
        "search.space={}",
        "search.seeds={confirm: 1}",
        "resources.price_per_cpu_hour=3600",
        "train.epochs=4",
    ]
    command = ["sweep", str(home / "tiny.yaml"), f"storage.root={home}", "name=dear", *small]
    code, text = ray_session(
        [*command, "search.budget={cost: 0.001}"]
    )  # a second of a trial costs 1
    assert code == 0 and "cost <=" in text and "stopped by its budget of 0.001 cost" in text, text
    (record,) = run_module.find_run(home, "dear").ledger()
    assert (record["state"], record["stopped_by"], record["epochs"]) == ("stopped", "budget", 1)
    code, text = ray_session(
        [*command, "search.budget={cost: 10000}"]
    )  # the cut trial goes on where it was
    assert code == 0, text
    records = run_module.find_run(home, "dear").ledger()
    assert [(r["stage"], r["state"], [e["epoch"] for e in r["history"]]) for r in records] == [
        ("search", "done", [1, 2, 3, 4]),
        ("confirm", "done", [1, 2, 3, 4]),
    ]
