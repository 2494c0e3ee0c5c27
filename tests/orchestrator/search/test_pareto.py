"""Test a search by several metrics: what is refused, what is proposed, confirmed and written."""

import math

import optuna
import pytest

from aml.errors import UserError
from orchestrator.config.loader import from_text
from orchestrator.config.validation import check_sweep, setting_warnings
from orchestrator.reporting.pareto import best_compromise, undominated
from orchestrator.search.estimates.estimate import estimate_plan
from orchestrator.search.methods.dashboard import STUDIES, write_studies
from orchestrator.search.plan import Plan
from orchestrator.search.trial_spec import trial_from_json, trial_to_json
from tests.orchestrator.search.test_plan import BASE, end

BOTH = [
    "search.metric=[val/mIoU, robust/mIoU]",
    "evaluate.corrupt=fog:2,fog:4,noise:3",
    "search.arms=[aml/calibrated]",
    "search.seeds={search: 1, confirm: 2}",
]
RANGES = "search.space={aml.tau: {low: 0.0, high: 1.0}, aml.rho: {low: 0.0, high: 1.0}}"


def ended(trial, experiment, clean, robust, **more):
    record = end(trial, experiment, clean, **more)
    if robust is not None:
        record["history"][-1]["robust/mIoU"] = robust
    return record


def run_through(plan, experiment, values, stop_after=None):
    """Run trials one after another; `values` returns both metrics of a trial."""
    order = []
    while not plan.done and (stop_after is None or len(order) < stop_after):
        order.append(plan.suggest())
        plan.on_trial_complete(ended(order[-1], experiment, *values(order[-1])))
    return order


def trade(trial) -> tuple[float, float]:
    """Return two metrics that pull tau apart, both at their best where rho is 1."""
    tau, rho = trial.overrides["aml.tau"], trial.overrides["aml.rho"]
    return rho - (tau - 0.2) ** 2, rho - (tau - 0.6) ** 2


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["search.metric=[val/mIoU]"], "name one metric, or list two or three, each once"),
        (["search.metric=[val/mIoU, val/mIoU]"], "name one metric, or list two or three"),
        (["search.metric=[val/mIoU, robust/fogg]"], r"did you mean robust/fog\?"),
        (["search.mode=[max]"], r"for 2 metric\(s\); give max or min for all of them, or a list"),
        (["evaluate.corrupt=null"], "robust/mIoU is a score under corruption.*corrupt=fog:3"),
        (["search.metric=robust/jpeg"], "evaluate.corrupt is fog:2,.*evaluate.corrupt=jpeg:3"),
        (
            ["search.metric=[robust/mIoU, val/mIoU]", "search.scheduler=asha"],
            "asha compares trials on their way by robust/mIoU, .* search.metric=.val/mIoU, robust",
        ),
        (["search.method=hyperopt"], "hyperopt compares trials by one number.*tpe, gp or nsga2"),
        (["search.method=bayesopt", RANGES], "bayesopt compares trials by one number"),
        (
            ["search.method={name: optuna, sampler: cmaes}", RANGES],
            "optuna with sampler cmaes compares trials by one number",
        ),
    ],
)
def test_what_cannot_be_searched_by_is_refused_before_anything_starts(overrides, said):
    with pytest.raises(UserError, match=said):
        check_sweep(from_text(BASE, [*BOTH, "search.trials=4", *overrides]))


def test_cmaes_takes_ranges_and_names_its_package(monkeypatch):
    method = ["search.method={name: optuna, sampler: cmaes}", "search.trials=4"]
    with pytest.raises(UserError, match="sampler cmaes takes ranges only"):
        from_text(BASE, method)
    monkeypatch.setattr("orchestrator.config.methods.find_spec", lambda module: None)
    with pytest.raises(UserError, match="install it with pip install cmaes"):
        check_sweep(from_text(BASE, [*method, RANGES]))


def test_what_a_search_goes_by_is_part_of_its_name_and_one_metric_stays_as_it_was():
    one = from_text(BASE, ["evaluate.corrupt=fog:2"])
    assert one.run_name("d") == from_text(BASE, ["evaluate.corrupt=fog:3"]).run_name("d")
    assert one.searched_conditions == [] and one.search.objective == ("val/mIoU", "max")
    both = from_text(BASE, BOTH)
    assert both.searched_conditions == [("fog", 2), ("fog", 4), ("noise", 3)]
    assert both.run_name("d") != from_text(BASE, [*BOTH, "evaluate.corrupt=fog:2"]).run_name("d")


def test_a_scheduler_that_compares_one_number_says_which():
    (said,) = setting_warnings(from_text(BASE, [*BOTH, "search.scheduler=asha"]), [])
    assert "asha compares trials by val/mIoU, the first of search.metric; a trial that" in said


