"""The budget of a sweep: trials that may start, room kept for confirmation, and cost."""

from types import SimpleNamespace

import pytest

from aml.errors import UserError
from orchestrator.config.loader import from_text
from orchestrator.config.search import BudgetConfig
from orchestrator.config.validation import check_sweep, hourly_price
from orchestrator.search import budget
from orchestrator.search.budget import BudgetTracker, Reserve, Usage, estimate, is_used_up, refuses
from orchestrator.search.estimates.throughput import ThroughputEstimator
from orchestrator.search.plan import Plan
from tests.orchestrator.search.test_plan import BASE, GRID


def test_an_hour_of_a_trial_costs_what_its_workers_hold():
    resources = from_text(
        BASE,
        [
            "resources={workers: 2, cpus_per_worker: 4, gpus_per_worker: 1, "
            "price_per_gpu_hour: 3, price_per_cpu_hour: 0.05}"
        ],
    )
    assert hourly_price(resources.resources) == pytest.approx(2 * (1 * 3 + 4 * 0.05))
    assert hourly_price(from_text(BASE).resources) == 0


@pytest.mark.parametrize(
    ("limits", "use", "keep", "reason"),
    [
        ({}, Usage(trials=99, epochs=999, hours=9), (0, 0), ""),
        ({"trials": 5}, Usage(trials=4), (0, 0), ""),
        ({"trials": 5}, Usage(trials=5), (0, 0), "trials"),
        ({"trials": 5}, Usage(trials=3), (2, 20), "trials"),
        ({"epochs": 30}, Usage(epochs=12, pending=8), (0, 0), ""),
        ({"epochs": 30}, Usage(epochs=13, pending=8), (0, 0), "epochs"),
        ({"epochs": 30}, Usage(epochs=10), (1, 11), "epochs"),
        # 10 epochs of 360 s are an hour of one trial; two at a time halve the time of pending
        # epochs, not the time of the trial itself
        ({"hours": 2}, Usage(hours=1, epoch_s=360), (0, 0), ""),
        ({"hours": 2}, Usage(hours=1.1, epoch_s=360), (0, 0), "hours"),
        ({"hours": 2}, Usage(hours=1, pending=10, epoch_s=360), (0, 0), "hours"),
        ({"hours": 2}, Usage(hours=1, pending=10, epoch_s=360, concurrent=2), (0, 0), ""),
        (
            {"hours": 2},
            Usage(hours=1.5, concurrent=2),
            (0, 0),
            "",
        ),  # no epoch yet: nothing is foreseen
        ({"hours": 2}, Usage(hours=2), (0, 0), "hours"),
        ({"cost": 10}, Usage(trial_hours=2, price=4, epoch_s=180), (0, 0), ""),
        ({"cost": 10}, Usage(trial_hours=2, price=4, epoch_s=181), (0, 0), "cost"),
        ({"cost": 10}, Usage(trial_hours=2.5, price=4), (0, 0), "cost"),
    ],
)
def test_a_trial_of_ten_epochs_is_started_only_where_it_fits(limits, use, keep, reason):
    assert refuses(BudgetConfig(**limits), use, 10, reserve=Reserve(*keep)) == reason


def test_running_trials_stop_for_hours_and_cost_alone():
    assert is_used_up(BudgetConfig(trials=1, epochs=1), Usage(trials=9, epochs=9, hours=9)) == ""
    assert (
        is_used_up(BudgetConfig(hours=1), Usage(hours=1)) == "hours"
        and is_used_up(BudgetConfig(hours=1), Usage(hours=0.99)) == ""
    )
    assert (
        is_used_up(BudgetConfig(cost=6), Usage(trial_hours=3, price=2)) == "cost"
        and is_used_up(BudgetConfig(cost=6.1), Usage(trial_hours=3, price=2)) == ""
    )


