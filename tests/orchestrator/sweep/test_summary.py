"""The last lines of a sweep and its description in MLflow, with numbers computed by hand."""

import pytest

from orchestrator.sweep import summary
from orchestrator.utils import redact
from tests.orchestrator.reporting.test_compare import begun
from tests.orchestrator.reporting.test_report import ledger
from tests.orchestrator.reporting.test_robust_arms import measured

STORE = "sqlite:////store/mlflow.db"


@pytest.fixture
def run(tmp_path):
    run = begun(tmp_path, "toy-00000000", "sweep", ["data.val_limit=9"])
    records = ledger()
    for record in records:
        run.append(record)
    sweep = measured()
    baselines = sweep["baselines"] | {"largest_object": {"mIoU": 0.31}}
    children = {record["trial"]: f"{k:032x}" for k, record in enumerate(records)}
    run.update(
        state="done",
        data=sweep["data"] | {"splits": {"val": {"refs": 3, "sentences": 1200}}},
        champion={"arm": "random", "trial": "random-c2", "checkpoint": "trials/random-c2/last"},
        robustness=sweep["robustness"],
        cost=sweep["cost"],
        baselines=baselines,
        settings_tried=sweep["settings_tried"],
        mlflow={"uri": STORE, "experiment_id": "7", "run_id": "f" * 32, "children": children},
    )
    return run


def cells(text, arm):
    return [
        [cell for cell in line.split("   ") if cell.strip()]
        for line in text.splitlines()
        if line.strip().startswith(f"{arm} ")
    ]


def test_the_last_lines_say_differences_in_points_with_their_intervals(run):
    text = summary.sweep_summary(run)
    assert "mIoU in % on the first 9 of 1,200 sentences of val, mean of 3 fresh seeds" in text
    # seeds .50 .52 .51; random is .03 .03 .02 above, with t(2) 4.303 and sd .00577 / sqrt 3
    clean, corrupted = cells(text, "random")
    assert [cell.strip() for cell in clean[1:]] == [
        "53.7 (50.8 to 56.5)",
        "+2.67 (+1.23 to +4.10)*",
    ]
    assert [cell.strip() for cell in corrupted[1:5]] == ["53.7", "27.3", "22.0", "24.7"]
    (aligned, _) = cells(text, "aml/calibrated")
    assert [cell.strip() for cell in aligned[2:]] == [
        "+4.00 (+4.00 to +4.00)*",
        "+1.33 (-0.10 to +2.77)",
    ]
    # after Bonferroni's correction for two comparisons, and Holm's under corruption
    assert "clean: aml/calibrated (+4.00 points) and random (+2.67) are better than off\n" in text
    assert "under corruption: random is better than off (+3.17 points)" in text
    assert "clean, aml/calibrated cannot be told from random (+1.33 points, 95% interval" in text
    assert "BELOW" not in text
    assert "0.5" not in text.partition("FLOPs")[0], "no share beside the per cent"


def test_a_champion_below_the_random_object_is_called_that(run):
    baselines = run.state["baselines"]
    run.update(baselines=baselines | {"champion": {"mIoU": 0.12}})
    assert "THE CHAMPION IS BELOW a random object (20.0) and the largest object (31.0)" in (
        summary.sweep_summary(run)
    )


def test_one_seed_says_nothing_of_noise(run):
    path = run.folder / "ledger.jsonl"
    lines = [line for line in path.read_text().splitlines() if "-c2" not in line]
    path.write_text("\n".join(line for line in lines if "-c3" not in line) + "\n")
    text = summary.sweep_summary(run)
    assert "+3.00 (one seed)" in text and "clean: one common seed says nothing of noise\n" in text


def test_the_comparison_of_all_trials_and_the_store_are_addressed_from_any_shell(run):
    *_, ui, page = redact(summary.sweep_summary(run)).splitlines()
    assert ui.endswith(f"python -m orchestrator ui --store {STORE}")
    children = run.state["mlflow"]["children"]
    assert page.startswith("compare     http://127.0.0.1:5000/#/compare-runs?runs=%5B%22")
    assert all(run_id in page for run_id in children.values()) and "experiments=%5B%227" in page
    run.update(mlflow=run.state["mlflow"] | {"uri": "https://mlflow.example/"})
    *_, ui, page = summary.sweep_summary(run).splitlines()
    assert ui == "MLflow      https://mlflow.example/"
    assert page.startswith("compare     https://mlflow.example/#/compare-runs?")
    run.update(mlflow={"uri": "postgresql://***@host/db"})  # as an older run has it
    assert "--store" not in summary.sweep_summary(run)


def test_mlflow_shows_the_same_in_markdown(run):
    text = summary.sweep_description(run)
    first, result, *_ = text.split("\n\n")
    assert f"[report](#/experiments/7/runs/{'f' * 32}/artifacts/report/index.html)" in first
    assert "[champion](#/models/toy)" in first and "[all trials compared](#/compare-runs?" in first
    assert result.startswith("clean: aml/calibrated (+4.00 points) and random (+2.67) are better")
    assert "| random | 53.7 (50.8 to 56.5) | +2.67 (+1.23 to +4.10)* |" in text
