"""Test the comparison of arms under corruption with numbers computed by hand and by scipy."""

import json
import math

import pytest
from scipy import stats

from orchestrator.reporting import report, robust_arms
from orchestrator.reporting.comparison import runs
from tests.orchestrator.reporting.test_report import SWEEP, folder_of, ledger

# mIoU of confirmation seeds 1, 2, 3: clean, fog at severities 2 and 4, noise at severity 3
SCORES = {
    "off": [(0.50, 0.30, 0.10, 0.20), (0.52, 0.32, 0.12, 0.21), (0.51, 0.31, 0.11, 0.25)],
    "random": [(0.53, 0.36, 0.16, 0.20), (0.55, 0.40, 0.18, 0.22), (0.53, 0.38, 0.16, 0.24)],
    "aml-calibrated": [(0.54, 0.40, 0.20, 0.2), (0.56, 0.42, 0.22, 0.3), (0.55, 0.41, 0.21, 0.1)],
}
CONDITIONS = ("clean:0", "fog:2", "fog:4", "noise:3")


def measured():
    """Return sweep.json with these scores."""
    trials = {
        f"{arm}-c{seed}": {k: {"mIoU": v} for k, v in zip(CONDITIONS, values, strict=True)}
        for arm, seeds in SCORES.items()
        for seed, values in enumerate(seeds, 1)
    }
    conditions = list(CONDITIONS[1:])
    return SWEEP | {
        "robustness": {"split": "val", "n": 9, "conditions": conditions, "trials": trials}
    }


@pytest.fixture(scope="module")
def scores():
    trials = robust_arms.add_robustness(ledger(), measured())
    found = robust_arms.robust_scores(trials, measured())
    return {(s.arm, s.corruption): s for s in found}


def test_means_are_over_severities_then_corruptions_then_seeds(scores):
    assert [name for arm, name in scores if arm == "off"] == ["clean", "fog", "noise", "mean"]
    assert scores["off", "fog"].severities == "2 4"
    means = {name: scores["off", name].mIoU.mean for name in ("clean", "fog", "noise", "mean")}
    # fog .20 .22 .21; noise .20 .21 .25; their means .20 .215 .23
    assert means == pytest.approx({"clean": 0.51, "fog": 0.21, "noise": 0.22, "mean": 0.215})
    drops = [1 - 0.20 / 0.50, 1 - 0.22 / 0.52, 1 - 0.21 / 0.51]
    assert scores["off", "fog"].drop == pytest.approx(sum(drops) / 3)
    assert math.isnan(scores["off", "clean"].drop)


def test_differences_are_paired_by_seed_and_corrected_over_arms_and_corruptions(scores):
    fog = scores["random", "fog"].differences["off"]
    expected = stats.ttest_rel([0.26, 0.29, 0.27], [0.20, 0.22, 0.21])
    interval = expected.confidence_interval()
    assert fog.n == (3, 3) and fog.difference == pytest.approx(0.19 / 3)
    assert (fog.low, fog.high, fog.p) == pytest.approx(
        (interval.low, interval.high, expected.pvalue)
    )
    family = [(arm, name) for arm in ("random", "aml/calibrated") for name in ("fog", "noise")]
    p = {key: scores[key].differences["off"].p for key in family}
    corrected = {key: scores[key].p_corrected["off"] for key in family}
    smallest = min(p, key=p.get)
    assert corrected[smallest] == pytest.approx(4 * p[smallest])
    assert all(corrected[key] >= p[key] for key in family)
    assert scores["off", "fog"].differences == {}
    assert set(scores["random", "fog"].differences) == {"off"}
    assert set(scores["aml/calibrated", "fog"].differences) == {"off", "random"}


def test_the_report_shows_and_words_them_and_compare_takes_them_as_a_metric(tmp_path):
    folder = folder_of(tmp_path, measured(), ledger())
    page = report.write_report(folder)
    text = page.read_text("utf-8")
    assert "Arms under corruption" in text
    assert (
        "Under corruption (fog, noise; 9 validation sentences) aml/calibrated has the highest mean "
        "mIoU, 25.50%" in text
    )
    assert "Of 4 comparisons of an arm with off under one corruption" in text
    table = (page.parent / "robust_arms.csv").read_text().splitlines()
    assert len(table) == 1 + 3 * 4 and (page.parent / "robust_arms.tex").is_file()
    run = folder / "sweep.json"
    (folder / "config.yaml").write_text("name: toy\ndata: {train: toy}\n")
    run.write_text(json.dumps(measured()))
    found = runs.compare_runs([str(folder)], tmp_path, metric="robust/fog")
    differences = {
        (row["a"].split(":")[1], row["b"].split(":")[1]): row["difference"]
        for row in found["comparisons"]
    }
    assert differences == pytest.approx(
        {
            ("off", "random"): -0.19 / 3,
            ("off", "aml/calibrated"): -0.1,
            ("random", "aml/calibrated"): -0.11 / 3,
        }
    )


def test_a_sweep_without_corruptions_has_no_such_section(tmp_path):
    page = report.write_report(folder_of(tmp_path, SWEEP, ledger()))
    assert "arms under corruption" not in page.read_text("utf-8").lower()
    assert not (page.parent / "robust_arms.csv").exists()