def test_hours_and_money_of_a_plan():
    plan = SimpleNamespace(counts=SimpleNamespace(total=20, total_epochs=180), epochs={"off": 9})

    def of_the_plan(limits):  # epochs of 100 s: 5 hours of one trial
        return estimate(limits, plan, epoch_s=100, concurrent=2, price=3.0)

    assert of_the_plan(BudgetConfig()) == pytest.approx((2.5, 15.0))
    assert of_the_plan(BudgetConfig(trials=4)) == pytest.approx((0.5, 3.0))
    assert of_the_plan(BudgetConfig(epochs=72)) == pytest.approx((1.0, 6.0))
    assert of_the_plan(BudgetConfig(hours=1)) == pytest.approx((1.0, 6.0))
    assert of_the_plan(BudgetConfig(cost=4))[1] == 4
    assert [budget.money(x) for x in (0, 0.00421, 1.5, 1234.567)] == [
        "0.00",
        "0.0042",
        "1.50",
        "1234.57",
    ]


class Trials:
    """Running trials that have reported nothing, in the order of their start."""

    def __init__(self):
        self.running = []

    def attempt_seconds(self):
        return 0.0

    def epochs_trained(self):
        return [(spec.arm, 0) for spec in self.running]


def simulate(experiment, *, epoch_s=0.0, concurrent=1, before=None):
    """Run a sweep's plan behind its budget, trial after trial on a clock of its own.

    Returns:
        The plan and its budget tracker at the end.
    """
    plan, trials = Plan(experiment), Trials()
    estimator = ThroughputEstimator(plan, experiment, concurrent)
    tracker = BudgetTracker(
        experiment, plan, trials, estimator, concurrent=concurrent, spent_before=before
    )
    plan.budget_check = tracker.check
    clock = dict(tracker.spent_before)
    tracker.spent = lambda: clock
    while not plan.done:
        while len(trials.running) < concurrent and (spec := plan.suggest()):
            trials.running.append(spec)
        spec = min(trials.running, key=lambda running: running.id)
        trials.running.remove(spec)
        record = {
            "trial": spec.id,
            "arm": spec.arm,
            "stage": spec.stage,
            "overrides": {},
            "state": "done",
            "stopped_by": "",
            "epochs": 10,
        }
        clock = {
            "seconds": clock["seconds"] + 10 * epoch_s / concurrent,
            "trial_seconds": clock["trial_seconds"] + 10 * epoch_s,
        }
        estimator.add_epoch(spec.arm, epoch_s)
        plan.on_trial_complete(record | {"history": [{"epoch": 10, "val/mIoU": 0.5}]})
    plan.close()
    return plan, tracker


def stages(plan) -> dict:
    return {arm: (n["search"], n["confirm"]) for arm, n in plan.counts.num_suggested.items()}


WHOLE = {"off": (4, 2), "random": (4, 2), "aml/calibrated": (4, 2)}


@pytest.mark.parametrize(
    ("limit", "handed", "missing"),
    [
        ("trials: 18", WHOLE, {}),
        ("trials: 12", {"off": (2, 2), "random": (2, 2), "aml/calibrated": (2, 2)}, {}),
        ("trials: 10", {"off": (2, 2), "random": (1, 2), "aml/calibrated": (1, 2)}, {}),
        (
            "trials: 5",
            {"off": (1, 1), "random": (1, 1), "aml/calibrated": (1, 0)},
            {"off": 1, "random": 1, "aml/calibrated": 2},
        ),
        ("epochs: 95", {"off": (1, 2), "random": (1, 2), "aml/calibrated": (1, 2)}, {}),
        (
            "epochs: 39",
            {"off": (1, 0), "random": (1, 0), "aml/calibrated": (1, 0)},
            {"off": 2, "random": 2, "aml/calibrated": 2},
        ),
    ],
)
@pytest.mark.parametrize("concurrent", [1, 4])
def test_the_search_leaves_room_for_the_confirmation(limit, handed, missing, concurrent):
    experiment = from_text(BASE, [*GRID, "train.epochs=10", f"search.budget={{{limit}}}"])
    plan, meter = simulate(experiment, concurrent=concurrent)
    assert stages(plan) == handed and plan.results.missing_confirmations() == missing
    name, _, value = limit.partition(": ")
    assert {"trials": meter.use().trials, "epochs": meter.use().epochs}[name] <= int(value)
    assert plan.incomplete_reason == ("" if handed == WHOLE else name)


