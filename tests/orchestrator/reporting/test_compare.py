"""Test the commands compare and reproduce as a user sees them.

The run folders and evaluations are written here; numbers are computed by hand or by scipy; what
cannot be compared or reproduced is refused in one sentence.
"""

import json

import pytest
from scipy import stats

from orchestrator.config import Objective
from orchestrator.config.loader import from_text
from orchestrator.reporting import rows
from orchestrator.storage import run as run_module
from orchestrator.sweep import finish, summary

SCORES = {
    "off": (0.50, 0.52, 0.51),
    "random": (0.53, 0.55, 0.53),
    "aml/calibrated": (0.54, 0.56, 0.555),
}


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("AMLRIS_HOME", str(tmp_path))
    return tmp_path


def begun(root, name, kind, overrides=(), **state) -> run_module.Run:
    experiment = from_text(
        "{name: x, data: {train: data/x, size: 32}}", [f"name={name.split('-')[0]}", *overrides]
    )
    run = run_module.Run(root / name, kind)
    run.folder.mkdir()
    (run.folder / "config.yaml").write_text(experiment.to_yaml())
    given = {
        "run": name,
        "name": experiment.name,
        "state": "done",
        "data": {"fingerprint": "f00d"},
        "code_version": "c0de",
    } | state
    run.update(**given)
    return run


def sweep_of(
    root, name="toy-00000001", scores=SCORES, overrides=(), epochs=None, first_seed=1000, **state
) -> run_module.Run:
    flops = {"off": 100.0, "random": 100.0, "off@compute": 100.0, "aml/calibrated": 125.0}
    run = begun(
        root,
        name,
        "sweep",
        overrides,
        cost={arm: {"flops_per_item": flops[arm]} for arm in scores},
        **state,
    )
    for arm, values in scores.items():
        for k, value in enumerate(values):
            record = {
                "trial": f"{arm.replace('/', '-')}-{k}",
                "arm": arm,
                "stage": "confirm",
                "seed": first_seed + k,
                "state": "done",
                "epochs": (epochs or {}).get(arm, 4),
            }
            run.append(
                record
                | {
                    "history": [
                        {
                            "epoch": record["epochs"],
                            "val/mIoU": value,
                            "val/oIoU": value - 0.1,
                            "train/loss": 2 * value,
                        }
                    ]
                }
            )
    run.append(
        {
            "trial": "s",
            "arm": "off",
            "stage": "search",
            "seed": 0,
            "state": "done",
            "epochs": 4,
            "history": [{"epoch": 4, "val/mIoU": 0.9}],
        }
    )
    return run


# ---- seeds


def test_two_arms_are_compared_by_the_paired_test_over_their_seeds(root, result):
    sweep_of(root)
    found, text = result("compare", "toy:aml/calibrated", "toy:off")
    (row,) = found["comparisons"]
    # differences .04 .04 .045
    test = stats.ttest_rel(SCORES["aml/calibrated"], SCORES["off"])
    assert (row["test"], row["n"], row["verdict"]) == ("paired t", [3, 3], "better")
    assert row["difference"] == pytest.approx(0.125 / 3) and row["p"] == pytest.approx(
        test.pvalue
    ) == pytest.approx(row["p_holm"])
    assert (row["low"], row["high"]) == pytest.approx(tuple(test.confidence_interval()))
    assert (
        "toy-00000001:aml/calibrated is 4.17 points above toy-00000001:off in val/mIoU" in text
        and "3 paired seeds" in text
    )
    assert (
        "Compared at equal epochs, not at equal compute: "
        "the first took x1.250 the FLOPs of the second." in text
    )
    assert found["sides"][0]["mean"] == pytest.approx(1.655 / 3) and "0.9" not in json.dumps(
        found["sides"]
    ), "search trials are not compared"


