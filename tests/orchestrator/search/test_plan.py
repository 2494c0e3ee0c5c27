"""Test which trials a sweep runs: equal counts, fresh confirmation seeds, what follows a kill."""

import math

import pytest

from aml.errors import UserError
from aml.training import StepCost
from orchestrator.cluster.placement import idle_gpus, plan_placement
from orchestrator.config.loader import from_text
from orchestrator.config.validation import check_sweep, setting_warnings
from orchestrator.search.estimates import cost
from orchestrator.search.estimates.estimate import describe_plan, estimate_at_launch, size_sweep
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


# ---- which dimensions an arm has, and for how long it trains


def test_blind_arms_have_no_dimensions_of_alignment():
    space = (
        "search.space={aml: [{source: joint, score: cosine}, {noise: 0.1}, {block: 16}], "
        "optim.lr: [1e-3, 1e-4]}"
    )
    experiment = from_text(
        BASE,
        [
            space,
            "search.arms=[off, two_pass, random, maskris, aml/calibrated]",
            "aml.tau=0.5",
            "aml.rho=0.5",
        ],
    )
    settings = Plan(experiment).search.settings
    assert {arm: len(s) for arm, s in settings.items()} == {
        "off": 2,
        "two_pass": 2,
        "random": 4,
        "maskris": 4,
        "aml/calibrated": 6,
    }
    assert {"aml.source": "joint", "aml.score": "cosine", "optim.lr": 1e-4} in settings[
        "aml/calibrated"
    ]
    matched = from_text(
        BASE, [space, "search.arms=[random]", "aml.rate=match", "aml.tau=0.5", "aml.rho=0.5"]
    )
    assert len(Plan(matched).search.settings["random"]) == 6, (
        "matched masks are as many as the alignment's: its dimensions count"
    )


COSTS = {"off": 1.0, "random": 1.0, "two_pass": 2.0, "maskris": 2.0, "aml": 1.25}


@pytest.mark.parametrize(
    "arms, equal, expected",
    [
        ("[off, aml/calibrated]", "epochs", {}),
        (
            "[off, off@compute, two_pass, aml/calibrated@compute]",
            "epochs",
            {"off@compute": 20, "aml/calibrated@compute": 16},
        ),
        (
            "[off, maskris, aml/calibrated]",
            "compute",
            {"off": 20, "maskris": 10, "aml/calibrated": 16},
        ),
        (
            "[off, maskris, aml/calibrated]",
            "seconds",
            {"off": 10, "maskris": 10, "aml/calibrated": 10},
        ),
    ],
)
def test_epochs_of_equal_cost(monkeypatch, arms, equal, expected):
    monkeypatch.setattr(cost, "flops", lambda trial: COSTS[trial.aml.mode])
    monkeypatch.setattr(cost, "seconds", lambda trials: dict.fromkeys(trials, 0.1))
    experiment = from_text(
        BASE,
        [
            f"search.arms={arms}",
            f"search.equal={equal}",
            "train.epochs=10",
            "search.space={aml.tau: [0.5]}",
        ],
    )
    assert cost.equal_epochs(experiment) == expected


def test_trials_of_an_arm_with_settings_of_its_own_are_told_by_their_ids():
    arms = ["random", "random(rate=0.1)", "aml/calibrated(sentence=other, weak=highest)"]
    experiment = from_text(BASE, [f"search.arms={arms}", "search.seeds={confirm: 1}"])
    plan = Plan(experiment)
    trials = run_through(plan, experiment)
    assert {plan.counts.parse(trial.id)[0] for trial in trials} == set(arms)
    assert "aml_calibrated_sentence_other_weak_highest-confirm-000" in {t.id for t in trials}
    rates = {t.arm: t.experiment(experiment).aml.rate for t in trials}
    assert rates == {arms[0]: None, arms[1]: 0.1, arms[2]: None}


def test_without_a_search_the_one_setting_of_each_arm_is_confirmed():
    changes = ["search.arms=[off, off@compute, random(rate=0.1), aml/calibrated]"]
    changes += ["search.trials=0", "search.seeds={confirm: 2}", "aml.rho=1.0"]
    experiment = from_text(BASE, [*changes, "search.space={aml.tau: [0.25]}"])
    plan = Plan(experiment, epochs={"off@compute": 7})
    trials = run_through(plan, experiment)
    assert len(trials) == plan.counts.total == 8 and plan.done
    assert {trial.stage for trial in trials} == {"confirm"}
    settings = {t.arm: t.experiment(experiment) for t in trials}
    assert (settings["aml/calibrated"].aml.tau, settings["aml/calibrated"].aml.rho) == (0.25, 1.0)
    assert settings["off@compute"].train.epochs == 7
    assert Plan(experiment, list(plan.results.records.values()), {}, {"off@compute": 7}).done
    for more, message in (
        (["search.space={aml.tau: [0.25, 0.5]}"], "search.space has several for aml.tau"),
        (["search.space={}", "search.seeds={confirm: 0}"], "nothing is trained"),
    ):
        with pytest.raises(UserError, match=message):
            from_text(BASE, [*changes, *more])