def test_the_front_and_its_best_compromise():
    points = {"a": (5, 1), "b": (4, 4), "c": (1, 5), "d": (4, 3), "e": (0, 0), "twin": (4, 4)}
    assert undominated(points) == ["a", "b", "c", "twin"]
    assert best_compromise(points) == "b"  # 4 * 4; a and c have 5
    # c is worst in the first number once e is gone: its volume is 0, that of b (4 - 1) * (4 - 1)
    assert best_compromise({k: points[k] for k in "abc"}) == "b"
    assert best_compromise({"c": (1, 5), "a": (5, 1)}) == "a"  # no volume: the first number


def test_the_best_compromise_of_those_that_trained_to_the_end_is_confirmed():
    space = "search.space={aml.tau: [0.2, 0.4, 0.6, 0.8]}"
    experiment = from_text(BASE, [*BOTH, space, "search.mode=[max, min]"])
    plan = Plan(experiment)
    trials = [plan.suggest() for _ in range(4)]
    values = {0.2: (0.5, 0.9), 0.4: (0.4, 0.4), 0.6: (0.1, 0.1), 0.8: (0.9, None)}
    for trial in trials:
        clean, robust = values[trial.overrides["aml.tau"]]
        epochs = 10 if robust is not None else 3  # stopped: best in the first, not in the second
        state = "done" if robust is not None else "stopped"
        record = ended(trial, experiment, clean, robust, epochs=epochs, state=state)
        plan.on_trial_complete(record)
    # less of the second is better: volumes 0, (0.4 - 0.1) * (0.9 - 0.4) and 0
    assert plan.results.best_config("aml/calibrated") == {"aml.tau": 0.4}
    assert plan.suggest().overrides == {"aml.tau": 0.4}


def test_where_no_trial_has_all_metrics_the_first_decides():
    experiment = from_text(BASE, [*BOTH, "search.space={aml.tau: [0.2, 0.4]}"])
    plan = Plan(experiment)
    for value in (0.1, 0.3):
        plan.on_trial_complete(ended(plan.suggest(), experiment, value, None, epochs=2))
    assert plan.results.best_config("aml/calibrated") == {"aml.tau": 0.4}


@pytest.mark.parametrize(
    "method",
    ["random", "tpe", "{name: optuna, sampler: gp}", "{name: optuna, sampler: nsga2, startup: 3}"],
)
def test_a_killed_search_by_two_metrics_goes_on_alike(method):
    """Killed with two trials under way, one of which fails, it proposes what it would have."""
    more = [RANGES, f"search.method={method}", "search.trials=10"]
    experiment = from_text(BASE, [*BOTH, *more])
    plan = Plan(experiment)
    done = run_through(plan, experiment, trade, stop_after=5)
    cut = [plan.suggest(), plan.suggest()]
    known = [trial_from_json(trial_to_json(t)) for t in [*done, *cut]]
    again = Plan(experiment, list(plan.results.records.values()), known)
    assert [again.suggest(), again.suggest()] == cut
    for one in (plan, again):
        one.on_trial_complete(ended(cut[1], experiment, None, None, state="failed"))
        one.on_trial_complete(ended(cut[0], experiment, *trade(cut[0])))
    rest = run_through(again, experiment, trade)
    assert rest == run_through(plan, experiment, trade)
    assert len(rest) == 10 - 7 + 2 and len({t.id for t in rest}) == len(rest)


@pytest.mark.parametrize("method", ["tpe", "{name: optuna, sampler: nsga2, startup: 8}"])
def test_the_later_trials_of_a_sampler_of_several_metrics_are_better_than_chance(method):
    """By the sum of both metrics, and NSGA-II by passing on values of earlier generations."""

    def late(method):
        more = [RANGES, f"search.method={method}", "search.trials=40"]
        experiment = from_text(BASE, [*BOTH, *more])
        order = run_through(Plan(experiment), experiment, trade, stop_after=40)
        values = [value for t in order for value in t.overrides.values()]
        return sum(sum(trade(t)) for t in order[-16:]) / 16, len(set(values)) / len(values)

    (found, kinds), (chance, every) = late(method), late("random")
    assert found > chance + 0.2 and every == 1
    assert (kinds < 0.8) == ("nsga2" in method)


