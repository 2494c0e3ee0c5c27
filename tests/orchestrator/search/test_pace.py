"""Time and money of a sweep: planned, then corrected by its epochs."""

import pytest

from orchestrator.config.loader import from_text
from orchestrator.search.estimates.cost import least_share
from orchestrator.search.estimates.estimate import estimate_plan
from orchestrator.search.estimates.throughput import ThroughputEstimator
from orchestrator.search.plan import Plan
from tests.orchestrator.search.test_plan import BASE, end

SWEEP = [
    "search.arms=[off, two_pass]",
    "search.space={optim.lr: [1e-3, 1e-4]}",
    "search.seeds={confirm: 1}",
    "train.epochs=10",
]
PRICE = "resources.price_per_cpu_hour=36"
"""0.01 a second of a trial."""


def test_arms_are_reckoned_at_their_own_pace():
    experiment = from_text(BASE, [*SWEEP, PRICE])
    estimator = ThroughputEstimator(Plan(experiment), experiment, concurrent=2)
    assert (
        estimator.left_text({})
        == ""
        == estimator.correction({}, {"seconds": 0, "trial_seconds": 0})
    )  # nothing is known before an epoch
    estimator.add_epoch("off", 1.0)
    assert estimator.seconds_left({"off": 1}) == pytest.approx(
        29 * 1 + 30 * 1
    )  # 3 trials of 10 epochs an arm; the other arm's estimator is unknown
    estimator.add_epoch("two_pass", 2.0)
    assert estimator.seconds_left({"off": 1, "two_pass": 1}) == pytest.approx(29 * 1 + 29 * 2)
    # 87 s of two at a time, and 1 / sqrt(1 + 2) more or less
    text = estimator.left_text({"off": 1, "two_pass": 1})
    assert text == "18 to 69 s left, cost <= 1.37"
    for _ in range(14):
        estimator.add_epoch("off", 1.0)
    assert estimator.left_text({"off": 1, "two_pass": 1}).startswith("33 to 54 s left")  # 1 / 4


def test_what_trials_take_beside_their_epochs_counts_for_those_to_come():
    experiment = from_text(BASE, SWEEP)
    plan = Plan(experiment)
    estimator = ThroughputEstimator(plan, experiment, concurrent=1)
    record = end(plan.suggest(), experiment, 0.5) | {
        "seconds": 15.0,
        "history": [{"epoch": e, "time/epoch_s": 1.0} for e in range(1, 11)],
    }
    for _ in range(10):
        estimator.add_epoch("off", 1.0)
    plan.on_trial_complete(record | {"history": [{"epoch": 10, "val/mIoU": 0.5}]})
    estimator.add_trial(record)
    assert plan.results.epochs_left == {"off": 20, "two_pass": 30} and estimator.seconds_left(
        {}
    ) == pytest.approx(1.5 * 50)


def test_the_plan_is_corrected_once_it_has_moved():
    experiment = from_text(BASE, [*SWEEP, PRICE])
    plan = Plan(experiment)
    before = estimate_plan(plan, experiment, 6.0, 1)  # 60 epochs of 6 s
    assert before == {
        "epoch_s": 6.0,
        "hours": pytest.approx(0.1),
        "cost": pytest.approx(3.6),
        "hours_range": pytest.approx([0.1, 2 * 0.1 + 1 / 60]),
    }
    estimator, spent = (
        ThroughputEstimator(plan, experiment, 1, before),
        {"seconds": 7.0, "trial_seconds": 7.0},
    )
    estimator.add_epoch("off", 6.1)
    assert estimator.correction({"off": 1}, spent) == ""  # about as planned
    for _ in range(9):
        estimator.add_epoch("off", 12.0)
    said = estimator.correction(
        {"off": 10}, {"seconds": 120.0, "trial_seconds": 120.0}
    )  # 50 more epochs of 12 s: 720 s in all
    assert said == (
        "estimate: in all 9 to 15 min, cost 7.20 at most, at 12.0 s an epoch, corrected by the "
        "epochs so far; "
        "planned were 6 to 13 min, cost 3.60 at most, at 6.0 s an epoch"
    )
    assert (
        estimator.correction({"off": 10}, {"seconds": 125.0, "trial_seconds": 125.0}) == ""
    )  # said already


def test_a_correction_stays_within_the_budget():
    experiment = from_text(BASE, [*SWEEP, PRICE, "search.budget={hours: 0.05, cost: 1}"])
    estimator = ThroughputEstimator(Plan(experiment), experiment, 1)
    estimator.add_epoch("off", 60.0)
    assert "in all about 3 min, cost 1.00 at most, at 60.0 s an epoch" in estimator.correction(
        {}, {"seconds": 60.0, "trial_seconds": 60.0}
    )


def test_the_lower_end_is_what_asha_leaves_of_the_search():
    asha = "search.scheduler={name: asha, grace: 1, reduction: 2}"
    experiment = from_text(BASE, [*SWEEP, asha])
    # of 10 epochs: 1 + 1/2 + 2/4 + 4/8 + 2/16 = 2.625; an arm has 2 searches and a confirmation
    share = (2 * 2.625 + 10) / 30
    plan = Plan(experiment)
    assert least_share(plan) == pytest.approx(share)
    low, high = estimate_plan(plan, experiment, 6.0, 1)["hours_range"]
    assert low == pytest.approx(0.1 * share) and high == pytest.approx(2 * 0.1 + 1 / 60)
    record = end(plan.suggest(), experiment, 0.5) | {"epochs": 1, "state": "stopped"}
    plan.on_trial_complete(record)
    assert least_share(plan) == pytest.approx((3 * 2.625 + 20) / 50)
