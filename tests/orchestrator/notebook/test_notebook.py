"""Notebooks: results as tables that show themselves, errors in a sentence, and the example."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from aml.errors import RunError, UserError
from orchestrator.notebook import RunResult, Table, load, runs
from orchestrator.storage import Run

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "experiments" / "notebook.ipynb"


def test_importing_costs_nothing_and_sweep_is_a_package_that_is_called():
    code = (
        "import sys\n"
        "from orchestrator import compare, evaluate, load, report, runs, sweep\n"
        "heavy = {'torch', 'ray', 'mlflow', 'pandas', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "from orchestrator.sweep import run_sweep\n"
        "from orchestrator import sweep as again\n"
        "assert again is sweep and callable(sweep)\n"
        "try:\n"
        "    sweep('nowhere.yaml')\n"
        "except ValueError as error:\n"
        "    print(error)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert "nowhere.yaml cannot be read" in found.stdout


def test_a_table_shows_its_rows_and_gives_them_to_pandas():
    table = Table([{"a": "x<y", "b": 0.123456}, {"a": "z", "b": None}], "Two rows", ["a", "b"])
    assert table.frame()["b"].tolist()[0] == 0.123456 and len(table) == 2
    shown = table._repr_html_()
    assert "<td>x&lt;y</td><td>0.1235</td>" in shown and "<td>z</td><td></td>" in shown
    assert repr(table).splitlines() == ["Two rows", "a    b     ", "x<y  0.1235", "z          "]
    many = Table([{"n": n} for n in range(100)])
    assert many._repr_html_().count("<tr>") == 61 and "and 40 more rows" in many._repr_html_()


def test_a_run_without_a_report_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("AMLRIS_HOME", str(tmp_path))
    (tmp_path / "x-00000000").mkdir()
    state = {"run": "x-00000000", "name": "x", "kind": "sweep", "state": "interrupted"}
    (tmp_path / "x-00000000" / "sweep.json").write_text(json.dumps(state))
    (row,) = runs()
    assert (row["run"], row["state"], row["best_mIoU"]) == ("x-00000000", "interrupted", None)
    result = RunResult(Run(tmp_path / "x-00000000", "sweep"))
    with pytest.raises(UserError, match="no report yet .state: interrupted.*report.'x-00000000'"):
        result.frame()


def test_settings_show_themselves_without_passwords(tmp_path):
    path = tmp_path / "e.yaml"
    path.write_text("name: e\ndata: {train: x}\ntracking: {uri: 'http://me:secret1@host'}\n")
    experiment = load(path, "aml.tau=0.4")
    assert "name: e\n" in experiment._repr_html_() and "secret1" not in experiment._repr_html_()
    frame = experiment.frame().set_index("setting")["value"]
    assert frame["aml.tau"] == 0.4 and "secret1" not in str(frame["tracking.uri"])


@pytest.mark.parametrize("kind", [UserError, RunError])
def test_ipython_shows_an_error_as_one_sentence(kind):
    assert kind("no run is called x; name one")._render_traceback_() == [
        "error: no run is called x; name one"
    ]


def test_the_example_runs_and_was_stored_without_large_outputs(ray_session, tmp_path):
    import ray

    assert EXAMPLE.stat().st_size < 50_000
    shutil.copy(ROOT / "experiments" / "quickstart.yaml", tmp_path)
    for name in ("aml", "orchestrator"):  # Ray's workers import from the folder of `python -c`
        (tmp_path / name).symlink_to(ROOT / name)
    environment = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    environment.pop("AMLRIS_HOME", None)
    runner = str(ROOT / "tests" / "support" / "notebook.py")
    code = f"import runpy; runpy.run_path({runner!r}, run_name='__main__')"
    found = subprocess.run(
        [sys.executable, "-c", code, EXAMPLE],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    texts = re.split(r"^--- cell \d+\n", found.stdout, flags=re.M)[1:]
    settings, swept, trials, difference, scores, listed, refused = texts[1:]
    stored = re.findall(
        r'"(?:mIoU in %|scores: mIoU|better and worse).*(?=\\n")', EXAMPLE.read_text()
    )
    assert len(stored) == 3
    assert [line for line in stored if line[1:] not in found.stdout] == [], "execute it anew"
    assert "<td>notebook</td>" in settings
    assert "sweep, done" in swept and "<td>aml/calibrated</td>" in swept and ">nan<" not in swept
    assert trials.count("-confirm-") == 4 and "<td>testA</td>" in scores
    assert re.search(r"<td>notebook-\w{8}:off</td><td>-?[\d.]+</td>", difference)
    assert "<td>done</td><td>4</td>" in listed
    assert refused.splitlines() == [line for line in refused.splitlines() if "aml.tau is 2" in line]
