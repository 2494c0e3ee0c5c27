"""Population-based training.

Exploits by hand; the same population on any number of machines and after a kill; a whole sweep.
"""

import json
from dataclasses import replace

import numpy as np
import pytest

from aml.errors import UserError
from orchestrator.config.loader import from_text
from orchestrator.config.validation import check_sweep
from orchestrator.search import trial_spec
from orchestrator.search.plan import Plan
from orchestrator.search.populations import generations
from orchestrator.search.populations.population import Population, explore

BASE = "name: x\ndata: {train: shards}\ntrain: {epochs: 6}\n"
PBT = [
    "search.scheduler=pbt",
    "search.method=random",
    "search.trials=4",
    "search.arms=[off, aml/calibrated]",
    "search.seeds={confirm: 1}",
]
SPACE = (
    "search.space={aml.tau: {low: 0.2, high: 0.8}, optim.lr: {low: 1e-4, high: 1e-2, log: true}}"
)


def population(*overrides, members=4, epochs=6):
    found = Population(
        from_text(BASE, [*PBT, SPACE, *overrides]), "aml/calibrated", members, epochs
    )
    found.initial_configs = {
        f"m{k}": {"aml.tau": 0.2 + 0.1 * k, "optim.lr": 1e-3} for k in range(members)
    }
    return found


@pytest.mark.parametrize(
    ("modes", "best"), [("max", "m3"), ("min", "m0"), ("[max, min]", "m3"), ("[min, max]", "m0")]
)
def test_members_are_ranked_by_the_first_metric_of_a_search(modes, best):
    p = population("search.metric=[val/mIoU, train/loss]", f"search.mode={modes}")
    p.scores = {f"m{k}": float(k) for k in range(4)}
    moves = p.decide()["moves"]
    assert [move["from"] for move in moves.values()] == [best]


def test_the_worst_go_on_from_the_best_with_other_settings():
    p = population()
    assert (p.generation_start, p.generation_end) == (0, 2) and not p.is_complete()
    p.scores = {"m0": 0.1, "m1": 0.4, "m2": None, "m3": 0.3}
    assert p.is_complete()
    first = p.decide()
    assert (
        list(first["moves"]) == ["m2"]
        and first["moves"]["m2"]["from"] == "m1"
        and first["epoch"] == 2
    ), "one in four; no score is the worst"
    assert (
        p.config("m2") == first["moves"]["m2"]["overrides"] != p.initial_configs["m1"]
        and p.config("m1") == p.initial_configs["m1"]
    )
    assert p.config_history("m2") == [[0, p.initial_configs["m1"]], [2, p.config("m2")]] and (
        p.generation_start,
        p.generation_end,
    ) == (
        2,
        4,
    )
    p.scores = {"m0": 0.2, "m1": 0.1, "m2": 0.9, "m3": 0.3}
    second = p.decide()
    assert second["moves"]["m1"]["from"] == "m2"
    assert p.config_history("m1") == [
        [0, p.initial_configs["m1"]],
        [2, first["moves"]["m2"]["overrides"]],
        [4, second["moves"]["m1"]["overrides"]],
    ]
    assert p.generation_end == 6 and not p.is_complete(), (
        "the last generation ends with the training"
    )


@pytest.mark.parametrize("mode, worst", [("max", {"m0", "m1"}), ("min", {"m2", "m3"})])
def test_half_at_most_and_either_direction(mode, worst):
    p = population(f"search.mode={mode}", "search.scheduler.quantile=0.5")
    p.scores = {f"m{k}": k / 10 for k in range(4)}
    moves = p.decide()["moves"]
    assert (
        set(moves) == worst
        and {m["from"] for m in moves.values()} <= set(p.initial_configs) - worst
    )


def test_members_that_failed_are_not_waited_for():
    p = population()
    p.scores, p.terminated = {"m0": 0.3, "m1": 0.2, "m3": 0.1}, {"m2"}
    assert p.is_complete() and p.decide()["moves"]["m3"]["from"] == "m0"
    p = population(members=5)
    del p.initial_configs["m4"]
    p.scores = dict.fromkeys(p.initial_configs, 0.5)
    assert not p.is_complete() and p.is_complete(search_ended=True), (
        "a fifth is to come, unless no trial is started any more"
    )


