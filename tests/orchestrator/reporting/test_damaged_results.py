"""Results whose files were damaged: the file and line are named, and the rest is shown."""

import csv
import io
import json
import os
import shutil

import pytest
from hypothesis import given, settings, strategies as st

from aml.errors import UserError
from orchestrator.cli.app import main
from orchestrator.reporting import export, report
from orchestrator.storage import listing, records, run as run_module
from tests.orchestrator.reporting.test_evidence import evaluation
from tests.orchestrator.reporting.test_report import SWEEP, folder_of, ledger, trial
from tests.support.fuzzing import damaged, outcome, replaced
from tests.support.hearing import hear


@pytest.fixture(autouse=True, scope="module")
def undrawn():
    """Leave out the figures, which take seconds, unless many damaged inputs are tried."""
    with pytest.MonkeyPatch.context() as patch:
        if "AMLRIS_FUZZ_EXAMPLES" not in os.environ:
            for name in ("cost_figures", "curve_figures", "diagnostic_figures", "severity_figures"):
                patch.setattr(report.curves, name, lambda *_: [])
            patch.setattr(report.style, "legend", lambda *_: [])
            patch.setattr(report.maps, "map_figures", lambda *_: [])
            patch.setattr(report.lines, "line_figures", lambda *_: [])
        yield


def written(folder):
    """The page of a run's report."""
    return report.write_report(folder).read_text("utf-8")


def test_each_damaged_line_is_left_out_and_named_on_the_page(tmp_path):
    good = trial("off-0", "off", 0, 0, 0.5)
    wrong = [
        b'{"trial": "x", "hist',
        "{'ä': 1}".encode("latin-1"),
        b"null",
        b"[]",
        b'{"a": 1, "a": 2}',
        b"[" * 10_000,
    ]
    changes = [
        {"history": None},
        {"history": [{"epoch": "1"}]},
        {"history": [{"epoch": 1, "val/mIoU": "0.9"}], "epochs": 1},
        {"history": [{"epoch": 2}, {"epoch": 1}], "epochs": 1},
        {"epochs": 400},
        {"seed": "1"},
        {"tau": [1]},
        {"state": "finished"},
        {"stage": "x"},
        {"trial": "../x"},
        {"arm": None},
        {"params": [1]},
        {"path": [[1]]},
    ]
    wrong += [json.dumps(good | {"trial": "off-1"} | change).encode() for change in changes]
    folder = folder_of(tmp_path, SWEEP, [])
    lines = [json.dumps(good).encode(), *wrong, json.dumps(good | {"trial": "off-2"}).encode()]
    (folder / "ledger.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    html = written(folder)
    assert f"in no number here, {len(wrong)} damaged lines of ledger.jsonl" in html
    assert all(f"line {k}: " in html for k in range(2, len(wrong) + 2))
    table = csv.DictReader((folder / "report" / "trials.csv").open(encoding="utf-8"))
    assert [row["trial"] for row in table] == ["off-0", "off-2"]
    heard = hear([])
    assert [r["trial"] for r in run_module.Run(folder, "sweep").ledger()] == ["off-0", "off-2"]
    assert len(heard) == len(wrong) and all(str(folder / "ledger.jsonl") in text for text in heard)


@pytest.mark.parametrize("content", ["[]", "null", "{", '{"data": 5}', '{"state": [1]}', "\xff"])
@pytest.mark.parametrize("name", ["sweep.json", "config.yaml"])
def test_without_its_state_or_settings_a_run_still_shows_its_trials(tmp_path, name, content):
    folder = folder_of(tmp_path, SWEEP, ledger())
    (folder / name).write_text(content, "latin-1")
    html = written(folder)
    if (name, content) != ("config.yaml", '{"state": [1]}'):
        assert "Left out" in html and name in html
    assert "off-c1" in html


def test_a_damaged_evaluation_of_the_run_is_left_out_and_a_named_one_refused(tmp_path):
    folder = folder_of(tmp_path, SWEEP, ledger())
    for name in ("metrics.json", "about.json", "breakdown.json", "robustness.json"):
        one = evaluation(folder / "evaluations" / name, robust=True)
        (one / name).write_text("[1]")
    page = report.write_report(folder)
    assert page.read_text("utf-8").count("is damaged") == 4
    with pytest.raises(UserError, match=r"metrics\.json is damaged"):
        report.write_report(folder, evaluations=[folder / "evaluations" / "metrics.json"])


def test_a_damaged_run_hides_no_other(tmp_path, monkeypatch, capsys):
    folder_of(tmp_path, SWEEP, ledger())
    for k, content in enumerate(["[]", "null", '{"started": "yesterday"}', "{"]):
        (tmp_path / f"bad-{k}").mkdir()
        (tmp_path / f"bad-{k}" / "sweep.json").write_text(content)
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "train.json").write_text("{}")
    monkeypatch.setenv("AMLRIS_HOME", str(tmp_path))
    with pytest.raises(SystemExit) as left:
        main(["runs"])
    out = capsys.readouterr().out
    assert left.value.code == 0 and "toy-00000000" in out and "bare" in out
    assert out.count("sweep.json is damaged") == 4
    assert run_module.find_run(tmp_path, "toy").name == "toy-00000000"
    with pytest.raises(UserError, match=r"bad-1/sweep\.json is damaged"):
        run_module.find_run(tmp_path, "bad-1")
    with pytest.raises(UserError, match="no run"):
        run_module.find_run(tmp_path, "")


