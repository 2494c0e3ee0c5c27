"""Test which trials a sweep runs: equal counts, fresh confirmation seeds, what follows a kill."""

import math

import pytest

from aml.errors import UserError
from aml.training import StepCost
from orchestrator.cluster.placement import idle_gpus, plan_placement
from orchestrator.config.loader import from_text
from orchestrator.config.validation import check_sweep
from orchestrator.search.estimates.estimate import (
    describe_plan,
    estimate_at_launch,
    size_sweep,
)
from orchestrator.search.plan import Plan
from orchestrator.search.trial_spec import trial_from_json, trial_to_json
from tests.support.hearing import hear

BASE = "name: x\ndata: {train: shards}\n"
GRID = [
    "search.space={aml.tau: [0.25, 0.5], aml.rho: [0.5, 1.0]}",
    "search.seeds={search: 1, confirm: 2}",
]


def end(trial, experiment, value, epochs=10, state="done"):
    row = trial.describe(experiment) | {
        "overrides": trial.overrides,
        "state": state,
        "stopped_by": "",
        "error": "",
        "epochs": epochs,
    }
    return row | {"history": [{"epoch": epochs, "val/mIoU": value}]}


def run_through(plan, experiment, value=lambda trial: 0.5, stop_after=None):
    order = []
    while not plan.done and (stop_after is None or len(order) < stop_after):
        trial = plan.suggest()
        order.append(trial)
        plan.on_trial_complete(end(trial, experiment, value(trial)))
    return order


def test_every_arm_gets_the_same_number_of_trials_in_turn():
    experiment = from_text(BASE, GRID)
    order = run_through(Plan(experiment), experiment)
    search = [t.arm for t in order if t.stage == "search"]
    assert search[:6] == ["off", "random", "aml/calibrated"] * 2
    assert {arm: search.count(arm) for arm in set(search)} == {
        "off": 4,
        "random": 4,
        "aml/calibrated": 4,
    }
    assert (
        len([t for t in order if t.stage == "confirm"]) == 6
        and len({t.id for t in order}) == len(order) == Plan(experiment).counts.total
    )


def test_arms_with_fewer_settings_spend_their_trials_on_further_seeds():
    experiment = from_text(BASE, GRID)
    order = run_through(Plan(experiment), experiment)
    off = [t.seed for t in order if t.arm == "off" and t.stage == "search"]
    assert off == [0, 1, 2, 3]
    random = [
        (t.experiment(experiment).aml.share, t.seed)
        for t in order
        if t.arm == "random" and t.stage == "search"
    ]
    assert sorted(random) == [
        (0.125, 0),
        (0.125, 1),
        (0.25, 0),
        (0.5, 0),
    ]  # 0.25 * 1.0 and 0.5 * 0.5 are one setting of random


def test_the_best_setting_is_confirmed_on_seeds_never_searched():
    experiment = from_text(BASE, GRID)
    order = run_through(
        Plan(experiment),
        experiment,
        value=lambda t: (
            0.9 if t.overrides.get("aml.tau") == 0.25 and t.overrides.get("aml.rho") == 1.0 else 0.1
        ),
    )
    confirm = [t for t in order if t.arm == "aml/calibrated" and t.stage == "confirm"]
    assert [t.overrides for t in confirm] == [{"aml.tau": 0.25, "aml.rho": 1.0}] * 2
    assert {t.seed for t in confirm} & {t.seed for t in order if t.stage == "search"} == set()


def test_a_setting_that_was_stopped_early_does_not_beat_one_that_went_to_the_end():
    experiment = from_text(
        BASE, ["search.arms=[aml/calibrated]", "search.space={aml.tau: [0.25, 0.5]}"]
    )
    plan = Plan(experiment)
    plan.on_trial_complete(end(plan.suggest(), experiment, 0.9, epochs=2, state="stopped"))
    plan.on_trial_complete(end(plan.suggest(), experiment, 0.4))
    assert plan.results.best_config("aml/calibrated") == {"aml.tau": 0.5}