def test_a_metric_that_is_no_score_has_its_own_unit_and_is_not_called_better(root, result):
    sweep_of(root)
    found, text = result("compare", "toy:aml/calibrated", "toy:off", "--metric", "train/loss")
    (row,) = found["comparisons"]
    assert row["verdict"] == "above"
    # twice the differences .04 .04 .045
    assert "aml/calibrated is 0.08333 above toy-00000001:off in train/loss" in row["words"]
    assert "points" not in row["words"] and "%" not in row["words"].replace("95%", "")
    assert "toy-00000001:off: train/loss 1.02 (95% t interval" in text


def test_a_sweep_alone_is_every_pair_of_its_arms_corrected(root, result):
    sweep_of(root)
    found, text = result("compare", "toy-00000001")
    rows = {(r["a"].partition(":")[2], r["b"].partition(":")[2]): r for r in found["comparisons"]}
    assert list(rows) == [
        ("off", "random"),
        ("off", "aml/calibrated"),
        ("random", "aml/calibrated"),
    ]
    p = sorted(r["p"] for r in rows.values())
    holm = [3 * p[0], max(3 * p[0], 2 * p[1]), max(3 * p[0], 2 * p[1], p[2])]
    assert sorted(r["p_holm"] for r in rows.values()) == pytest.approx(holm)
    assert (
        rows["off", "random"]["verdict"] == "worse"
        and "after Holm's correction for 3 tests" in text
    )
    weak = rows["random", "aml/calibrated"]
    assert (
        weak["p"] > 0.05
        and weak["verdict"] == "undecided"
        and "would show a true difference of" in weak["words"]
    )


def test_what_holds_alone_but_not_after_correction_is_weak(root, result):
    sweep_of(
        root,
        scores={
            "off": (0.50, 0.52, 0.51),
            "random": (0.53, 0.57, 0.55),
            "aml/calibrated": (0.50, 0.53, 0.50),
        },
    )
    rows = result("compare", "toy")[0]["comparisons"]
    weak = next(r for r in rows if r["p"] < 0.05 <= r["p_holm"])
    assert weak["verdict"] == "weak" and "weak evidence" in weak["words"]


def test_without_common_seeds_it_is_welch_and_equal_compute_is_recognised(root, result):
    scores = {"off@compute": SCORES["off"], "aml/calibrated": SCORES["aml/calibrated"]}
    sweep_of(root, scores=scores, epochs={"off@compute": 5})
    sweep_of(root, "later-00000002", scores={"off": (0.6, 0.61)}, first_seed=5000)
    assert (
        "Compared at 4 and 5 epochs and equal compute (FLOPs x1.000)."
        in result("compare", "toy:aml/calibrated", "toy:off@compute")[1]
    )
    (row,) = result("compare", "toy:aml/calibrated", "later:off")[0]["comparisons"]
    test = stats.ttest_ind(SCORES["aml/calibrated"], (0.6, 0.61), equal_var=False)
    assert (row["test"], row["n"]) == ("Welch t", [3, 2]) and row["p"] == pytest.approx(test.pvalue)


def test_the_epoch_that_counts_is_the_one_that_select_names(root, result, refused):
    """The best oIoU is in the first epoch, the best mIoU in the second, the last has neither."""
    epochs = [
        {"epoch": k, "val/mIoU": miou, "val/oIoU": oiou}
        for k, (miou, oiou) in enumerate([(0.40, 0.60), (0.50, 0.50), (0.45, 0.40)], 1)
    ]
    for k, (select, expected) in enumerate(
        [("null", 0.45), ("last", 0.45), ("best_mIoU", 0.50), ("best_oIoU", 0.40)]
    ):
        run = begun(root, f"s{k}-0000000{k}", "sweep", [f"evaluate.select={select}"])
        for arm, shift in (("off", 0.0), ("random", 0.01)):
            for seed in (1, 2):
                history = [e | {"val/mIoU": e["val/mIoU"] + shift} for e in epochs]
                run.append(
                    {"trial": f"{arm}-{seed}", "arm": arm, "stage": "confirm", "seed": seed}
                    | {"state": "done", "epochs": 3, "history": history}
                )
        sides = result("compare", f"s{k}")[0]["sides"]
        assert [side["mean"] for side in sides] == pytest.approx([expected, expected + 0.01])
        assert [side["epochs"] for side in sides] == [3, 3], "all three were paid for"
        records = run.ledger()
        (_, clean), *_ = summary.tables(run, records)
        assert clean[1][0] == "off" and clean[1][1].startswith(f"{100 * expected:.1f} (")
        (row, *_) = rows.arm_summaries(records, run.state | {"config": run.experiment().to_dict()})
        assert row.mIoU.mean == pytest.approx(expected) and row.epochs == 3
    refused("compare", "s1:off", "s3:off", said="(evaluate.select) is last and best_oIoU")
    assert (
        finish.find_champion(records, Objective("val/oIoU", "max"), "best_oIoU")["trial"] == "off-1"
    )


