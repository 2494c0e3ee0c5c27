"""Test the tables and sentences of a report against a ledger written here."""

import csv
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from orchestrator.reporting import report, rows as rows_module, significance, wording
from orchestrator.reporting.figures import lines as lines_module, maps
from orchestrator.reporting.page import summary
from orchestrator.reporting.summaries import ArmDifference

EPOCHS = 4
ERROR = 'loss is <nan> & "infinite" at step 7: lower optim.lr'


def epoch(k, miou, hidden=None, **more):
    scores = {
        "val/mIoU": miou,
        "val/oIoU": miou + 0.05,
        "val/P0.5": miou,
        "val/P0.7": miou / 2,
        "val/P0.9": 0.1,
    }
    masks = (
        {}
        if hidden is None
        else {
            "aml/hidden": hidden,
            "aml/lift": 0.9,
            "aml/auroc": 0.6,
            "aml/probe_mask_auroc": 0.55,
            "aml/leak": None,
        }
    )
    return {"epoch": k, "train/loss": 1 / k, **scores, **masks, **more}


def trial(
    name,
    arm,
    tau,
    rho,
    last,
    stage="search",
    seed=0,
    state="done",
    by="",
    error="",
    epochs=EPOCHS,
    hidden=None,
):
    """Return a ledger line whose val/mIoU climbs by 0.01 an epoch to `last`."""
    share = tau * rho if hidden is None and arm != "off" else hidden
    history = [epoch(k, last - 0.01 * (epochs - k), share) for k in range(1, epochs + 1)]
    return {
        "trial": name,
        "arm": arm,
        "stage": stage,
        "seed": seed,
        "tau": tau,
        "rho": rho,
        "state": state,
        "stopped_by": by,
        "params": {"aml.tau": tau, "aml.rho": rho},
        "error": error,
        "seconds": 10.0,
        "epochs": epochs,
        "history": history,
    }


def ledger():
    """Return the trials of three arms.

    On confirmation seeds 1, 2, 3 off scores .50 .52 .51; random .53 .55 .53; aml .54 .56 .55,
    which is .04 over off.
    """
    lines = [
        trial("off-0", "off", 0, 0, 0.50),
        trial("random-0", "random", 1, 0.25, 0.53),
        trial("random-1", "random", 1, 0.5, 0.52),
        trial("random-2", "random", 1, 0.1, 0.51),
        trial("random-3", "random", 1, 0.75, 0.49),
    ]
    grid = [(tau, rho) for tau in (0.25, 0.5, 1.0) for rho in (0.25, 0.5, 1.0)]
    for i, (tau, rho) in enumerate(grid):
        extra = {}
        if (tau, rho) == (1.0, 1.0):
            extra = {"state": "failed", "by": "non-finite", "error": ERROR, "epochs": 1}
        elif (tau, rho) == (0.25, 1.0):
            extra = {"state": "stopped", "by": "asha", "epochs": 2}
        lines.append(trial(f"aml-{i}", "aml/calibrated", tau, rho, 0.50 + 0.005 * i, **extra))
    scores = {
        "off": (0.50, 0.52, 0.51),
        "random": (0.53, 0.55, 0.53),
        "aml/calibrated": (0.54, 0.56, 0.55),
    }
    settings = {"off": (0, 0), "random": (1, 0.25), "aml/calibrated": (0.5, 0.5)}
    for arm, values in scores.items():
        lines += [
            trial(f"{arm.replace('/', '-')}-c{seed}", arm, *settings[arm], value, "confirm", seed)
            for seed, value in enumerate(values, 1)
        ]
    return lines


