"""Score a sweep's confirmed checkpoints on splits, and compare the arms by hand and by scipy."""

import csv
import json

import pytest
from scipy import stats

from aml.data.refer_counts import vocabulary
from orchestrator.cli.app import main
from orchestrator.config.loader import from_text
from orchestrator.reporting.comparison import splits
from orchestrator.storage import run as run_module
from tests.support.stores import save_model

ARMS = ("off", "random")
SEEDS = (11, 12)


@pytest.fixture
def sweep(data, tmp_path, monkeypatch):
    """Return a sweep with two confirmed seeds of two arms, whose models were not trained."""
    monkeypatch.setenv("AMLRIS_HOME", str(tmp_path / "runs"))
    run = run_module.Run(tmp_path / "runs" / "toy-00000001", "sweep")
    run.folder.mkdir(parents=True)
    text = "{name: toy, data: {train: x, size: 32}}"
    (run.folder / "config.yaml").write_text(from_text(text).to_yaml())
    run.update(run=run.name, name="toy", state="done")
    for arm in ARMS:
        for seed in SEEDS:
            record = {"trial": f"{arm}-{seed}", "arm": arm, "stage": "confirm", "seed": seed}
            history = [{"epoch": 1, "val/mIoU": 0.1, "val/oIoU": 0.1}]
            run.append(record | {"state": "done", "epochs": 1, "history": history})
            model_seed = 10 * ARMS.index(arm) + seed
            folder = run.folder / "trials" / record["trial"] / "last"
            save_model(folder, vocabulary(data.rows), seed=model_seed)
    return run


def command(capsys, *arguments):
    with pytest.raises(SystemExit) as left:
        main([str(one) for one in arguments])
    said = capsys.readouterr()
    return left.value.code, said.out + said.err


def test_every_confirmed_seed_is_scored_as_alone_and_the_arms_are_compared(
    data, sweep, tmp_path, capsys
):
    out = tmp_path / "table"
    how = ["--data", data.store.path, "--splits", "test", "--json"]
    code, text = command(capsys, "evaluate", "toy", "--arms", *how, "--out", out)
    assert code == 0, text
    scores = json.loads((out / "scores.json").read_text())["scores"]
    assert set(scores) == {f"{arm}-{seed}" for arm in ARMS for seed in SEEDS}
    alone = tmp_path / "alone"
    how = ["--data", data.store.path, "--splits", "testA,testB", "--out", alone]
    code, _ = command(capsys, "evaluate", sweep.folder / "trials/random-12", *how, "--no-track")
    assert code == 0 and json.loads((alone / "metrics.json").read_text()) == scores["random-12"]
    beside = out / "random-12"
    assert sorted(per_sentence(beside)) == sorted(per_sentence(alone))
    for name in ("metrics.json", "breakdown.json"):
        assert json.loads((beside / name).read_text()) == json.loads((alone / name).read_text())
    about, own = (json.loads((one / "about.json").read_text()) for one in (beside, alone))
    differ = {key for key in own if about[key] != own[key]}
    assert about.keys() == own.keys() and differ <= {"seconds"}
    rows = list(csv.DictReader((out / "arms_on_splits.csv").open()))
    assert [(r["split"], r["arm"]) for r in rows] == [
        (split, arm) for split in ("testA", "testB") for arm in ARMS
    ]
    found = {(r["split"], r["arm"]): r for r in rows}
    for metric in ("mIoU", "oIoU"):
        off, random = ([scores[f"{arm}-{seed}"]["testB"][metric] for seed in SEEDS] for arm in ARMS)
        row = found["testB", "random"]
        assert float(row[metric]) == pytest.approx(sum(random) / 2)
        test = stats.ttest_rel(random, off)
        interval = test.confidence_interval()
        assert float(row[f"{metric}_vs_off_p"]) == pytest.approx(test.pvalue)
        assert float(row[f"{metric}_vs_off_low"]) == pytest.approx(interval.low)
        # Holm over the two splits: the smaller p twice
        ps = sorted(float(found[s, "random"][f"{metric}_vs_off_p"]) for s in ("testA", "testB"))
        adjusted = sorted(
            float(found[s, "random"][f"{metric}_vs_off_p_holm"]) for s in ("testA", "testB")
        )
        assert adjusted[0] == pytest.approx(min(1, 2 * ps[0]))
        assert found["testB", "off"][f"{metric}_vs_off_mean"] == ""
    assert "| testB | random | 2 |" in (out / "arms_on_splits.md").read_text()
    assert r"\begin{tabular}" in (out / "arms_on_splits.tex").read_text()
    assert json.loads(text.splitlines()[-1])[0]["mIoU_vs_off_p"] is None


def per_sentence(folder):
    return (folder / "per_sentence.jsonl").read_text().splitlines()