def test_cmaes_comes_nearer_to_the_best_than_chance_and_goes_on_alike():
    pytest.importorskip("cmaes")

    def distance(trial):
        return math.hypot(trial.overrides["aml.tau"] - 0.4, trial.overrides["aml.rho"] - 0.7)

    def order(method, restart_after=None):
        more = [BOTH[2], RANGES, f"search.method={method}", "search.trials=40"]
        experiment = from_text(BASE, more)
        plan, found = Plan(experiment), []
        for k in range(40):
            if k == restart_after:
                plan = Plan(experiment, list(plan.results.records.values()), found)
            found.append(plan.suggest())
            plan.on_trial_complete(end(found[-1], experiment, -distance(found[-1])))
        return found

    found = order("{name: optuna, sampler: cmaes}")
    assert order("{name: optuna, sampler: cmaes}", restart_after=23) == found
    late, chance = (sum(map(distance, o[-10:])) for o in (found, order("random")))
    assert late < chance / 2


def test_scoring_under_corruption_is_in_the_estimate(monkeypatch):
    """Trials of 10 epochs of 6 s score 300 sentences, each a third of one of 600 items."""
    module = "orchestrator.search.estimates.estimate"
    monkeypatch.setattr(f"{module}._items", lambda experiment: 600)
    monkeypatch.setattr(f"{module}._sentences", lambda experiment: 100)
    experiment = from_text(BASE, [*BOTH, "search.space={aml.tau: [0.2, 0.4]}"])
    found = estimate_plan(Plan(experiment), experiment, 6.0, 1)
    # 2 search trials and 2 confirmations, of which the search alone scores: 2 * 300 * 6 / 600 / 3
    assert found["hours"] * 3600 == pytest.approx(4 * 60 + 2)


def test_optuna_opens_the_search_as_studies_that_say_what_the_ledger_says(tmp_path):
    space = "search.space={aml.tau: [0.2, 0.4, 0.6], optim.lr: {low: 1e-4, high: 1e-2, log: true}}"
    more = [space, "search.method=random", "search.trials=4", "search.arms=[off, aml/calibrated]"]
    experiment = from_text(BASE, [*BOTH, *more, "search.mode=[max, min]"])
    plan = Plan(experiment)
    for k in range(8):
        trial = plan.suggest()
        state = "failed" if k == 3 else "stopped" if k == 5 else "done"
        robust = None if state == "stopped" else 0.1 + k / 100
        plan.on_trial_complete(ended(trial, experiment, k / 10, robust, state=state))
    records = list(plan.results.records.values())
    path = tmp_path / STUDIES
    for _ in range(2):  # the next end of the sweep writes it again
        write_studies(tmp_path, experiment, records)
        assert list(tmp_path.iterdir()) == [path]
    backend = optuna.storages.journal.JournalFileBackend(str(path))
    storage = optuna.storages.JournalStorage(backend)
    assert optuna.get_all_study_names(storage) == ["off", "aml/calibrated"]
    by_trial = {}
    for name in ("off", "aml/calibrated"):
        study = optuna.load_study(study_name=name, storage=storage)
        assert [d.name for d in study.directions] == ["MAXIMIZE", "MINIMIZE"]
        assert study.metric_names == ["val/mIoU", "robust/mIoU"]
        by_trial |= {t.user_attrs["trial"]: t for t in study.trials}
    assert by_trial.keys() == {r["trial"] for r in records}
    states = {"done": "COMPLETE", "stopped": "PRUNED", "failed": "FAIL"}
    for record in records:
        trial = by_trial[record["trial"]]
        assert trial.params == record["overrides"] and trial.state.name == states[record["state"]]
        if record["state"] == "done":
            last = record["history"][-1]
            assert trial.values == [last["val/mIoU"], last["robust/mIoU"]]


def test_a_search_by_one_metric_has_its_epochs_as_intermediate_values(tmp_path):
    bundles = "search.space={aml: [{tau: 0.2, rho: 0.5}, {tau: 0.4, rho: 1.0}]}"
    experiment = from_text(BASE, [BOTH[2], bundles, "search.scheduler=asha"])
    plan = Plan(experiment)
    for k in range(2):
        record = end(plan.suggest(), experiment, 0.5 + k, state="stopped" if k else "done")
        record["history"].insert(0, {"epoch": 1, "val/mIoU": 0.25})
        plan.on_trial_complete(record)
    path = tmp_path / STUDIES
    write_studies(tmp_path, experiment, plan.results.records.values())
    backend = optuna.storages.journal.JournalFileBackend(str(path))
    study = optuna.load_study(
        study_name="aml/calibrated", storage=optuna.storages.JournalStorage(backend)
    )
    assert [t.intermediate_values for t in study.trials] == [
        {1: 0.25, 10: 0.5},
        {1: 0.25, 10: 1.5},
    ]
    assert [t.params for t in study.trials] == [
        {"aml.tau": 0.2, "aml.rho": 0.5},
        {"aml.tau": 0.4, "aml.rho": 1.0},
    ]
    assert study.best_value == 0.5  # of the complete ones
    write_studies(tmp_path, experiment, [])
    assert not path.exists(), "nothing was searched"