def test_a_folder_that_may_not_be_read_hides_no_other(tmp_path, monkeypatch):
    folder_of(tmp_path, SWEEP, ledger())
    (tmp_path / "closed").mkdir()
    heard = hear([])
    before = run_module.os.stat

    def stat(path, *more, **options):
        if "closed" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return before(path, *more, **options)

    monkeypatch.setattr(run_module.os, "stat", stat)  # whoever is root may read everything
    assert [run.name for run in run_module.list_runs(tmp_path)] == ["toy-00000000"]
    assert "closed cannot be read (Permission denied)" in heard[0]


def test_epochs_that_cannot_be_read_are_refused_since_their_place_counts(tmp_path):
    (tmp_path / "epochs.jsonl").write_text('{"epoch": 1}\n{"epoch": 2, "val/mIoU": "x"}\n')
    with pytest.raises(UserError, match=r"epochs\.jsonl is damaged \(line 2: val/mIoU is 'x'"):
        records.read_history(tmp_path)


def test_cells_stay_in_their_place_and_compute_nothing(tmp_path):
    names = ["=1+1", "+cmd", "-x", "@sum", "a\nb", "a|b", "\t=1", "a\r\nb\0", "<b>", "`", "-0.5"]
    export.write_csv(tmp_path / "x.csv", [{"name": name, "n": -1.5} for name in names])
    text = (tmp_path / "x.csv").read_text("utf-8")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == len(names) and {row["n"] for row in rows} == {"-1.5"}
    cells = ["'=1+1", "'+cmd", "'-x", "'@sum", "a b", "a|b", "'=1", "a b", "<b>", "`", "-0.5"]
    assert [row["name"] for row in rows] == cells
    lines = export.markdown(["name"], [[name] for name in names]).splitlines()
    assert len(lines) == len(names) + 2
    assert all(line.startswith("| ") and line.endswith(" |") for line in lines)
    assert all(line.replace("\\|", "").count("|") == 2 for line in lines)
    assert "\\<b>" in lines[10]
    tex = export.latex(["name"], [[name] for name in names], "", "x")
    assert tex.count(r" \\") == len(names) + 1 and "\0" not in tex


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder of a finished sweep."""
    folder = folder_of(tmp_path_factory.mktemp("whole"), SWEEP, ledger()[:3] + ledger()[-3:])
    shutil.rmtree(folder / "trials")
    evaluation(folder / "evaluations" / "robust", n=9, robust=True)
    return folder


FILES = [
    *("sweep.json", "ledger.jsonl", "config.yaml"),
    *(f"evaluations/robust/{n}.json" for n in ("about", "metrics", "breakdown", "robustness")),
]


@pytest.mark.fuzz
@settings(max_examples=max(8, settings.default.max_examples // 20))  # drawing takes a second
@given(data=st.data())
def test_any_damage_ends_in_a_page_or_in_one_sentence(whole, data):
    folder = whole.parent / "altered"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    path = folder / data.draw(st.sampled_from(FILES))
    content = path.read_bytes()
    if path.suffix == ".yaml" or data.draw(st.booleans()):
        path.write_bytes(data.draw(damaged(content)))
    elif path.suffix == ".jsonl":
        lines = [json.loads(line) for line in content.splitlines()]
        lines[0] = data.draw(replaced(lines[0]))
        path.write_text("\n".join(json.dumps(line, default=repr) for line in lines))
    else:
        path.write_text(json.dumps(data.draw(replaced(json.loads(content))), default=repr))
    found = outcome(report.write_report, folder)
    if not isinstance(found, UserError):
        assert "</html>" in found.read_text("utf-8")
    for run in outcome(run_module.list_runs, whole.parent):
        listing.run_line(run)