def test_two_sweeps_are_compared_arm_by_arm(root, result):
    sweep_of(root)
    better = {"off": (0.60, 0.62, 0.61), "aml/calibrated": (0.54, 0.56, 0.56)}
    sweep_of(
        root, "wide-00000002", scores=better, overrides=["optim.lr=0.02"], code_version="0ther"
    )
    found, text = result("compare", "wide", "toy")
    pairs = [(r["a"].partition(":")[2], r["b"].partition(":")[2]) for r in found["comparisons"]]
    assert pairs == [("off", "off"), ("aml/calibrated", "aml/calibrated")] and found["comparisons"][
        0
    ]["difference"] == pytest.approx(0.1)
    assert (
        "the experiments differ in optim.lr" in text
        and "different versions of the code (0ther, c0de)" in text
    )


def trained(root, name, seed, value, overrides=(), **state):
    history = [{"epoch": 1, "val/mIoU": 0.1}, {"epoch": 2, "val/mIoU": value}]
    return begun(
        root,
        name,
        "train",
        [f"seed={seed}", *overrides],
        history=history,
        seed=seed,
        arm="off",
        **state,
    )


def test_trainings_that_differ_in_their_seed_only_are_one_side(root, result):
    for seed, value in ((0, 0.5), (1, 0.53)):
        trained(root, f"a-0000000{seed}", seed, value)
        trained(root, f"b-0000000{seed}", seed, value + 0.1 + 0.01 * seed, ["optim.lr=0.02"])
    found, _ = result("compare", "b-00000000", "b-00000001", "a-00000000", "a-00000001")
    (row,) = found["comparisons"]
    assert (
        row["test"] == "paired t"
        and row["n"] == [2, 2]
        and row["difference"] == pytest.approx(0.105)
    )
    (single,) = result("compare", "a-00000000", "b-00000000")[0]["comparisons"]
    assert (
        single["test"] == "none"
        and single["p"] is None
        and "one seed says nothing of noise" in single["words"]
    )


def test_runs_that_were_not_measured_alike_are_refused(root, refused):
    sweep_of(root)
    sweep_of(
        root,
        "other-00000002",
        data={"dataset": "refcoco", "split_by": "unc", "fingerprint": "beef"},
    )
    sweep_of(root, "split-00000003", overrides=["data.val_split=testA"])
    sweep_of(root, "large-00000004", overrides=["data.size=64"])
    trained(root, "one-00000005", 0, 0.5)
    trained(root, "half-00000006", 0, 0.5, state="interrupted")
    refused("compare", "toy", "other", said="the data fingerprint is f00d and beef")
    refused("compare", "toy:off", "split:off", said="the validation split is val and testA")
    refused(
        "compare",
        "toy",
        "large",
        said="the protocol is square at 32 px, square and square at 64 px, square",
    )
    refused("compare", "toy:of", "toy:random", said="did you mean off?")
    refused("compare", "toy:off", said="1 side to compare")
    refused("compare", "one", "half", said="half-00000006 is not finished (state: interrupted)")
    refused(
        "compare", "toy", "--metric", "val/P0.1", said="choose --metric out of val/mIoU, val/oIoU"
    )
    refused("compare", "nowhere", "toy", said="no run under")


# ---- images


