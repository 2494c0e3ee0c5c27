"""Test what a report shows beside the trials, on folders written here.

These are tables for papers, published results, importance, cost and robustness.
"""

import csv
import json
import math
import re

import pytest
import yaml
from scipy import stats

from aml.errors import UserError
from orchestrator.reporting import evidence, export, report, rows as rows_module
from orchestrator.reporting.figures import curves
from tests.orchestrator.reporting.test_report import SWEEP, folder_of, ledger, trial

SCORES = {
    "mIoU": 0.7,
    "oIoU": 0.65,
    "P@0.5": 0.8,
    "P@0.6": 0.7,
    "P@0.7": 0.6,
    "P@0.8": 0.4,
    "P@0.9": 0.2,
}


def evaluation(folder, *, n=10834, split="val", protocol="square", dataset="refcoco", robust=False):
    folder.mkdir(parents=True)
    about = {
        "model": {"name": "caris"},
        "arm": "aml/calibrated",
        "seed": 3,
        "protocol": protocol,
        "splits": [split],
        "image_size": 448,
    }
    about |= {
        "data": {
            "dataset": dataset,
            "split_by": "umd" if dataset == "refcocog" else "unc",
            "fingerprint": "f00d",
        },
        "corruptions": [],
    }
    metrics = {split: SCORES | {"n": n}}
    if robust:
        metrics |= {f"{split}/fog:{s}": SCORES | {"n": n, "mIoU": 0.7 - 0.1 * s} for s in (1, 3)}
        line = {
            "severities": [1, 3],
            "mIoU": 0.5,
            "drop_mIoU": 2 / 7,
            "oIoU": 0.65,
            "drop_oIoU": 0.0,
        }
        (folder / "robustness.json").write_text(
            json.dumps({split: {"fog": line, "mean": line | {"severities": []}}})
        )
        (folder / "breakdown.json").write_text(
            json.dumps({split: {"size": {"small": SCORES | {"n": 7}, "large": SCORES | {"n": 9}}}})
        )
    (folder / "about.json").write_text(json.dumps(about))
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


def read(path):
    return list(csv.DictReader(path.open(encoding="utf-8")))


def sections(html):
    return re.findall(r'<section id="(\w+)"', html)


def test_the_arms_table_is_there_for_papers_with_its_equality(tmp_path):
    folder = report.write_report(folder_of(tmp_path, SWEEP, ledger())).parent
    lines = (folder / "arms.md").read_text("utf-8").splitlines()
    heads = [c.strip() for c in lines[0].strip("|").split("|")]
    cells = {
        (row := [c.strip() for c in line.strip("|").split("|")])[0]: dict(
            zip(heads, row, strict=True)
        )
        for line in lines[2:5]
    }
    # off .50 .52 .51: mean 51, deviation 1, half width 4.3027 / sqrt 3 = 2.48
    assert cells["off"]["mIoU"] == "51.00 (48.52 to 53.48)" and cells["aml/calibrated"][
        "Δ off"
    ].startswith("+4.00 (")
    assert cells["random"]["Δ random"] == "–" and cells["aml/calibrated"]["seeds"] == "3"
    assert "compared at equal epochs (4), not at equal compute" in lines[-1]
    tex = (folder / "arms.tex").read_text("utf-8")
    assert all(
        rule in tex
        for rule in (
            r"\toprule",
            r"\midrule",
            r"\bottomrule",
            r"\usepackage{booktabs}",
            r"\label{tab:arms}",
            "P@0.5",
            r"$\tau$",
        )
    )
    body = tex[tex.index(r"\midrule") : tex.index(r"\bottomrule")].strip().splitlines()[1:]
    assert len(body) == 3 and all(
        line.count("&") == len(heads) - 1 and line.endswith(r"\\") for line in body
    )
    assert "51.00 (48.52 to 53.48)" in tex and "95\\% t interval" in tex


def test_what_latex_reads_as_markup_is_escaped():
    assert export.escape_latex("a_b & 5% of {x} #1 $2 ~ ^ \\ −1 τ") == (
        r"a\_b \& 5\% of \{x\} \#1 \$2 "
        r"\textasciitilde{} \textasciicircum{} \textbackslash{} $-$1 $\tau$"
    )
    assert export.markdown(["a"], [["x|y"]]) == "| a |\n| --- |\n| x\\|y |\n"


