"""Test the report's page: what its script is given to draw, escaping, pictures, and a browser."""

import base64
import gzip
import hashlib
import json
import re
import shutil
import subprocess
from importlib.resources import files

import numpy as np
import pytest
from PIL import Image

from orchestrator.reporting import report
from orchestrator.reporting.page import charts, fronts, pictures, render
from tests.orchestrator.reporting.test_report import folder_of, ledger, trial, uneven
from tests.orchestrator.reporting.test_robust_arms import measured

EVIL = "</script><script>document.title = 'taken'</script><!-- & <b>"

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Return the page of a sweep with hostile texts, in a store that has a web address."""
    lines = ledger()
    for line in lines:
        line["params"]["optim.lr"] = 0.001 if line["seed"] < 2 else 0.1
        line["params"]["note"] = EVIL
    meta = measured() | {
        "run": EVIL,
        "mlflow": {"uri": "https://tracking.example/", "experiment_id": "7", "run_id": "r1"},
    }
    folder = folder_of(tmp_path_factory.mktemp("page"), meta, lines)
    (folder / "config.yaml").write_text("data: {val_split: val, val_limit: 4}\n")
    return report.write_report(folder)


@pytest.fixture(scope="module")
def data(page):
    found = re.search(
        r'<script type="application/json" id="data">(.*?)</script>', page.read_text("utf-8"), re.S
    )
    return json.loads(found[1])


def test_the_page_is_small_and_runs_two_scripts_alone(page):
    html = page.read_text("utf-8")
    assert len(html) < 4_000_000
    policy = re.search(r"script-src ([^\"]*)\"", html)[1].split()
    packed = re.search(r'id="plotly">(.*?)</script>', html, re.S)[1]
    own = re.search(r"<script>(.*?)</script>", html, re.S)[1]
    library = gzip.decompress(base64.b64decode(packed))
    assert library == files("plotly").joinpath("package_data", "plotly.min.js").read_bytes()
    for script, entry in zip((own.encode(), library), policy, strict=True):
        hashed = base64.b64encode(hashlib.sha256(script).digest()).decode()
        assert entry == f"'sha256-{hashed}'"


def test_names_of_strangers_end_no_tag(page, data):
    html = page.read_text("utf-8")
    assert "document.title = 'taken'</script>" not in html and "<!-- &" not in html
    assert html.count("<script") == html.count("</script>") == 3
    assert data["trials"][0]["settings"]["note"] == EVIL
    assert render.script_json({"a": "</script>"}) == '{"a":"\\u003c/script\\u003e"}'


def test_the_curves_hold_every_epoch_in_per_cent_with_settings_and_a_link(data):
    first = next(t for t in data["trials"] if t["trial"] == "aml-4")
    assert first["epochs"] == [1, 2, 3, 4]
    assert first["values"]["val/mIoU"] == pytest.approx([49, 50, 51, 52])
    assert first["values"]["aml/hidden"] == pytest.approx([25] * 4)
    assert first["settings"] == {"τ": 0.5, "ρ": 0.5, "optim.lr": 0.001, "note": EVIL}
    address, _, query = first["link"].partition("?searchFilter=")
    assert address == "https://tracking.example/#/experiments/7/runs"
    assert query.startswith("tags.trial_id%20%3D%20%27aml-4%27%20AND%20tags.sweep")
    assert [v["name"] for v in data["varied"]] == ["τ", "ρ", "optim.lr"]
    assert [v["kind"] for v in data["varied"]] == ["number", "number", "log"]


@pytest.mark.parametrize(
    ("uri", "linked"),
    [("http://host:5000", True), ("sqlite:///x.db", False), ("https://***@host", False)],
)
def test_only_a_store_with_a_web_address_is_linked(uri, linked):
    store = {"uri": uri, "experiment_id": "1", "run_id": "r"}
    assert bool(charts.mlflow_link({"kind": "sweep", "mlflow": store}, "t")) == linked
    single = charts.mlflow_link({"kind": "train", "mlflow": store}, "t")
    assert single == ("http://host:5000/#/experiments/1/runs/r" if linked else "")


def test_settings_that_some_trials_lack_are_choices_in_order():
    lines = [trial(f"t{i}", "aml/x", 0.5, 0.5, 0.5) for i in range(3)]
    lines[0]["params"]["aml.block"] = 16
    lines[1]["params"]["aml.block"] = 8
    assert charts.chart_data(lines, {}, [], [])["varied"] == [
        {"name": "aml.block", "kind": "choice", "values": ["–", "8", "16"]}
    ]


def test_long_trials_are_thinned_and_keep_their_last_epoch(monkeypatch):
    monkeypatch.setattr(charts, "MOST_NUMBERS", 30)
    found = charts.chart_data([trial("t", "off", 0, 0, 0.5, epochs=9)], {}, [], [])
    # 6 metrics of 9 epochs are 54 numbers, of every second epoch 30
    assert found["step"] == 2 and found["trials"][0]["epochs"] == [2, 4, 6, 8, 9]


def test_the_map_has_every_metric_at_its_best_and_at_the_common_epoch():
    found = charts.chart_data(uneven(), {}, [], [])
    cells = {(c["arm"], c["tau"]): c for c in found["cells"]}
    off, early = cells["off", 0], cells["aml/x", 0.4]
    assert (off["epoch"], off["best"]["val/mIoU"]) == (1, pytest.approx(40))
    # at epoch 1: the mean of 0.38 and 0.10; P@0.7 is half of mIoU there
    assert off["common"]["val/mIoU"] == pytest.approx(24)
    assert off["common"]["val/P0.7"] == pytest.approx(12)
    # the loss is 1 / epoch, and read at the last epoch of the trial that got furthest
    assert off["best"]["train/loss"] == pytest.approx(1 / 3, abs=1e-5)
    assert early["early"] and not off["early"] and cells["random", 1]["failed"] == 1


def test_the_front_is_what_no_other_point_dominates():
    points = {"a": (1, 5), "b": (2, 7), "c": (2, 6), "d": (3, 7), "e": (4, 9), "twin": (1, 5)}
    assert fronts.pareto_front(points, less_is_better=True) == ["a", "twin", "b", "e"]
    assert fronts.pareto_front(points, less_is_better=False) == ["e"]
    trade = {"a": (1, 9), "b": (5, 5), "c": (4, 4)}
    assert fronts.pareto_front(trade, less_is_better=False) == ["a", "b"]


def test_fronts_join_cost_and_score_and_clean_and_corrupted(data):
    views = {(v["x"], v["y"]): v for v in data["fronts"]}
    cost = views[fronts.FLOPS, fronts.VALIDATION]
    # 4 epochs; random has no cost there
    assert {p["arm"]: p["x"][0] for p in cost["points"]} == {"off": 4, "aml/calibrated": 5}
    assert cost["front"] == ["off", "aml/calibrated"]
    both = views[fronts.CLEAN_LABEL, fronts.ROBUST]
    assert both["front"] == ["aml/calibrated"] and not both["less"]
    off = next(p for p in both["points"] if p["arm"] == "off")
    assert (off["x"][0], off["y"][0]) == (pytest.approx(51), pytest.approx(21.5))
    assert (fronts.MINUTES, fronts.VALIDATION) not in views  # no epoch here has a time


def test_robust_scores_and_differences_are_in_per_cent(data):
    fog = next(r for r in data["robust"] if (r["arm"], r["corruption"]) == ("random", "fog"))
    assert fog["score"][0] == pytest.approx(82 / 3, abs=1e-4)
    assert fog["off"][0] == pytest.approx(19 / 3, abs=1e-4) and "random" not in fog


def test_partly_scored_sentences_are_called_so(page):
    html = page.read_text("utf-8")
    assert "Validation scores are of the first 4 of 9 sentences." in html


def test_pictures_page_through_epochs_of_the_same_trial_of_each_arm(data):
    assert {arm: p["epochs"] for arm, p in data["pictures"].items()} == {
        "off": ["2", "4"],
        "aml/calibrated": ["2", "4"],
    }
    # the last one stands in the page itself
    assert [len(p["urls"]) for p in data["pictures"].values()] == [1, 1]


def test_pictures_leave_epochs_out_before_they_make_the_page_large(tmp_path, monkeypatch):
    folder = tmp_path / "pictures"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    for i in range(1, 10):
        Image.fromarray(noise).save(folder / f"epoch-{i:04d}.png")
    (folder / "epoch-0005.png").write_bytes(b"damaged")
    one = {"trial": "t", "arm": "training", "stage": "train", "state": "done", "seed": 0}
    (found,), missing = pictures.arm_pictures(tmp_path, [one])
    assert found.epochs == ["1", "2", "3", "4", "6", "7", "8", "9"] and missing == []
    size = len(base64.b64decode(found.urls[0].partition(",")[2]))
    monkeypatch.setattr(pictures, "MOST_BYTES", 3 * size)
    (few,), _ = pictures.arm_pictures(tmp_path, [one])
    assert few.epochs == ["1", "9"]  # the fifth, between them, is damaged
    (folder / "epoch-0009.png").write_bytes(b"damaged")
    assert pictures.arm_pictures(tmp_path, [one]) == ([], ["training"])


def dump_of(page, folder):
    """Return the page as a browser has it when its script is done, without its scripts."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    options = ["--virtual-time-budget=30000", f"--user-data-dir={folder}", f"file://{page}"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=240)
    dom = re.sub(r"<script.*?</script>", "", done.stdout, flags=re.S)
    assert 'data-drawn="yes"' in dom, done.stderr[-2000:]
    return dom


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_a_browser_draws_every_figure_and_runs_nothing_of_strangers(page, tmp_path):
    dom = dump_of(page, tmp_path)
    drawn = re.findall(r'<div class="plots[^"]*" data-plot="(\w+)">.*?main-svg', dom, re.S)
    assert drawn == ["fronts", "map", "robust", "curves", "diagnostics", "parallel"]
    assert "<title>taken" not in dom and 'aria-pressed="true"' in dom
