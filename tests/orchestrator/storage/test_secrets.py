"""Planted keys and passwords, which nothing written or printed may hold."""

import json
import sys

import pytest

from aml.errors import NotSaved, UserError
from orchestrator.config.loader import from_dict
from orchestrator.storage import history, run as run_module
from orchestrator.utils import failures
from orchestrator.utils.redaction import redact
from tests.orchestrator.storage.test_survival import TREE

PLANTED = "hunter2-Planted/Secret"


@pytest.fixture
def planted(monkeypatch):
    for name in (
        "AWS_SECRET_ACCESS_KEY",
        "HF_TOKEN",
        "MLFLOW_TRACKING_PASSWORD",
        "AWS_SESSION_TOKEN",
    ):
        monkeypatch.setenv(name, PLANTED)


def test_a_run_folder_holds_no_secret_of_config_environment_or_error(
    planted, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        sys, "argv", ["orchestrator", "sweep", f"tracking.uri=http://me:{PLANTED}@127.0.0.1:9"]
    )
    tree = TREE | {
        "tracking": {"uri": f"http://me:{PLANTED}@127.0.0.1:9"},
        "storage": {"root": str(tmp_path)},
    }
    experiment, manifest = (
        from_dict(tree),
        {"fingerprint": "f", "dataset": "d", "split_by": "s", "splits": {}},
    )
    run = run_module.start_run(experiment, "sweep", manifest, fresh=False)
    run_module.begin_run(run, experiment, manifest, "x")
    run.append(
        {
            "trial": "a",
            "history": [],
            "error": failures.failure(RuntimeError(f"SignatureDoesNotMatch with {PLANTED}")),
        }
    )
    history.add_note(run.folder, f"the key {PLANTED} was refused")
    written = {
        path.name: path.read_text("utf-8") for path in run.folder.rglob("*") if path.is_file()
    }
    assert set(written) == {"config.yaml", "sweep.json", "ledger.jsonl", "notes.txt"}
    assert all("hunter2" not in text and "***" in text for text in written.values()), written
    assert PLANTED not in json.dumps(experiment.for_workers()) and "127.0.0.1" not in json.dumps(
        experiment.for_workers()
    )
    assert run.experiment().tracking.uri is None, (
        "a resumed run takes the address from the present config or the environment"
    )
    assert run.experiment(experiment.tracking) == experiment


def test_a_key_that_begins_like_a_path_is_a_secret_and_a_file_is_none(monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "/wJalrXUtnFEMI+K7MDENG")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN", str(tmp_path))
    assert redact(f"/wJalrXUtnFEMI+K7MDENG of {tmp_path}") == f"*** of {tmp_path}"


@pytest.mark.parametrize("error", [UserError, NotSaved, RuntimeError])
def test_what_the_command_line_says_of_an_error_holds_no_secret(
    planted, capsys, monkeypatch, error
):
    from orchestrator.cli import app

    def fail(*_, **__):
        raise error(f"{PLANTED} at s3://key:{PLANTED}@bucket/x")

    monkeypatch.setattr(run_module, "list_runs", fail)
    with pytest.raises(SystemExit) as left:
        app.main(["runs"])
    said = capsys.readouterr()
    assert left.value.code == (2 if error is UserError else 1)
    assert "hunter2" not in said.out + said.err and "*** at s3://***@bucket/x" in said.err