def test_the_scores_are_logged_on_the_mlflow_runs_of_the_trials(
    data, sweep, tmp_path, capsys, monkeypatch
):
    logged = []

    class Tracker:
        def data(self, key, described):
            assert [one["name"] for one in described]

        def metrics(self, key, step, values):
            logged.append((key, values))

        def artifact(self, key, path, folder):
            logged.append((key, folder, path.name))

        def ready(self, seconds):
            return True

        def close(self, seconds):
            return ""

    (sweep.folder.parent / "mlflow.db").write_text("")
    monkeypatch.setattr("orchestrator.tracking.open_tracker", lambda *_: Tracker())
    how = ["--data", data.store.path, "--splits", "testA", "--out", tmp_path / "out"]
    code, text = command(capsys, "evaluate", "toy", "--arms", *how)
    assert code == 0 and "logged on toy-00000001 off-11, off-12, random-11, random-12" in text
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())["scores"]
    values = {line[0]: line[1] for line in logged if len(line) == 2}
    assert {
        key: {name: found[f"eval/refcoco/testA/square/{name}"] for name in ("mIoU", "oIoU")}
        for key, found in values.items()
    } == {
        trial: {name: of["testA"][name] for name in ("mIoU", "oIoU")}
        for trial, of in scores.items()
    }
    assert ("off-11", "evaluations/out", "metrics.json") in logged
    sides = [tmp_path / "out" / trial for trial in ("off-12", "random-12")]
    code, told = command(capsys, "compare", *sides, "--json")
    assert code == 0 and json.loads(told.splitlines()[-1])["kind"] == "images", told
    logged.clear()
    code, _ = command(capsys, "evaluate", "toy", "--arms", *how, "--no-track")
    assert code == 0 and not logged


def test_lost_checkpoints_are_named_and_a_sweep_without_any_is_refused(
    data, sweep, tmp_path, capsys
):
    how = ["evaluate", "toy", "--arms", "--data", data.store.path, "--splits", "testA", "--out"]
    for path in (sweep.folder / "trials/off-11/last").iterdir():
        path.unlink()
    (sweep.folder / "trials/off-11/last").rmdir()
    code, text = command(capsys, *how, tmp_path / "one")
    assert code == 0 and "checkpoints of off-11 are not on this machine" in text
    (row, *_) = csv.DictReader((tmp_path / "one/arms_on_splits.csv").open())
    assert (row["arm"], row["seeds"], row["mIoU_low"]) == ("off", "1", "")
    code, text = command(capsys, *how, tmp_path / "two", "--corrupt", "fog:3")
    assert code == 2 and "--corrupt means nothing beside --arms" in text
    (sweep.folder / "ledger.jsonl").unlink()
    code, text = command(capsys, *how, tmp_path / "three")
    assert code == 2 and "no finished confirmation trial" in text


def test_scores_are_kept_of_the_same_protocol_alone(data, sweep, tmp_path, monkeypatch):
    asked = []
    score = splits.evaluation.evaluate_together

    def noted(request, *rest, **more):
        asked.append((request.split, len(request.checkpoints), request.protocol))
        return score(request, *rest, **more)

    monkeypatch.setattr(splits.evaluation, "evaluate_together", noted)
    out = tmp_path / "kept"
    tables = [
        splits.evaluate_arms(sweep, data.store, names, out, protocol=protocol, keep=True)[1]
        for names, protocol in (
            (["testA"], "square"),
            (["testA", "testB"], "square"),
            (["testA", "testB"], "square"),
            (["testB"], "original"),
        )
    ]
    assert asked == [("testA", 4, "square"), ("testB", 4, "square"), ("testB", 4, "original")]
    assert tables[0][0]["mIoU"] == tables[1][0]["mIoU"]
    held = [json.loads(line)["split"] for line in per_sentence(out / "off-11")]
    assert set(held) == {"testB"}, "another protocol is written anew"
    assert tables[1] == tables[2] and tables[3][0]["mIoU"] != tables[2][2]["mIoU"]


def test_rows_follow_the_order_of_splits_and_arms():
    trials = [{"trial": a, "arm": a, "seed": 1} for a in ("b", "off")]
    one = {"mIoU": 0.5, "oIoU": 0.4, "P@0.5": 0.5, "P@0.7": 0.5, "P@0.9": 0.5}
    scores = {"b": {"x": one, "y": one}, "off": {"x": one, "y": one}}
    rows = splits.arm_rows(trials, scores, ["y", "x"], ["off", "gone", "b"])
    assert [(r["split"], r["arm"]) for r in rows] == [
        ("y", "off"),
        ("y", "b"),
        ("x", "off"),
        ("x", "b"),
    ]