SWEEP = {
    "run": "toy-00000000",
    "name": "toy",
    "kind": "sweep",
    "state": "done",
    "started": 1.0e9,
    "ended": 1.0e9 + 60,
    "epochs": EPOCHS,
    "command": "python -m orchestrator sweep toy.yaml",
    "git_sha": "abc123",
    "versions": {"torch": "2"},
    "data": {
        "uri": "s3://user:hush@bucket/toy",
        "fingerprint": "f00d",
        "splits": {"val": {"refs": 3, "sentences": 9}},
    },
    "mlflow": {"uri": "sqlite:///mlflow.db", "run_id": "r1"},
    "settings_tried": {"off": 1, "random": 4, "aml/calibrated": 9},
    "champion": {"arm": "aml/calibrated"},
    "cost": {"off": {"ratio": 1.0}, "aml/calibrated": {"ratio": 1.25}},
    "baselines": {
        "champion": {"mIoU": 0.56},
        "untrained": {"mIoU": 0.05},
        "random_object": {"mIoU": 0.2},
        "largest_object": {"mIoU": 0.57},
        "wrong_sentence": {"mIoU": 0.3},
        "n": 9,
    },
}


def folder_of(root, sweep, lines, tail=""):
    folder = root / "toy-00000000"
    folder.mkdir()
    (folder / "sweep.json").write_text(json.dumps(sweep))
    (folder / "config.yaml").write_text("search: {equal: epochs}\n")
    (folder / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)
    for line in lines:
        if line["stage"] == "confirm" and line["arm"] != "random":
            place = folder / "trials" / line["trial"] / "pictures"
            place.mkdir(parents=True)
            for name, value in (("epoch-0002.png", 0), ("epoch-0004.png", 255)):
                Image.fromarray(np.full((4, 6, 3), value, np.uint8)).save(place / name)
    return folder


