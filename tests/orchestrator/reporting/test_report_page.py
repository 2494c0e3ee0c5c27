"""Test what the page of a report shows."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from aml.errors import UserError
from orchestrator.reporting import report, run_folder
from orchestrator.reporting.figures import style
from tests.orchestrator.reporting.test_report import (
    EPOCHS,
    SWEEP,
    epoch,
    folder_of,
    ledger,
    read,
    trial,
)


def test_names_on_an_axis_do_not_touch():
    assert style.spaced_ticks([0.3, 0.3485, 0.83], (0.28, 1.07)) == [0.3, 0.83]
    assert (
        style.spaced_ticks([0.3, 0.5, 0.7, 0.9], (0.2, 1.0)) == [0.3, 0.5, 0.7, 0.9]
        and style.spaced_ticks([], (0, 1)) == []
    )


def test_the_page_names_failures_escaped_and_counts_the_stopped(finished):
    html = finished[1]
    assert (
        "loss is &lt;nan&gt; &amp; &#34;infinite&#34; at step 7: lower optim.lr" in html
        and "<nan>" not in html
    )
    assert "1 of 23 trials failed." in html and "Stopped before the last epoch: 1 by asha." in html


def test_the_page_loads_nothing(finished):
    scripts = re.findall(r"<script.*?</script>", finished[1], re.S)
    html = re.sub(r"<script.*?</script>", "", finished[1], flags=re.S)
    targets = re.findall(r"(?:src|href|action|data)=[\"']([^\"']*)", html) + re.findall(
        r"url\(([^)]*)\)", html
    )
    outside = [t for t in targets if not re.match(r"#|data:|[a-z]+\.(csv|md|tex)$", t)]
    assert len(targets) > 20 and outside == []
    assert "default-src 'none'" in html and "@import" not in html
    assert len(scripts) == 3 and all(" src=" not in script[:60] for script in scripts)
    for target in set(re.findall(r"(?:href=\"|url\()#([^\")]+)", html)):
        assert f'id="{target}"' in html, target


def test_the_page_shows_the_last_picture_and_says_which_arm_has_none(finished):
    html = finished[1]
    figures = re.findall(r"<figure class=.picture.*?</figure>", html, re.S)
    assert len(figures) == 2
    assert all(
        figure.count("data:image/webp;base64,") == 1 and "epoch <span>4</span>" in figure
        for figure in figures
    )
    assert (
        "aml-calibrated-c1, confirmation, seed 1" in html
        and "No picture was found for random." in html
    )


def test_the_page_shows_baselines_provenance_and_every_section(finished):
    html = finished[1]
    assert re.findall(r'<section id="(\w+)"', html) == [
        "baselines",
        "arms",
        "map",
        "line",
        "importance",
        "curves",
        "diagnostics",
        "pictures",
        "failures",
        "parallel",
        "trials",
        "provenance",
    ]
    assert "does not score above this baseline: Largest object, no model." in html
    assert "abc123" in html and "f00d" in html and "python -m orchestrator ui" in html
    assert "hush" not in html and "s3://***@bucket/toy" in html


def test_an_unfinished_sweep_says_so(tmp_path):
    sweep = {"run": "toy-00000000", "state": "running", "epochs": EPOCHS}
    lines = [t for t in ledger() if t["stage"] == "search"]
    page = report.write_report(
        folder_of(tmp_path, sweep, lines, tail='{"trial": "aml-'), tmp_path / "out"
    )
    html = page.read_text(encoding="utf-8")
    assert page == tmp_path / "out" / "index.html"
    assert (
        "This sweep is not finished (state: running)." in html
        and "Left out, and so in no number here, 1 damaged line of ledger.jsonl: line " in html
    )
    assert (
        "No arm has a finished confirmation trial" in html
        and "The baselines have not been measured" in html
    )
    assert html.count("not confirmed") == 3


def test_a_sweep_without_any_trial_still_has_a_page(tmp_path):
    html = report.write_report(folder_of(tmp_path, {"state": "interrupted"}, [])).read_text(
        encoding="utf-8"
    )
    assert "No trial has finished yet." in html and "no line can be drawn" in html


def test_a_training_run_has_curves_diagnostics_and_pictures_only(tmp_path):
    (tmp_path / "pictures").mkdir()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "pictures" / "epoch-0002.png")
    history = [epoch(1, 0.3, 0.2), epoch(2, 0.4, 0.2)]
    (tmp_path / "train.json").write_text(
        json.dumps({"run": "one-1", "state": "done", "history": history})
    )
    page = report.write_report(tmp_path)
    html = page.read_text(encoding="utf-8")
    assert "after the last epoch: 40.00%" in html and html.count("data:image/webp;base64,") == 1
    assert re.findall(r'<section id="(\w+)"', html) == [
        "curves",
        "diagnostics",
        "pictures",
        "provenance",
    ]
    assert sorted(p.name for p in page.parent.glob("*.csv")) == ["curves.csv", "diagnostics.csv"]
    assert [float(r["val/mIoU"]) for r in read(page.parent / "curves.csv")] == [0.3, 0.4]


def test_a_trial_written_twice_counts_once_by_its_later_line(tmp_path):
    lines = [
        trial("off-0", "off", 0, 0, 0.5, state="failed", error="gone"),
        trial("off-0", "off", 0, 0, 0.6),
    ]
    _, trials, notes = run_folder.load_run(folder_of(tmp_path, SWEEP, lines))
    assert [t["state"] for t in trials] == ["done"] and notes == []


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="neither sweep.json nor train.json"):
        report.write_report(tmp_path)
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(UserError, match="sweep.json is damaged"):
        report.write_report(tmp_path)


def test_the_wrong_sentence_stands_beside_the_champion_on_the_same_sentences(tmp_path):
    wrong = {"mIoU": 0.5, "n": 7, "champion_mIoU": 0.4321, "champion_oIoU": 0.5}
    sweep = {**SWEEP, "baselines": {**SWEEP["baselines"], "wrong_sentence": wrong}}
    html = report.write_report(folder_of(tmp_path, sweep, ledger())).read_text(encoding="utf-8")
    assert (
        html.count("the champion on the same") == 1
        and "the champion on the same 7 sentences: 43.21<" in html
    )
    assert "does not score above this baseline: Champion, another referent" in html, (
        "0.5 is under 0.56 but over 0.4321"
    )


@pytest.mark.parametrize("wrong", [{"mIoU": 0.3}, {"mIoU": 0.0, "n": 0, "champion_mIoU": 0.0}])
def test_a_wrong_sentence_without_a_champion_on_the_same_sentences_stands_alone(wrong):
    bar = next(
        b
        for b in report.baselines(
            {"baselines": {"champion": {"mIoU": 0.56}, "wrong_sentence": wrong}}
        )
        if b["key"] == "wrong_sentence"
    )
    assert bar["same"] == "" and bar["same_mIoU"] == 0.56


@pytest.mark.parametrize(
    ("score", "silent"), [(0.0, True), (0.0009, True), (0.001, False), (0.05, False)]
)
def test_an_untrained_model_that_predicts_nothing_is_called_so(score, silent):
    bars = report.baselines(
        {"baselines": {"champion": {"mIoU": 0.0}, "untrained": {"mIoU": score}}}
    )
    assert [b["text"] for b in bars] == [
        "Champion",
        "Untrained model" + " (predicts nothing)" * silent,
    ]