def test_lower_is_better_where_the_mode_says_so():
    experiment = from_text(
        BASE,
        ["search.arms=[aml/calibrated]", "search.space={aml.tau: [0.25, 0.5]}", "search.mode=min"],
    )
    plan = Plan(experiment)
    plan.on_trial_complete(end(plan.suggest(), experiment, 0.9))
    plan.on_trial_complete(end(plan.suggest(), experiment, 0.4))
    assert plan.results.best_config("aml/calibrated") == {"aml.tau": 0.5}


@pytest.mark.parametrize(
    "method", ["grid", "random", "tpe", "{name: optuna, sampler: gp}", "hyperopt", "bayesopt"]
)
def test_a_killed_sweep_goes_on_where_it_stopped(method):
    more = (
        []
        if method == "grid"
        else [
            "search.trials=4",
            "search.space={aml.tau: {low: 0.2, high: 0.8}, aml.rho: {low: 0.3, high: 1.0}}",
        ]
    )
    experiment = from_text(BASE, [*GRID, *more, f"search.method={method}"])
    plan = Plan(experiment)
    finished, records = run_through(plan, experiment, stop_after=5), []
    records = list(plan.results.records.values())
    cut = plan.suggest()  # started, not finished
    again = Plan(experiment, records, [trial_from_json(trial_to_json(t)) for t in [*finished, cut]])
    rest = run_through(again, experiment)
    assert rest[0] == cut
    ids = [t.id for t in [*finished, *rest]]
    assert len(ids) == len(set(ids)) == plan.counts.total
    whole = run_through(Plan(experiment), experiment)
    assert {(t.id, str(t.overrides)) for t in whole} == {
        (t.id, str(t.overrides)) for t in [*finished, *rest]
    }


def test_random_search_tries_the_same_points_in_every_masking_arm():
    experiment = from_text(
        BASE,
        [
            "search.method=random",
            "search.trials=3",
            "search.space={aml.tau: {low: 0.2, high: 0.8}}",
        ],
    )
    order = run_through(Plan(experiment), experiment)
    by_arm = {
        arm: [t.overrides["aml.tau"] for t in order if t.arm == arm and t.stage == "search"]
        for arm in ("random", "aml/calibrated")
    }
    assert by_arm["random"] == by_arm["aml/calibrated"] and len(set(by_arm["random"])) == 3


@pytest.mark.parametrize("method", ["{name: optuna, sampler: gp}", "hyperopt", "bayesopt"])
def test_a_method_with_a_model_of_the_results_tries_better_settings_later(method):
    """Its five best settings lie less than half as far from the best one as random search's."""

    def five_best(method: str) -> float:
        space = "search.space={aml.tau: {low: 0.1, high: 1.0}, aml.rho: {low: 0.25, high: 1.0}}"
        arm = "search.arms=[aml/calibrated]"
        experiment = from_text(BASE, [arm, f"search.method={method}", "search.trials=24", space])
        order = run_through(Plan(experiment), experiment, lambda t: -distance(t), stop_after=24)
        return sum(sorted(map(distance, order))[:5]) / 5

    def distance(trial) -> float:
        return abs(trial.overrides["aml.tau"] - 0.4) + abs(trial.overrides["aml.rho"] - 0.8)

    assert five_best(method) < five_best("random") / 2


def settings_with_stopped_trials(method, stopped, score_of_stopped, trials=12):
    """Return the settings that a method proposes where asha stops some of its trials."""
    space = "search.space={aml.tau: {low: 0.1, high: 1.0}, aml.rho: {low: 0.25, high: 1.0}}"
    more = ["search.arms=[aml/calibrated]", "search.scheduler=asha", f"search.trials={trials}"]
    experiment = from_text(BASE, [*more, space, f"search.method={method}"])
    plan, found = Plan(experiment), []
    for index in range(trials):
        trial = plan.suggest()
        found.append(trial.overrides)
        cut = {"state": "stopped", "stopped_by": "asha"} if stopped(index) else {}
        value = score_of_stopped if cut else trial.overrides["aml.tau"]
        plan.on_trial_complete(end(trial, experiment, value) | cut)
    return found


@pytest.mark.parametrize("method", ["tpe", "hyperopt", "bayesopt"])
def test_a_method_reads_no_score_of_a_trial_that_its_scheduler_stopped(method):
    low, high = (
        settings_with_stopped_trials(method, lambda i: i % 3 == 0, score) for score in (0.1, 0.9)
    )
    assert low == high