def test_an_arm_at_equal_compute_is_a_run_of_its_own_length():
    experiment = from_text(
        BASE,
        [
            "search.arms=[off, off@compute]",
            "train.epochs=10",
            "search.seeds={confirm: 1}",
            "search.space={aml.tau: [0.5]}",
        ],
    )
    plan = Plan(experiment, epochs={"off@compute": 13})
    trials = run_through(plan, experiment)
    lengths = {t.id: t.experiment(experiment).train.epochs for t in trials}
    assert lengths == {
        "off-search-000": 10,
        "off_at_compute-search-000": 13,
        "off-confirm-000": 10,
        "off_at_compute-confirm-000": 13,
    }
    assert plan.counts.total_epochs == 46 and all(
        t.experiment(experiment).aml.mode == "off" for t in trials
    )
    again = Plan(experiment, list(plan.results.records.values()), epochs={"off@compute": 13})
    assert again.done and again.counts.parse("off_at_compute-confirm-000") == (
        "off@compute",
        "confirm",
        0,
    )


def test_counted_flops_agree_with_what_the_modes_do():
    experiment = from_text(
        BASE,
        ["model={name: small, width: 32, stem: 16, heads: 2}", "data.size=64", "train.batch=4"],
    )
    one, two = (
        cost.flops(experiment.for_arm("off", {})),
        cost.flops(experiment.for_arm("two_pass", {})),
    )
    assert (
        two == pytest.approx(2 * one)
        and cost.flops(experiment.for_arm("random", {"aml.rho": 0.5})) == one
    )
    assert one < cost.flops(experiment.for_arm("aml/calibrated", {})) < 1.2 * one


def test_two_passes_without_dropout_are_remarked_upon():
    dry = from_text(BASE, ["search.arms=[off, two_pass]", "model={name: small, dropout: 0.0}"])
    assert "two passes are one at twice the cost" in setting_warnings(dry, dry.search.arms)[0]
    assert (
        setting_warnings(from_text(BASE, ["model={name: small, dropout: 0.1}"]), ["two_pass"])
        == []
        == setting_warnings(dry, ["off"])
    )


GPU_PLAN = """
name: caris
data: {train: none, synth: {dataset: refcoco, images: 100}, size: 448}
model: {name: caris, pretrained: false}
train: {epochs: 10, batch: 16, precision: fp16}
search: {arms: [off, maskris], space: {}, trials: 0, seeds: {confirm: 3}}
resources: {workers: 2, cpus_per_worker: 1, gpus_per_worker: 1}
"""


@pytest.mark.parametrize(
    ("overrides", "seconds", "said"),
    [
        # 181 items, 16 in a step of both workers, which takes (226.35 + 466.37) / 2 ms, and 15 % of
        # the epoch beside the steps
        ([], 181 / 16 * 0.34636 / 0.85, "NVIDIA H200, bf16, batch 16 and not 8, with 15% of"),
        (["train.batch=32"], 181 / 32 * 0.34636 / 0.85, "batch 16, with 15% of"),
        (["train.batch=192"], 181 / 192 * 2 * 0.784275 / 0.85, "batch 48 and not 96"),
        (["search.arms=[off]"], 181 / 16 * 0.22635 / 0.85, "bf16"),
        (["data.size=480"], None, "steps of caris were measured on a GPU at 448 px, not at 480"),
        (["model.backbone=swin_tiny"], None, "no step of caris with these options was measured"),
        (["train.precision=fp32"], None, "no step of caris at 448 px was measured on a GPU in fp"),
        (["search.arms=[off, oneref]"], None, "was measured on a GPU for oneref"),
        (["resources.gpus_per_worker=0.5"], None, "these trials share one"),
    ],
)
def test_a_plan_takes_the_time_of_steps_that_were_measured_on_a_gpu(
    monkeypatch, overrides, seconds, said
):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("orchestrator.cluster.placement.run_on_worker", lambda *of, **how: None)
    monkeypatch.setattr("orchestrator.data.mixture.check_sources", lambda *_: None)
    experiment = from_text(GPU_PLAN, overrides)
    placement = plan_placement(experiment, [{"CPU": 16, "GPU": 8, "memory": 0}])
    text = describe_plan(experiment, placement)
    size = size_sweep(experiment, placement)
    assert said in text and said in size.source
    if seconds is None:
        assert " s an epoch" not in text and size.estimate is None
    else:
        assert f"time: about {seconds:.1f} s an epoch (from steps measured on another" in text
        assert size.estimate["epoch_s"] == pytest.approx(seconds)
        trials = len(experiment.search.arms) * 3
        hours = trials * 10 * seconds / 3600 / placement.concurrent
        assert size.estimate["hours"] == pytest.approx(hours)