def test_settings_move_a_step_within_their_range_or_are_drawn_anew():
    search = from_text(
        BASE,
        [
            *PBT,
            "search.space={aml.tau: {low: 0.2, high: 0.8}, aml.rho: [0.2, 0.5, 1.0], "
            "optim.lr: [1e-3]}",
        ],
    ).search
    settings, rng = {"aml.tau": 0.7, "aml.rho": 0.5, "train.epochs": 9}, np.random.default_rng(0)
    found = [explore(search, settings, rng) for _ in range(400)]
    steps = [f["aml.tau"] for f in found]
    up, down = sum(x == 0.8 for x in steps), sum(x == 0.7 * 0.8 for x in steps)
    assert min(up, down) > 100 and all(0.2 <= x <= 0.8 for x in steps), (
        "0.7 * 1.2 is cut off at 0.8"
    )
    assert 60 < 400 - up - down < 140, "a quarter is drawn anew"
    assert {f["aml.rho"] for f in found} == {0.2, 0.5, 1.0} and all(
        f["train.epochs"] == 9 and "optim.lr" not in f for f in found
    )


# ---- through the plan


def score(trial, weights):
    """Return weights after an epoch: better the higher tau is, and they remember the past."""
    return weights + trial.overrides.get("aml.tau", 0.5) / 10


def run_through(experiment, stop_after=None, together=3, members=None):
    """Run a sweep without Ray, in an order of its own.

    Args:
        experiment: The settings of the sweep.
        stop_after: The turn after which the sweep is killed and continued.
        together: Trials that run at a time.
        members: The number of an arm's members that a budget lets join.

    Returns:
        {trial: record}, {arm: [decision]}.
    """
    weights, epochs, records, decisions, specs = {}, {}, [], {}, []
    made = Plan(experiment)
    if members:
        made.budget_check = lambda stage, arm: (
            "trials"
            if stage == "search" and made.counts.num_suggested[arm]["search"] >= members
            else ""
        )

    def end_generations():
        ended = False
        while found := made.finish_generation():
            ended = True
            decisions.setdefault(found[0], []).append(found[1])
            for member, move in found[1]["moves"].items():
                weights[member], epochs[member] = weights[move["from"]], epochs[move["from"]]
        return ended

    for turn in range(1000):
        if turn == stop_after:
            reached = {t: {"epoch": n, "val/mIoU": weights[t]} for t, n in epochs.items()}
            made = Plan(
                experiment,
                records,
                [trial_spec.trial_from_json(text) for text in specs],
                None,
                decisions,
                reached,
            )
        live = []
        while len(made.running) < together and (
            trial := made.suggest() or (end_generations() and made.suggest())
        ):
            live.append(trial)
        if not live:
            assert made.done
            return {r["trial"]: r for r in records}, decisions
        for trial in reversed(live):
            specs += (
                []
                if any(json.loads(s)["id"] == trial.id for s in specs)
                else [trial_spec.trial_to_json(trial)]
            )
            for settings, end in trial.config_schedule(experiment):
                while epochs.get(trial.id, 0) < end:
                    now = replace(
                        trial,
                        overrides={"aml.tau": settings.aml.tau} if "aml/" in trial.arm else {},
                    )
                    weights[trial.id] = score(now, weights.get(trial.id, 0.0))
                    epochs[trial.id] = epochs.get(trial.id, 0) + 1
            epoch = {"epoch": epochs[trial.id], "val/mIoU": weights[trial.id]}
            if epoch["epoch"] < experiment.train.epochs:
                made.pause_trial(trial, epoch)
            else:
                facts = {
                    "trial": trial.id,
                    "arm": trial.arm,
                    "stage": trial.stage,
                    "seed": trial.seed,
                    "overrides": trial.overrides,
                }
                path = trial.config_history or made.config_history(trial.id)
                records.append(
                    facts
                    | {"state": "done", "stopped_by": "", "epochs": 6, "history": [epoch]}
                    | ({"path": path} if path else {})
                )
                made.on_trial_complete(records[-1])
            end_generations()


def test_a_population_finds_better_settings_and_its_path_is_confirmed():
    experiment = from_text(
        BASE,
        [*PBT, SPACE, "search.scheduler={name: pbt, interval: 1, resample: 0.0, quantile: 0.5}"],
    )
    records, decisions = run_through(experiment)
    assert (
        len(records) == 2 * (4 + 1)
        and len(decisions["off"]) == len(decisions["aml/calibrated"]) == 5
    )
    best = max(
        (r for r in records.values() if r["arm"] == "aml/calibrated" and r["stage"] == "search"),
        key=lambda r: r["history"][-1]["val/mIoU"],
    )
    confirmed = records["aml_calibrated-confirm-000"]
    assert (
        confirmed["path"] == best["path"]
        and len(best["path"]) > 1
        and confirmed["overrides"] == best["overrides"]
    )
    assert confirmed["history"][-1]["val/mIoU"] == pytest.approx(best["history"][-1]["val/mIoU"]), (
        "the same settings at the same epochs"
    )
    assert all(set(o) == {"optim.lr"} for _, o in records["off-confirm-000"].get("path", [])), (
        "an arm keeps to its own dimensions"
    )
    seeds = [r["seed"] for r in records.values() if r["arm"] == "off" and r["stage"] == "search"]
    assert sorted(seeds) == [0, 1, 2, 3], "members with one setting differ in their seed"