def test_published_numbers_stand_beside_their_own_split_and_protocol_only(tmp_path):
    def methods(**how):
        rows = evidence.evaluation_tables(
            [evaluation(tmp_path / str(len(list(tmp_path.iterdir()))), **how)]
        )["evaluations"]
        return {r["model"]: r for r in evidence.published_rows(rows)}

    square, original = methods(), methods(protocol="original")
    assert set(square) == {"LAVT", "LAVT (one stage, Dice)", "CARIS", "MaskRIS", "AMLRIS"}
    large = {"EVF-SAM", "MLCD-seg-7B", "GLaMM"}
    assert set(original) == {"DETRIS-B", "DETRIS-L"} | large
    assert original["EVF-SAM"]["oIoU"] == pytest.approx(0.824)
    assert all(math.isnan(original[name]["mIoU"]) for name in large)
    assert (
        square["MaskRIS"]["mIoU"] == pytest.approx(0.7835)
        and square["AMLRIS"]["oIoU"] == pytest.approx(0.7545)
        and square["CARIS"]["size"] == 448
    )
    assert all(
        r["origin"] == "published" and r["source"] for r in (*square.values(), *original.values())
    )
    assert methods(n=800) == {}, "a part of the split, or generated scenes under the same name"
    assert methods(split="testA", n=10834) == {} and math.isnan(
        methods(split="testA", n=5657)["AMLRIS"]["oIoU"]
    )
    assert methods(dataset="refcocog", n=4896)["AMLRIS"]["mIoU"] == pytest.approx(0.6924)


def test_the_published_file_says_of_every_method_where_it_comes_from():
    known = yaml.safe_load(
        (evidence.Path(evidence.__file__).with_name("published.yaml")).read_text("utf-8")
    )
    assert {"LAVT", "CARIS", "MaskRIS", "DETRIS-B", "AMLRIS"} <= {
        m["method"] for m in known["methods"]
    }
    for m in known["methods"]:
        assert m["source"] and m["protocol"] in ("square", "original") and m["size"] > 0
        for key, splits in m["scores"].items():
            assert set(splits) <= set(known["sentences"][key])
            assert all(30 < value < 100 for scores in splits.values() for value in scores.values())


def test_arms_validated_on_the_whole_split_stand_beside_published_numbers(tmp_path):
    data = {
        "uri": "d",
        "fingerprint": "f00d",
        "dataset": "refcoco",
        "split_by": "unc",
        "splits": {"val": {"sentences": 10834}},
    }
    (tmp_path / "a").mkdir()
    folder = folder_of(tmp_path / "a", SWEEP | {"data": data}, ledger())
    page = report.write_report(folder)
    rows = read(page.parent / "evaluations.csv")
    assert [r["origin"] for r in rows] == ["measured here"] * 3 + ["published"] * 5 and rows[0][
        "model"
    ].endswith("off, mean of 3 seeds")
    html = page.read_text("utf-8")
    assert html.count('<tr class="published">') == 5 and "table of its paper, on CARIS" in html
    (folder / "config.yaml").write_text("data: {val_limit: 800}\n")
    assert "evaluations" not in sections(
        report.write_report(folder, tmp_path / "part").read_text("utf-8")
    )
    assert "evaluations" not in sections(
        report.write_report(folder_of(tmp_path, SWEEP, ledger())).read_text("utf-8")
    )


def test_evaluations_in_the_run_folder_and_named_ones_are_shown(tmp_path):
    folder = folder_of(tmp_path, SWEEP, ledger())
    evaluation(folder / "evaluations" / "robust", n=9, robust=True)
    other = evaluation(tmp_path / "elsewhere")
    page = report.write_report(folder, evaluations=[other, other])
    html, out = page.read_text("utf-8"), page.parent
    assert sections(html)[4:8] == ["importance", "evaluations", "breakdown", "robustness"]
    assert [r["source"] for r in read(out / "evaluations.csv")][:2] == ["robust", "elsewhere"]
    robust = read(out / "robustness.csv")
    assert [(r["corruption"], r["severities"], float(r["mIoU"])) for r in robust] == [
        ("fog", "1 3", 0.5),
        ("mean", "", 0.5),
    ]
    assert robust[0]["over_baseline_mIoU"] == "" and "28.57" in (out / "robustness.md").read_text(
        "utf-8"
    )
    assert [(r["by"], r["group"], r["n"]) for r in read(out / "breakdown.csv")] == [
        ("size", "small", "7"),
        ("size", "large", "9"),
    ]
    assert "mIoU by severity: robust, val" in html and "robustness.tex" in html
    with pytest.raises(UserError, match="is no finished evaluation"):
        report.write_report(folder, evaluations=[tmp_path])