def evaluation(folder, shift=0, images=6, corrupt=(), **about):
    """Write an evaluation of two sentences an image.

    A sentence's union is 100 pixels, its intersection 40 + 5 image + shift (image % 3) - severity.
    """
    folder.mkdir()
    lines = []
    for image in range(images):
        for sent in range(2):
            for name, severity in (("clean", 0), *corrupt):
                row = {
                    "dataset": "refcoco",
                    "split_by": "unc",
                    "split": "val",
                    "image_id": image,
                    "ref_id": image,
                    "sent_id": 10 * image + sent,
                }
                row |= {
                    "intersection": 40 + 5 * image + shift * (image % 3) - severity,
                    "union": 100,
                    "pred_pixels": 90,
                    "gt_pixels": 80,
                }
                lines.append(
                    json.dumps(
                        row
                        | {
                            "no_target": False,
                            "protocol": "square",
                            "corruption": name,
                            "severity": severity,
                        }
                    )
                )
    (folder / "per_sentence.jsonl").write_text("\n".join(lines) + "\n")
    facts = {
        "protocol": "square",
        "image_size": 32,
        "fit": "square",
        "splits": ["val"],
        "data": {"dataset": "refcoco", "split_by": "unc", "fingerprint": "f00d"},
    }
    (folder / "about.json").write_text(
        json.dumps(facts | {"corruptions": [f"{n}:{s}" for n, s in corrupt]} | about)
    )
    scores = {"mIoU": 0.5, "oIoU": 0.5, "P@0.5": 0.5, "P@0.7": 0.5, "P@0.9": 0.5, "n": 6}
    splits = (facts | about)["splits"]
    (folder / "metrics.json").write_text(json.dumps(dict.fromkeys(splits, scores)))
    return folder


def test_two_evaluations_are_compared_over_their_images(tmp_path, result):
    a, b = (
        evaluation(tmp_path / "a", 5, corrupt=[("fog", 3)]),
        evaluation(tmp_path / "b", corrupt=[("fog", 3)]),
    )
    found, text = result("compare", a, b)
    rows = {(r["metric"], r["view"]): r for r in found["comparisons"]}
    assert (
        set(rows) == {(m, v) for m in ("mIoU", "oIoU") for v in ("clean", "corrupted (1 views)")}
        and found["tests"] == 2
    )
    row = rows["mIoU", "clean"]
    # a is ahead by 0, 5, 10, 0, 5, 10 pixels of 100
    assert row["difference"] == pytest.approx(0.05) == pytest.approx(
        rows["oIoU", "clean"]["difference"]
    ) and row["n"] == [6, 6]
    assert (
        0 < row["low"] < 0.05 < row["high"] < 0.1
        and row["verdict"] == "better"
        and row["p_holm"] == pytest.approx(2 * row["p"])
    )
    assert "another seed may turn it round" in text and "fewer than 50 images" in text
    same = result("compare", b, evaluation(tmp_path / "c"))[0]["comparisons"][0]
    assert same["difference"] == 0 and same["p"] == 1 and same["verdict"] == "undecided"


def test_evaluations_of_other_things_are_refused(root, tmp_path, refused):
    a = evaluation(tmp_path / "a")
    refused(
        "compare",
        a,
        evaluation(
            tmp_path / "data", data={"dataset": "refcoco", "split_by": "unc", "fingerprint": "beef"}
        ),
        said="the data fingerprint is f00d and beef",
    )
    refused(
        "compare",
        a,
        evaluation(tmp_path / "protocol", protocol="original"),
        said="the protocol is square and original",
    )
    refused(
        "compare",
        a,
        evaluation(tmp_path / "size", image_size=64),
        said="the network size is 32 px, square and 64 px, square",
    )
    refused(
        "compare",
        a,
        evaluation(tmp_path / "split", splits=["testA"]),
        said="no split is in all of the evaluations",
    )
    refused(
        "compare",
        a,
        evaluation(tmp_path / "fewer", images=5),
        said="do not hold the same sentences (12 and 10 rows)",
    )
    refused("compare", a, said="one evaluation; name two or more")
    sweep_of(root)
    refused("compare", a, "toy:off", said="compare evaluations with evaluations")