@pytest.mark.parametrize("sampler", ["nsga2", "cmaes"])
def test_generations_are_counted_by_scores_so_those_of_stopped_trials_are_read(sampler):
    method = f"{{name: optuna, sampler: {sampler}, startup: 4}}"
    low, high = (
        settings_with_stopped_trials(method, lambda i: i % 3 == 0, score) for score in (0.1, 0.9)
    )
    assert low[:4] == high[:4] and low != high


def test_bayesopt_hardly_proposes_a_stopped_setting_again():
    found = settings_with_stopped_trials("bayesopt", lambda i: i >= 10, 0.1, trials=18)
    assert len({tuple(round(v, 3) for _, v in sorted(s.items())) for s in found}) >= 17


def test_a_method_that_cannot_be_used_is_refused_before_anything_starts(monkeypatch):
    with pytest.raises(UserError, match="bayesopt takes ranges only.*a list for aml.tau"):
        from_text(BASE, [*GRID, "search.method=bayesopt", "search.trials=2"])
    known = "known: grid, random, tpe, optuna, hyperopt, bayesopt"
    with pytest.raises(UserError, match=known):
        from_text(BASE, [*GRID, "search.method=nevergrad", "search.trials=2"])
    with pytest.raises(UserError, match=r"unknown key search.method.gama .*did you mean .*gamma"):
        from_text(BASE, ["search.method={name: hyperopt, gama: 0.3}", "search.trials=2"])
    monkeypatch.setattr("orchestrator.config.methods.find_spec", lambda module: None)
    with pytest.raises(UserError, match="not installed; install it with pip install hyperopt"):
        check_sweep(from_text(BASE, ["search.method=hyperopt", "search.trials=2"]))


def test_tpe_turns_towards_the_better_region():
    experiment = from_text(
        BASE,
        [
            "search.method=tpe",
            "search.trials=40",
            "search.arms=[aml/calibrated]",
            "search.space={aml.tau: {low: 0.1, high: 1.0}}",
        ],
    )
    order = run_through(
        Plan(experiment), experiment, value=lambda t: -abs(t.overrides["aml.tau"] - 0.8)
    )
    taus = [t.overrides["aml.tau"] for t in order if t.stage == "search"]
    assert sum(abs(t - 0.8) for t in taus[-15:]) / 15 < sum(abs(t - 0.8) for t in taus[:15]) / 15


def test_tpe_keeps_apart_the_trials_that_run_side_by_side_before_and_after_a_restart():
    experiment = from_text(
        BASE,
        [
            "search.method=tpe",
            "search.trials=24",
            "search.arms=[aml/calibrated]",
            "search.space={aml.tau: {low: 0.1, high: 1.0}, aml.rho: {low: 0.1, high: 1.0}}",
        ],
    )
    plan = Plan(experiment)
    ended = [plan.suggest() for _ in range(8)]
    for trial in ended:
        tau, rho = trial.overrides["aml.tau"], trial.overrides["aml.rho"]
        plan.on_trial_complete(end(trial, experiment, -abs(tau - 0.4) - abs(rho - 0.7)))
    running = [plan.suggest() for _ in range(4)]
    again = Plan(experiment, list(plan.results.records.values()), [*ended, *running])
    assert [again.suggest() for _ in range(4)] == running
    for _ in range(4):
        running.append(again.suggest())
        assert running[-1] == plan.suggest(), "a restart suggests nothing else"
    settings = [tuple(t.overrides.values()) for t in running]
    assert len(set(settings)) == 8
    nearest = [min(math.dist(a, b) for b in settings if b != a) for a in settings]
    # the mean is 0.09 where TPE does not know of the trials under way, 0.26 where it does
    assert sum(nearest) / 8 > 0.15