def test_importance_by_hand():
    grid = [(tau, rho) for tau in (0.2, 0.4, 0.8) for rho in (0.5, 1.0)]
    lines = [
        trial(f"t{i}", "aml/x", tau, rho, 0.5 + tau / 10 - rho / 1000)
        for i, (tau, rho) in enumerate(grid)
    ]
    for i, line in enumerate(lines):
        line["params"]["aml.level"] = "image" if i % 3 else "feature"
    tau, rho, level = (
        next(r for r in evidence.importance_rows(lines) if r["parameter"] == f"aml.{name}")
        for name in ("tau", "rho", "level")
    )
    scores = [t["history"][-1]["val/mIoU"] for t in lines]
    assert (
        tau["share"]
        == pytest.approx(stats.spearmanr([t["tau"] for t in lines], scores).statistic ** 2)
        and tau["share"] > 0.9
    )
    # ranks of the scores are 2 1 4 3 6 5, rho goes .5 1: the higher rho has ranks 1 3 5 of 1..6
    assert (
        rho["rank_correlation"]
        == pytest.approx(stats.pearsonr([0, 1, 0, 1, 0, 1], [2, 1, 4, 3, 6, 5]).statistic)
        and rho["rank_correlation"] < 0
    )
    # feature has ranks 2 and 3, image 1 4 5 6: H = 12 / (6 * 7) (5^2 / 2 + 16^2 / 4) - 3 * 7
    assert level["share"] == pytest.approx((12 / 42 * (25 / 2 + 256 / 4) - 21) / 5) and math.isnan(
        level["rank_correlation"]
    )
    assert (
        [r["parameter"] for r in evidence.importance_rows(lines)][0] == "aml.tau"
        and tau["epoch"] == 4
        and tau["trials"] == 6
    )


def test_importance_needs_several_dimensions_and_enough_trials():
    lines = [trial(f"t{i}", "aml/x", 0.1 * (i + 1), 0.5, 0.5 + i / 100) for i in range(5)]
    assert evidence.importance_rows(lines) == []
    few = [trial(f"t{i}", "aml/x", 0.1 * (i + 1), 0.1 * (i + 2), 0.5 + i / 100) for i in range(3)]
    assert evidence.importance_rows(few) == []


def test_importance_is_read_at_an_epoch_that_all_reached():
    lines = [
        trial(f"t{i}", "aml/x", 0.1 * (i + 1), 0.2 * (i % 2 + 1), 0.5 + i / 100) for i in range(4)
    ]
    lines.append(trial("early", "aml/x", 0.9, 0.9, 0.3, epochs=2, state="stopped", by="asha"))
    lines.append(trial("failed", "aml/x", 0.8, 0.8, 0.9, epochs=1, state="failed"))
    assert {(r["epoch"], r["trials"]) for r in evidence.importance_rows(lines)} == {(2, 5)}


def test_cost_stands_against_quality_for_arms_whose_cost_is_known(tmp_path):
    arms = rows_module.arm_summaries(ledger(), SWEEP)
    (figure,) = curves.cost_figures(arms)
    assert "aml/calibrated" in figure["svg"] and ">random<" not in figure["svg"], (
        "what random costs was not recorded"
    )
    assert curves.cost_figures(arms[:2]) == []
    assert "Cost against quality" in report.write_report(
        folder_of(tmp_path, SWEEP, ledger())
    ).read_text("utf-8")


def test_settings_that_changed_on_the_way_have_a_table():
    history = [{"epoch": 4, "val/mIoU": 0.5}]
    plain = {"trial": "a", "arm": "off", "stage": "search", "history": history}
    moved = plain | {
        "trial": "b",
        "path": [[0, {"aml.tau": 0.5}], [2, {"aml.tau": 0.61234, "aml.fill": "mean"}]],
    }
    rows = evidence.config_history_rows([plain, moved])
    assert [(r["trial"], r["from_epoch"], r["settings"]) for r in rows] == [
        ("b", 0, "aml.tau 0.5"),
        ("b", 2, "aml.tau 0.6123, aml.fill mean"),
    ]
    assert [r["mIoU"] for r in rows] == [0.5, 0.5]