@pytest.mark.parametrize("together", [1, 2, 4, 5])
def test_a_budget_that_lets_fewer_join_leaves_a_smaller_population_and_its_best_is_confirmed(
    together,
):
    records, decisions = run_through(from_text(BASE, [*PBT, SPACE]), members=3, together=together)
    search = [r for r in records.values() if r["stage"] == "search"]
    assert (
        len(search) == 6
        and {r["history"][-1]["epoch"] for r in records.values()} == {6}
        and len(decisions["aml/calibrated"]) == 2
    )
    best = max(
        (r for r in search if r["arm"] == "aml/calibrated"),
        key=lambda r: r["history"][-1]["val/mIoU"],
    )
    assert records["aml_calibrated-confirm-000"]["overrides"] == best["overrides"]


def test_a_cut_search_is_confirmed_when_its_last_member_has_ended_and_not_before():
    made = Plan(from_text(BASE, [*PBT, SPACE, "search.arms=[aml/calibrated]"]))
    first, second = made.suggest(), made.suggest()
    made.search_end_reason = "trials"
    for trial, following in ((first, None), (second, "aml_calibrated-confirm-000")):
        facts = {
            "trial": trial.id,
            "arm": trial.arm,
            "stage": "search",
            "seed": trial.seed,
            "overrides": trial.overrides,
            "epochs": 6,
        }
        made.on_trial_complete(
            facts | {"state": "done", "stopped_by": "", "history": [{"epoch": 6, "val/mIoU": 0.5}]}
        )
        assert getattr(made.suggest(), "id", None) == following


@pytest.mark.parametrize("stop_after", [1, 2, 3, 4, 6])
def test_killed_anywhere_and_on_any_number_of_machines_it_is_the_same_population(stop_after):
    experiment = from_text(BASE, [*PBT, SPACE])
    whole = run_through(experiment)
    assert run_through(experiment, stop_after) == whole
    assert {
        t: r["path"] for t, r in run_through(experiment, together=1)[0].items() if "path" in r
    } == {t: r["path"] for t, r in whole[0].items() if "path" in r}


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["resources.workers=2"], "between light trials"),
        (["search.method=tpe"], "method random or grid"),
        (
            ["search.space={model.width: [32, 64]}"],
            "model.width cannot change while a model trains",
        ),
        (["search.scheduler.interval=6"], "no generation would end"),
        (["search.scheduler.quantile=0.6"], r"in \(0, 0\.5\]"),
    ],
)
def test_a_population_that_cannot_be_is_refused(overrides, words):
    with pytest.raises(UserError, match=words):
        check_sweep(from_text(BASE, [*PBT, SPACE, *overrides]))


def test_moves_are_made_once_however_often_the_sweep_is_opened(tmp_path):
    for name in ("good", "bad"):
        (tmp_path / "trials" / name / "last").mkdir(parents=True)
        (tmp_path / "trials" / name / "best").mkdir()
        (tmp_path / "trials" / name / "last" / "weights").write_text(name)
        (tmp_path / "trials" / name / "epochs.jsonl").write_text(f'{{"of": "{name}"}}\n')
    (tmp_path / "trials" / "bad" / "last.previous").mkdir()
    decision = {
        "epoch": 2,
        "scores": {"bad": 0.1, "good": 0.3},
        "moves": {"bad": {"from": "good", "overrides": {"aml.tau": 0.25}}},
    }
    (said,) = generations.Generations(tmp_path).finish("aml/calibrated", decision)
    assert "bad" in said and "goes on from good at epoch 2 with aml.tau 0.25" in said
    last = tmp_path / "trials" / "bad" / "last"
    assert (last / "weights").read_text() == "good" and (
        tmp_path / "trials" / "bad" / "epochs.jsonl"
    ).read_text() == '{"of": "good"}\n'
    assert not (tmp_path / "trials" / "bad" / "last.previous").exists(), (
        "nothing to fall back to that is not the donor's"
    )
    (last / "weights").write_text("trained on")
    again = generations.Generations(tmp_path)
    again.resume()
    assert again.decisions["aml/calibrated"][0]["moves"] == decision["moves"]
    assert (last / "weights").read_text() == "trained on"
    (tmp_path / "trials" / "bad" / generations.DONE).unlink()  # as after a crash before the move
    generations.Generations(tmp_path).resume()
    assert (last / "weights").read_text() == "good"