def test_hours_and_cost_are_kept_at_the_pace_of_the_epochs():
    experiment = from_text(BASE, [*GRID, "train.epochs=10", "search.budget={hours: 12.5}"])
    plan, meter = simulate(experiment, epoch_s=360)  # a trial takes an hour
    assert (
        stages(plan) == {"off": (2, 2), "random": (2, 2), "aml/calibrated": (2, 2)}
        and meter.use().hours == 12
    )
    priced = from_text(
        BASE,
        [*GRID, "train.epochs=10", "search.budget={cost: 25}", "resources.price_per_cpu_hour=2"],
    )
    plan, meter = simulate(priced, epoch_s=360, concurrent=2)
    assert (
        plan.incomplete_reason == "cost"
        and sum(sum(n) for n in stages(plan).values()) == 12
        and meter.use().cost == 24
    )


def test_what_earlier_attempts_used_counts_and_nothing_starts_once_it_is_gone():
    experiment = from_text(BASE, [*GRID, "search.budget={hours: 2}"])
    plan, _ = simulate(experiment, before={"seconds": 7200, "trial_seconds": 7200})
    assert (
        plan.incomplete_reason == "hours"
        and plan.counts.num_started == 0
        and plan.suggest() is None
    )


def test_what_is_said_of_a_budget_that_is_spent():
    plan, meter = simulate(from_text(BASE, [*GRID, "search.budget={trials: 5}"]))
    text = budget.budget_message(meter.stop_record())
    assert "stopped by its budget of 5 trials" in text and "5 of 18 trials were started" in text
    assert "off lacks 1 of 2 seeds" in text and "aml/calibrated lacks 2 of 2 seeds" in text
    _, meter = simulate(from_text(BASE, [*GRID, "search.budget={trials: 12}"]))
    assert "confirmation is whole" in budget.budget_message(meter.stop_record())


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["search.budget={trials: 2}"], "search.budget.trials is 2, but 3 arms need a trial each"),
        (["search.budget={epochs: 29}", "train.epochs=10"], r"3 x 10 = 30"),
        (["search.budget={cost: 5}"], "search.budget.cost needs prices"),
        (["search.budget={hours: 0}"], "search.budget.hours is 0"),
        (["search.budget={hour: 1}"], "did you mean search.budget.hours"),
        (["resources.price_per_cpu_hour=-1"], r"a number in \[0"),
    ],
)
def test_budgets_that_cannot_mean_anything_are_refused(overrides, sentence):
    with pytest.raises(UserError, match=sentence):
        check_sweep(from_text(BASE, [*GRID, *overrides]))


def test_a_run_keeps_its_name_whatever_its_budget_and_prices():
    names = {
        from_text(BASE, more).run_name("f")
        for more in (
            [],
            ["search.budget={trials: 9}"],
            ["resources.price_per_gpu_hour=2", "search.budget={cost: 1}"],
        )
    }
    assert len(names) == 1


def test_params_of_mlflow_are_the_same_however_a_run_is_continued():
    """MLflow refuses to change a param, and with it the whole request that names it."""
    elsewhere = ["resources={workers: 2, price_per_gpu_hour: 2}", "search.budget={cost: 1}"]
    more = ["search.seeds.confirm=5", "search.max_concurrent=1", "evaluate.corrupt=fog:2"]
    assert from_text(BASE, [*elsewhere, *more]).params() == from_text(BASE).params()


def test_a_plan_without_a_budget_is_not_touched_by_one():
    experiment = from_text(BASE, GRID)
    plan, _ = simulate(experiment, epoch_s=1e6)
    assert stages(plan) == WHOLE and plan.incomplete_reason == ""