def test_a_look_at_the_next_trial_changes_nothing():
    """Only `suggest` and `close` end the search; what the budget forbids now it may allow later."""
    experiment = from_text(BASE, GRID)
    plan = Plan(experiment)
    forbidden = ["hours"]
    plan.budget_check = lambda stage, arm: forbidden[0]
    assert plan.peek() == "" and plan.done and plan.incomplete_reason == ""
    forbidden[0] = ""
    assert plan.peek() == "search" and not plan.done and plan.search_end_reason == ""
    assert plan.suggest().id == "off-search-000" and plan.peek() == "search"
    forbidden[0] = "hours"
    plan.close()
    assert plan.search_end_reason == plan.incomplete_reason == "hours"


def test_an_arm_that_only_failed_is_not_confirmed():
    experiment = from_text(BASE, ["search.arms=[off, random]", "search.space={aml.tau: [0.5]}"])
    plan = Plan(experiment)
    while (trial := plan.suggest()) is not None:
        plan.on_trial_complete(
            end(trial, experiment, 0.5, state="failed" if trial.arm == "random" else "done")
        )
    assert plan.done
    assert {r["arm"] for r in plan.results.records.values() if r["stage"] == "confirm"} == {"off"}


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["search.space={aml.tau: [0.01], aml.rho: [0.1]}"], "tau*rho*n"),
        (["data.size=100"], "multiple of 16"),
        (["search.space={aml.tau: [0.5, 1.5]}"], "in [0, 1]"),
        (["search.space={model.wdth: [64]}"], "did you mean model.width"),
        (
            ["resources={workers: 2, gpus_per_worker: 0.5}"],
            "two workers of a run might lie on one GPU",
        ),
    ],
)
def test_a_sweep_with_an_impossible_corner_is_refused_before_anything_starts(overrides, said):
    with pytest.raises(UserError) as caught:
        check_sweep(from_text(BASE, overrides))
    assert said in str(caught.value)


