"""Test how many seeds a difference needs, against published numbers and by hand."""

import json
import math

import pytest
from scipy import stats

from orchestrator.config.loader import from_text
from orchestrator.reporting.significance import (
    deviation_factors,
    paired_spread,
    pairs_needed,
    smallest_detectable_difference,
)
from orchestrator.search.estimates.power import describe_power, power_question

ARMS = {"off": [0.30, 0.32, 0.31], "random": [0.31, 0.34, 0.30], "maskris": [0.33, 0.33, 0.33]}


@pytest.mark.parametrize(("d", "pairs"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10)])
def test_pairs_needed_are_those_of_published_tables(d, pairs):
    assert pairs_needed(1.0, d) == pairs
    assert pairs_needed(2.4, 2.4 * d) == pairs  # only the ratio matters
    # scipy's noncentral t, with the other tail left out, as an independent reference
    for n, enough in ((pairs, True), (pairs - 1, False)):
        critical = stats.t.ppf(0.975, n - 1)
        assert (stats.nct.sf(critical, n - 1, d * math.sqrt(n)) >= 0.8) == enough
        assert (smallest_detectable_difference(1.0, n) <= d) == enough


def test_no_number_of_pairs_is_below_two_or_beyond_what_a_sweep_takes():
    assert pairs_needed(1.0, 100.0) == 2
    assert pairs_needed(100.0, 0.001) is None


def test_the_spread_is_pooled_over_pairs_of_arms():
    scores = [dict(enumerate(values)) for values in ARMS.values()]
    # differences in points: off - random -1 -2 1; off - maskris -3 -1 -2; random - maskris -2 1 -3
    variances = [7 / 3, 1.0, 13 / 3]
    spread, freedom = paired_spread(scores)
    assert 100 * spread == pytest.approx(math.sqrt(sum(variances) / 3))
    assert freedom == 4
    assert paired_spread([{0: 0.3}, {0: 0.4}])[1] == 0
    assert paired_spread([{0: 0.3, 1: 0.4}, {2: 0.3, 3: 0.4}])[1] == 0
    # 95 % interval of a deviation with 4 degrees of freedom: chi2 11.143 and 0.4844
    assert deviation_factors(4) == pytest.approx((0.599, 2.874), abs=1e-3)


def trials(arms, shift=0.0):
    return [
        {"trial": f"{arm}-confirm-{k}", "arm": arm, "stage": "confirm", "state": "done"}
        | {"seed": k, "epochs": 1, "seconds": 1.0, "stopped_by": "", "error": "", "params": {}}
        | {"tau": 0.0, "rho": 0.0, "overrides": {}}
        | {"history": [{"epoch": 1, "val/mIoU": value + shift, "time/epoch_s": 1.0}]}
        for arm, values in arms.items()
        for k, value in enumerate(values)
    ]


def write(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in records))


@pytest.fixture
def experiment(tmp_path):
    settings = [f"storage.root={tmp_path / 'runs'}", "search.seeds.confirm=3"]
    return from_text("name: toy\ndata: {train: shards}\n", settings)


def plan(experiment, tmp_path, differences=(), spread=None):
    question = power_question(list(differences), spread, str(tmp_path / "toy.yaml"))
    return "\n".join(describe_power(experiment, question, 0.5))


def test_a_plan_says_seeds_trainings_and_hours(experiment, tmp_path):
    text = plan(experiment, tmp_path, [1.0, 40.0, 0.001], 1.0)
    # d = 1 needs ten pairs: seven more than three, of three arms, at half an hour a seed of all
    rows = [line.split() for line in text.splitlines()]
    assert ["1", "10", "21", "3.50"] in rows and ["40", "2", "0", "0.00"] in rows
    assert "0.001   more than 100000" in text
    assert "with search.seeds.confirm=3 a true difference of 3.26 points" in text
    assert "spreads by 1.00 points from seed to seed (guessed)" in text
    usual = [line.split()[0] for line in plan(experiment, tmp_path, spread=1.0).splitlines()]
    assert usual[3:7] == ["0.5", "1", "2", "3"]


def test_the_spread_is_an_earlier_runs_else_a_shipped_ledgers_else_asked_for(experiment, tmp_path):
    assert "--seed-spread 1.5" in plan(experiment, tmp_path)
    write(tmp_path / "results" / "toy.ledger.jsonl", trials(ARMS))
    shipped = plan(experiment, tmp_path)
    assert "spreads by 1.60 points (95% 0.96 to 4.59)" in shipped
    assert "toy.ledger.jsonl: 3 arms, 3 seeds" in shipped
    for name, arms, robustness in (
        ("toy-more", {**ARMS, "off": [0.30, 0.30, 0.30], "late": [0.3, 0.3, 0.3]}, True),
        ("toy-less", {arm: values[:2] for arm, values in ARMS.items()}, False),
        ("other", {arm: [*values, 0.9] for arm, values in ARMS.items()}, False),
    ):
        folder = tmp_path / "runs" / name
        write(folder / "ledger.jsonl", trials(arms))
        fog = {t["trial"]: t["seed"] / (8 + len(t["arm"])) for t in trials(arms)}
        measured = {k: {"clean:0": {"mIoU": 0.3}, "fog:2": {"mIoU": v}} for k, v in fog.items()}
        state = {"run": name, "name": name.split("-")[0], "kind": "sweep", "started": 1.0}
        if robustness:
            state["robustness"] = {"conditions": ["fog:2"], "trials": measured}
        (folder / "sweep.json").write_text(json.dumps(state))
    text = plan(experiment, tmp_path)
    assert "run toy-more: 4 arms, 3 seeds" in text and "toy-less" not in text
    assert "of two arms in val/mIoU" in text and "of two arms in robust/mean" in text
    assert "ledger" not in text and "other" not in text


def test_the_spread_is_that_of_the_epochs_that_count(experiment, tmp_path):
    ended_alike = trials({arm: [0.2 + k / 100 for k in range(3)] for arm in ARMS})
    for trial, best in zip(ended_alike, trials(ARMS), strict=True):
        trial["history"] = [*best["history"], trial["history"][0] | {"epoch": 2}]
    write(tmp_path / "results" / "toy.ledger.jsonl", ended_alike)
    assert "--seed-spread 1.5" in plan(experiment, tmp_path)  # at the last epoch none differ
    best = experiment.with_overrides({"evaluate.select": "best_mIoU"})
    assert "spreads by 1.60 points" in plan(best, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--difference", "1"], "give --dry-run with them"),
        (["--dry-run", "--difference", "0"], "--difference is 0; it must be above 0"),
        (["--dry-run", "--seed-spread", "nan"], "--seed-spread is nan; it must be above 0"),
    ],
)
def test_questions_that_mean_nothing_are_refused(ray_session, arguments, said):
    code, text = ray_session(["sweep", "experiments/quickstart.yaml", *arguments])
    assert code == 2 and said in text and "Traceback" not in text