def read(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# ---- tables ----


def test_arms_csv_holds_confirmation_only(finished):
    rows = {r["arm"]: r for r in read(finished[0].parent / "arms.csv")}
    aml = rows["aml/calibrated"]
    assert list(rows) == ["off", "random", "aml/calibrated"]
    assert (
        float(aml["mIoU"]) == pytest.approx(0.55)
        and int(aml["seeds"]) == 3
        and int(aml["settings_tried"]) == 9
    )
    assert float(aml["mIoU_high"]) == pytest.approx(0.55 + 4.302653 * 0.01 / math.sqrt(3), abs=1e-6)
    assert float(aml["vs_off_mean"]) == pytest.approx(0.04) and float(
        aml["vs_random_mean"]
    ) == pytest.approx(0.04 / 3)
    detectable = significance.smallest_detectable_difference(
        0.01 / math.sqrt(3), 3
    )  # differences .01, .01, .02
    assert float(aml["vs_random_detectable"]) == pytest.approx(detectable)
    assert float(aml["hidden"]) == 0.25 and float(rows["off"]["hidden"]) == 0
    assert float(aml["P@0.7"]) == pytest.approx(0.275)
    assert rows["random"]["cost_ratio"] == "" and rows["off"]["vs_off_mean"] == ""


def test_map_csv_counts_stopped_and_failed_and_gives_a_common_epoch(finished):
    rows = {
        (r["arm"], float(r["tau"]), float(r["rho"])): r
        for r in read(finished[0].parent / "map.csv")
    }
    stopped, failed, best = (
        rows["aml/calibrated", *at] for at in ((0.25, 1.0), (1.0, 1.0), (0.5, 0.5))
    )
    assert stopped["stopped"] == stopped["early"] == "1" and stopped["epochs_max"] == "2"
    assert float(stopped["mIoU_best"]) == pytest.approx(0.51)
    assert failed["failed"] == "1" and failed["mIoU_best"] == ""
    assert best["common_epoch"] == "2" and float(best["mIoU_common"]) == pytest.approx(0.52 - 0.02)
    assert len(rows) == 1 + 4 + 9


def test_line_csv_joins_equal_products_and_ends_at_random(finished):
    rows = read(finished[0].parent / "line.csv")
    lines = {float(r["line"]) for r in rows}
    quarter = [
        (r["arm"], float(r["tau"]), float(r["rho"])) for r in rows if float(r["line"]) == 0.25
    ]
    assert lines == {0.125, 0.25, 0.5}
    assert quarter == [
        ("aml/calibrated", 0.25, 1.0),
        ("aml/calibrated", 0.5, 0.5),
        ("aml/calibrated", 1.0, 0.25),
        ("random", 1.0, 0.25),
    ]


def test_products_a_rounding_error_apart_are_one_line():
    settings = [(0.3, 0.4), (0.15, 0.8 + 1e-9), (0.3, 0.41)]
    lines = [trial(f"t{i}", "aml/x", tau, rho, 0.5) for i, (tau, rho) in enumerate(settings)]
    assert [(p.tau, p.line) for p in rows_module.line_points(lines, EPOCHS)] == [
        (0.15, 0.12),
        (0.3, 0.12),
    ]


def test_every_trial_and_every_epoch_is_in_the_csv_files(finished):
    folder, lines = finished[0].parent, ledger()
    trials, curves, masks = (read(folder / f"{n}.csv") for n in ("trials", "curves", "diagnostics"))
    assert [t["trial"] for t in trials] == [t["trial"] for t in lines]
    assert [t["error"] for t in trials if t["state"] == "failed"] == [ERROR]
    assert len(curves) == len(masks) == sum(t["epochs"] for t in lines)
    assert (
        float(curves[3]["val/mIoU"]) == 0.5
        and masks[0]["aml/hidden"] == ""
        and masks[-1]["aml/leak"] == ""
    )


# ---- sentences ----


def test_the_summary_says_how_much_and_how_sure(finished):
    html = finished[1]
    assert (
        "In confirmation aml/calibrated (τ 0.50, ρ 0.50) "
        "has the highest mean validation mIoU, 55.00%" in html
    )
    assert (
        "aml/calibrated is 4.00 points above off" in html and "corrected for 2 comparisons" in html
    )
    assert "not distinguishable from random with 3 seeds" in html
    assert "Both hide the same share of the image (25.00% and 25.00%, measured)." in html
    assert (
        "compared at equal epochs (4), not at equal compute" in html
        and "aml/calibrated 1.25" in html
    )


def test_the_page_opens_with_the_verdict_and_folds_what_stands_behind_it(finished):
    opening = finished[1].partition('<div class="summary">')[2].partition("</div>")[0]
    shown, folded, _ = re.split(r"<details>|</details>", opening)
    first, aligned, *_ = re.findall(r"<p>(.*?)</p>", shown)
    assert first == (
        "<b>Clean:</b> aml/calibrated (+4.00 points) and random (+2.67) are better than off."
    )
    assert aligned.startswith("<b>Alignment against random:</b> clean, aml/calibrated cannot be")
    assert "has the highest mean" in folded and folded.count("<li>") >= 5


def against_off(name, mean, half, certain):
    interval = significance.Interval(n=5, mean=mean, low=mean - half, high=mean + half, sd=half)
    return replace(
        arm_summary(0.5, 0.5, 0.25),
        arm=name,
        vs_off=ArmDifference(interval, excludes_zero_corrected=certain, detectable=half),
    )


@pytest.mark.parametrize(
    ("arms", "said"),
    [
        ([("a", 0.01, 0.02, False)], "a cannot be told from off (+1.00 points, 95% interval −1.00"),
        (
            [("a", 0.01, 0.02, False), ("b", -0.015, 0.02, False)],
            "no arm can be told from off (largest difference: b, −1.50 points, 95%",
        ),
        (
            [("a", 0.01, 0.005, False), ("b", 0.0, 0.02, False)],
            "no arm can be told from off after correction; only before correction: a (+1.00 ",
        ),
        (
            [("a", -0.02, 0.01, True), ("b", 0.01, 0.005, False), ("c", -0.03, 0.01, True)],
            "no arm is better than off; c (−3.00 points) and a (−2.00) are worse; only before "
            "correction: b (+1.00 points)",
        ),
    ],
)
def test_a_verdict_calls_better_only_what_stands_after_correction(arms, said):
    ((what, found),) = summary.verdict([against_off(*arm) for arm in arms], [])
    assert what == "clean" and found.startswith(said)


def rows_of(lines, **meta):
    return summary.sentences(rows_module.arm_summaries(lines, meta), {"config": {}, **meta})


def test_one_seed_is_never_called_a_difference():
    text = " ".join(rows_of([t for t in ledger() if t["stage"] == "search" or t["seed"] == 1]))
    assert "one seed, no interval" in text and "not distinguishable from off, as one seed" in text
    assert "by more than" not in text


def test_when_off_leads_the_summary_says_that_no_masking_arm_does():
    lines = [
        {**t, "arm": {"off": "aml/calibrated", "aml/calibrated": "off"}.get(t["arm"], t["arm"])}
        for t in ledger()
    ]
    text = " ".join(rows_of(lines))
    assert (
        "No arm that masks has a higher mean than off." in text
        and "aml/calibrated is 4.00 points below off" in text
    )


def arm_summary(tau, rho, hidden):
    first, *_ = rows_module.arm_summaries(ledger(), {})
    return replace(first, tau=tau, rho=rho, hidden=hidden)


def test_a_random_arm_at_another_rate_is_not_called_matched():
    arm = arm_summary(0.5, 0.5, math.nan)
    other = arm_summary(1.0, 0.1, 0.1)
    same = arm_summary(1.0, 0.25, 0.25)
    assert "not a matched comparison" in wording.hidden_shares(arm, other)
    assert "nominal" in wording.hidden_shares(arm, same)
    assert "not a matched comparison" in wording.hidden_shares(replace(arm, hidden=0.97), same)


def test_a_difference_that_survives_alone_but_not_the_correction_is_called_weak():
    difference = ArmDifference(
        significance.Interval(n=5, mean=0.01, low=0.001, high=0.019, sd=0.007),
        excludes_zero_corrected=False,
        detectable=0.01,
    )
    assert "weak evidence" in wording.versus("a", "off", difference, 4)
    assert "weak" not in wording.versus("a", "off", difference, 1)


def test_a_line_is_read_at_the_last_epoch_all_its_points_reached(finished):
    rows = [r for r in read(finished[0].parent / "line.csv") if float(r["line"]) == 0.25]
    # (0.25, 1) was stopped after epoch 2 at 0.51;
    # the others climb by 0.01 an epoch to 0.52, 0.53, 0.53 at epoch 4
    assert [float(r["mIoU"]) for r in rows] == pytest.approx([0.51, 0.50, 0.51, 0.51])
    assert {(r["epoch"], r["of_epochs"], round(float(r["off"]), 9)) for r in rows} == {
        ("2", "4", 0.48)
    }
    html = finished[1]
    assert (
        "r = 0.25, at epoch 2 of 4: 51.00 at τ 0.25 against 51.00 at τ 1 (random), "
        "+0.00 points (1 seed each)." in html
    )
    assert (
        "r = 0.5, at the last epoch: 52.50 at τ 0.5 against 52.00 at τ 1 (random), "
        "+0.50 points (1 seed each)." in html
    )


def test_lines_read_at_different_epochs_have_a_figure_each_and_only_the_early_one_warns(finished):
    figures = lines_module.line_figures(rows_module.line_points(ledger(), EPOCHS))
    assert [("at the last epoch" in f["svg"], "at epoch 2 of 4" in f["svg"]) for f in figures] == [
        (True, False),
        (False, True),
    ]
    assert [lines_module.EARLY in f["text"] for f in figures] == [False, True]
    assert "search.scheduler none compares full runs" in finished[1]


def uneven():
    """Return trials of different lengths.

    The points of the line r = 0.2 have 1, 3 and 3 of 3 epochs. Of random's trials a second one
    reached epoch 2 and a third failed there; off has trials of 3 and 1 epochs.
    """
    early = {"state": "stopped", "by": "asha"}
    return [
        trial("off-0", "off", 0, 0, 0.40, epochs=3),
        trial("off-1", "off", 0, 0, 0.10, seed=1, epochs=1, **early),
        trial("aml-0", "aml/x", 0.2, 1.0, 0.44, epochs=3),
        trial("aml-1", "aml/x", 0.4, 0.5, 0.30, epochs=1, **early),
        trial("random-0", "random", 1, 0.2, 0.42, epochs=3),
        trial("random-1", "random", 1, 0.2, 0.35, seed=1, epochs=2, **early),
        trial("random-2", "random", 1, 0.2, 0.99, seed=2, epochs=2, state="failed"),
    ]


def test_a_point_of_several_trials_is_the_mean_of_those_that_reached_the_epoch():
    points = rows_module.line_points(uneven(), 3)
    assert [p.epoch for p in points] == [1, 1, 1]
    # at epoch 1: 0.44 - 0.02, 0.30, the mean of 0.40 and 0.34; off the mean of 0.38 and 0.10
    assert [p.mIoU for p in points] == pytest.approx([0.42, 0.30, 0.37])
    assert [p.trials for p in points] == [1, 1, 2]
    assert points[2].mIoU_sd == pytest.approx(0.06 / math.sqrt(2))
    assert points[0].off == pytest.approx(0.24)
    assert "(1 seed or more)" in wording.line_text(0.2, points)
    longer = rows_module.line_points([t for t in uneven() if t["trial"] != "aml-1"], 3)
    assert [(p.epoch, p.trials) for p in longer] == [(3, 1), (3, 1)]
    assert [p.mIoU for p in longer] == pytest.approx([0.44, 0.42])
    assert longer[0].off == pytest.approx(0.40)


def test_a_cell_of_the_map_reads_only_its_trials_that_got_furthest():
    cells = {(c.arm, c.tau): c for c in rows_module.map_cells(uneven())}
    off = cells["off", 0]
    early = cells["aml/x", 0.4]
    random = cells["random", 1]
    assert (off.mIoU_best, off.epochs_max, off.early) == (0.40, 3, 0)
    assert (off.trials, off.furthest, off.stopped) == (2, 1, 1)
    assert (early.mIoU_best, early.epochs_max, early.early) == (0.30, 1, 1)
    assert (random.mIoU_best, random.trials, random.furthest, random.failed) == (0.42, 2, 1, 1)
    both = trial("off-2", "off", 0, 0, 0.44, seed=2, epochs=3)
    cell = next(c for c in rows_module.map_cells([*uneven(), both]) if c.arm == "off")
    assert cell.mIoU_best == pytest.approx(0.42)


def test_the_boxes_of_the_map_say_their_epoch_where_it_differs():
    svg = maps.map_figures(rows_module.map_cells(uneven()), [])[0]["svg"]
    assert svg.count("ep 3") == 3 and svg.count("ep 1") == 1
    even = [t for t in uneven() if t["epochs"] == 3]
    assert "ep 3" not in maps.map_figures(rows_module.map_cells(even), [])[0]["svg"]


def test_lines_whose_measured_hidden_shares_differ_are_disowned():
    lines = [
        trial("a", "aml/paper", 0.4, 0.25, 0.5, hidden=0.97),
        trial("r", "random", 1, 0.1, 0.5),
    ]
    assert (
        "say nothing about alignment"
        in wording.line_notes(rows_module.line_points(lines, EPOCHS))[0]
    )


def test_other_parameters_that_vary_are_named_and_their_scattered_settings_drawn(tmp_path):
    lines = [trial(f"aml-{i}", "aml/x", 0.1 + 0.17 * i, 0.9 - 0.11 * i, 0.5) for i in range(5)]
    for i, line in enumerate(lines):
        line["params"]["optim.lr"] = 0.00123456789 * (i + 1)
    page = report.write_report(folder_of(tmp_path, {"state": "done"}, lines))
    text = page.read_text(encoding="utf-8")
    assert (
        "Other parameters vary too (optim.lr)" in text
        and "<td>0.001235</td>" in text
        and "0.0012345" not in text
    )
    assert [float(r["optim.lr"]) for r in read(page.parent / "trials.csv")] == [
        0.00123456789 * (i + 1) for i in range(5)
    ]