def test_a_plan_measures_gpus_that_this_machine_lacks_where_they_are_or_says_no_time(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    experiment = from_text(
        BASE, ["resources={gpus_per_worker: 1, price_per_gpu_hour: 2}", "data.synth={images: 100}"]
    )
    placement = plan_placement(experiment, [{"CPU": 16, "GPU": 2, "memory": 0}])
    asked = []
    monkeypatch.setattr(
        "orchestrator.cluster.placement.run_on_worker",
        lambda *of, **how: asked.append(how["wanted"]),
    )
    monkeypatch.setattr("orchestrator.data.mixture.check_sources", lambda *_: None)
    text = describe_plan(experiment, placement)
    assert (
        "time and cost: trials have GPUs that this machine lacks" in text
        and " s an epoch" not in text
        and text.endswith("nothing was started")
    )
    said = hear([])
    assert (
        estimate_at_launch(experiment, {}, placement) is None
        and "time and money follow with the first epoch" in said[0]
    )
    assert asked == [{"CPU": 1.0, "GPU": 1}] * 2
    monkeypatch.setattr(
        "orchestrator.cluster.placement.run_on_worker",
        lambda *of, **how: StepCost(experiment.train.batch, 2.0, weight_bytes=0),
    )
    text = describe_plan(experiment, placement)  # 100 pictures have about 181 refs to train on
    assert (
        f"time: about {181 * 2 / experiment.train.batch:.1f} s an epoch" in text
        and "at 2 a GPU hour" in text
    )


def test_the_disk_of_a_sweep_counts_the_weights_of_teachers(monkeypatch):
    """Eight copies a trial: last and last.previous hold three, the best ones one; a teacher two."""
    cost = StepCost(4, 2.0, weight_bytes=1000)
    monkeypatch.setattr("orchestrator.search.estimates.estimate._measure_steps", lambda *_: cost)
    monkeypatch.setattr("orchestrator.data.mixture.check_sources", lambda *_: None)
    for arm, copies in (("aml/calibrated", 8), ("aml/calibrated(stage1=teacher)", 10)):
        experiment = from_text(
            BASE,
            [
                f"search={{arms: [{arm}], trials: 0, space: {{}}, seeds: {{confirm: 3}}}}",
                "data.synth={images: 100}",
            ],
        )
        placement = plan_placement(experiment, [{"CPU": 16, "GPU": 0, "memory": 0}])
        assert size_sweep(experiment, placement).disk == 3 * copies * 1000


def test_an_impossible_placement_is_refused_with_its_sum():
    with pytest.raises(
        UserError,
        match=r"2 worker\(s\) x 2 CPU \+ 0.01 for the driver = 4.01 CPU, but the cluster has 4 CPU",
    ):
        plan_placement(
            from_text(BASE, ["resources.workers=2", "resources.cpus_per_worker=2"]),
            [{"CPU": 4, "GPU": 0, "memory": 0}],
        )
    fits = plan_placement(
        from_text(BASE, ["resources.gpus_per_worker=0.25"]), [{"CPU": 16, "GPU": 2, "memory": 0}]
    )
    assert (
        idle_gpus(
            from_text(BASE, ["resources.gpus_per_worker=0.25"]),
            [{"CPU": 16, "GPU": 2, "memory": 0}],
        )
        == ""
    )
    check_sweep(from_text(BASE, ["resources={workers: 2, gpus_per_worker: 0.6}"]))
    assert "and 2 GPU stay idle; give 1, or 0.25 for four" in idle_gpus(
        from_text(BASE), [{"CPU": 16, "GPU": 2, "memory": 0}]
    )
    assert idle_gpus(
        from_text(BASE, ["resources.workers=2"]), [{"CPU": 16, "GPU": 2, "memory": 0}]
    ).endswith("give 1")
    assert idle_gpus(from_text(BASE), [{"CPU": 16, "GPU": 0, "memory": 0}]) == ""
    assert fits.concurrent == 8


@pytest.mark.parametrize(
    "resources, nodes, concurrent",
    [
        ("cpus_per_worker: 0.1", [(1, 0, 8)], 10),  # 1 // 0.1 is 9 in floating point
        ("gpus_per_worker: 0.2", [(16, 1, 8)], 5),
        (
            "gpus_per_worker: 0.6",
            [(16, 2, 8)],
            2,
        ),  # 2 / 0.6 is 3, but the third would lie on two GPUs
        (
            "gpus_per_worker: 0.1, cpus_per_worker: 4",
            [(8, 1, 8), (32, 0, 8)],
            2,
        ),  # the CPUs of the other node are of no use
        ("gpus_per_worker: 0.25, memory_gb: 3", [(16, 1, 8), (16, 1, 8)], 4),
        ("cpus_per_worker: 2", [(3, 0, 8), (3, 0, 8)], 2),
        (
            "workers: 2, cpus_per_worker: 2",
            [(4, 0, 8), (4, 0, 8)],
            1,
        ),  # the drivers want 0.01 CPU each
        ("workers: 4, gpus_per_worker: 1, cpus_per_worker: 2", [(16, 8, 8), (16, 8, 8)], 3),
        ("workers: 2, gpus_per_worker: 2", [(16, 3, 8), (16, 3, 8)], 1),
    ],
)
def test_as_many_trials_run_as_the_nodes_hold(resources, nodes, concurrent):
    have = [{"CPU": cpus, "GPU": gpus, "memory": gib * 2**30} for cpus, gpus, gib in nodes]
    assert (
        plan_placement(from_text(BASE, [f"resources={{{resources}}}"]), have).concurrent
        == concurrent
    )


def test_a_worker_that_no_single_node_holds_is_refused():
    nodes = [{"CPU": 4, "GPU": 0, "memory": 8 * 2**30}] * 2
    with pytest.raises(
        UserError,
        match=r"1 x 10 = 10 GiB, but the cluster has 8 CPU and 0 GPU and 16.0 GiB for workers "
        "on 2 nodes",
    ):
        plan_placement(from_text(BASE, ["resources.memory_gb=10"]), nodes)


def test_an_elastic_run_needs_room_for_its_fewest_workers():
    elastic = from_text(BASE, ["resources={workers: 4, min_workers: 2, cpus_per_worker: 2}"])
    assert (
        "2 worker(s) x 2 CPU = 4 CPU"
        in plan_placement(elastic, [{"CPU": 4, "GPU": 0, "memory": 0}], sweep=False).explanation
    )
    with pytest.raises(UserError, match="lower resources.min_workers"):
        plan_placement(elastic, [{"CPU": 3, "GPU": 0, "memory": 0}], sweep=False)
    with pytest.raises(UserError, match="resources.min_workers is for `train`"):
        check_sweep(elastic)
