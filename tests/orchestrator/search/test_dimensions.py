"""Which dimensions an arm has, and for how long it trains."""

import pytest

from aml.errors import UserError
from orchestrator.cluster.placement import plan_placement
from orchestrator.config.loader import from_text
from orchestrator.config.validation import setting_warnings
from orchestrator.search.estimates import cost
from orchestrator.search.estimates.estimate import describe_plan, size_sweep
from orchestrator.search.plan import Plan
from tests.orchestrator.search.test_plan import BASE, run_through


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
