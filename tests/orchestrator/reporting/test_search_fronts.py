"""Test the Pareto front of a search by several metrics, with numbers that are checked by hand."""

import csv
import json
import re

import pytest

from orchestrator.config import Objective
from orchestrator.reporting import pareto, report, robust_arms
from tests.orchestrator.reporting.test_page import CHROMIUM, dump_of
from tests.orchestrator.reporting.test_report import SWEEP, folder_of, trial

OBJECTIVES = [Objective("val/mIoU", "max"), Objective("robust/mIoU", "max")]
SEARCHED = {  # (tau, seed): clean and robust
    (0.2, 0): (0.50, 0.20),
    (0.4, 0): (0.46, 0.30),
    (0.4, 1): (0.48, 0.32),  # mean of 0.4: 0.47 and 0.31
    (0.6, 0): (0.40, 0.33),
    (0.8, 0): (0.44, 0.25),  # dominated by 0.4
}


def lines():
    """Return the search of one arm, a stopped trial of it, its confirmation, and a second arm."""
    found = []
    for k, ((tau, seed), (clean, robust)) in enumerate(SEARCHED.items()):
        found.append(trial(f"aml-search-{k}", "aml/calibrated", tau, 1.0, clean, seed=seed))
        found[-1]["history"][-1]["robust/mIoU"] = robust
    stopped = trial("aml-search-9", "aml/calibrated", 0.9, 1.0, 0.9, state="stopped", epochs=1)
    off = trial("off-search-0", "off", 0, 0, 0.41)
    off["history"][-1]["robust/mIoU"] = 0.22
    confirmed = [
        trial(f"aml-confirm-{k}", "aml/calibrated", 0.4, 1.0, clean, "confirm", 1000 + k)
        for k, clean in enumerate((0.45, 0.47))
    ]
    found += [stopped, off, *confirmed]
    return [line | {"overrides": {"aml.tau": line["tau"]}} for line in found]


def meta():
    """Return sweep.json; both confirmed checkpoints are scored under fog, 0.28 and 0.32."""
    scores = {
        f"aml-confirm-{k}": {"clean:0": {"mIoU": 0.4}, "fog:3": {"mIoU": robust}}
        for k, robust in enumerate((0.28, 0.32))
    }
    measured = {"split": "val", "n": 4, "conditions": ["fog:3"], "trials": scores}
    return SWEEP | {"objectives": [list(o) for o in OBJECTIVES], "robustness": measured}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return report.write_report(folder_of(tmp_path_factory.mktemp("front"), meta(), lines()))


def test_the_front_is_of_means_over_trials_that_got_furthest():
    trials = robust_arms.add_robustness(lines(), meta())
    found = pareto.search_fronts(trials, trials, meta())
    own = {s.trials[0]["tau"]: s for s in found if s.arm == "aml/calibrated"}
    assert own.keys() == {0.2, 0.4, 0.6, 0.8}  # the stopped one has no score under corruption
    assert own[0.4].values == pytest.approx((0.47, 0.31)) and len(own[0.4].trials) == 2
    assert [tau for tau, s in own.items() if s.on_front] == [0.2, 0.4, 0.6]
    assert [i.mean for i in own[0.4].confirmed] == pytest.approx([0.46, 0.30])
    assert own[0.4].seeds == 2 and own[0.2].seeds == 0
    (line,) = pareto.front_lines(found, OBJECTIVES)
    assert line == (
        "Pareto front of val/mIoU and robust/mIoU: aml/calibrated 3 of 4 settings, off 1 of 1 "
        "settings; confirmed, as the best compromise: aml/calibrated 46.00 and 30.00"
    )
    assert pareto.search_fronts(trials, trials, SWEEP) == []


def test_less_of_a_metric_may_be_better():
    how = meta() | {"objectives": [["val/mIoU", "max"], ["robust/mIoU", "min"]]}
    found = pareto.search_fronts(lines(), lines(), how)
    assert [s.trials[0]["tau"] for s in found if s.on_front and s.arm != "off"] == [0.2]


def test_the_page_and_a_table_beside_it_have_the_front(page):
    with open(page.parent / "pareto.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["arm"], r["on_front"]) for r in rows] == [
        *[("aml/calibrated", on) for on in "1110"],
        ("off", "1"),
    ]
    chosen = rows[1]
    assert chosen["search_trials"] == chosen["confirmed_seeds"] == "2"
    assert float(chosen["robust/mIoU"]) == pytest.approx(0.31)
    assert float(chosen["confirmed val/mIoU"]) == pytest.approx(0.46)
    # t(1, 0.975) = 12.706 and a standard error of 0.02
    low = float(chosen["confirmed robust/mIoU low"])
    assert low == pytest.approx(0.30 - 12.706 * 0.02, abs=1e-4)
    html = page.read_text("utf-8")
    assert "Pareto front of val/mIoU and robust/mIoU: aml/calibrated 3 of 4 settings" in html
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)
    drawn = json.loads(found[1])["searched"]
    assert [m["label"] for m in drawn["metrics"]] == ["val/mIoU (%)", "robust/mIoU (%)"]
    point = drawn["settings"][1]
    assert point["values"] == pytest.approx([47, 31]) and point["front"] and point["seeds"] == 2
    assert [c[0] for c in point["confirmed"]] == pytest.approx([46, 30])
    assert point["text"] == "tau 0.4, rho 1"


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_a_browser_draws_the_front(page, tmp_path):
    dom = dump_of(page, tmp_path)
    assert re.search(r'data-plot="searched">.*?main-svg', dom, re.S)
    assert "robust/mIoU (%)" in dom
