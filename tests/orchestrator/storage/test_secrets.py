"""Planted keys and passwords, which nothing written or printed may hold."""

import json
import sys
from urllib.parse import quote

import pytest

from aml.errors import NotSaved, UserError
from orchestrator import storage
from orchestrator.cli import surroundings
from orchestrator.cli.app import main
from orchestrator.config.loader import from_dict
from orchestrator.storage import records, run as run_module
from orchestrator.utils import failures, redaction
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
    run = storage.start_run(experiment, "sweep", manifest, fresh=False)
    storage.begin_run(run, experiment, manifest, "x")
    run.append(
        {
            "trial": "a",
            "history": [],
            "error": failures.failure(RuntimeError(f"SignatureDoesNotMatch with {PLANTED}")),
        }
    )
    records.add_note(run.folder, f"the key {PLANTED} was refused")
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


SECRET = "hunter2 Planted/Key+9"  # noqa: S105 (planted)
"""A password with characters that are percent-encoded in an address."""

ENCODED = quote(SECRET, safe="")

ENVIRONMENT = {
    **dict.fromkeys(
        (
            "AWS_SECRET_ACCESS_KEY",
            "AWS_SESSION_TOKEN",
            "MLFLOW_TRACKING_TOKEN",
            "MLFLOW_TRACKING_PASSWORD",
            "RAY_AUTH_TOKEN",
            "HF_TOKEN",
            "AZURE_STORAGE_KEY",
            "AZURE_STORAGE_SAS_TOKEN",
            "AZURE_CLIENT_SECRET",
        ),
        SECRET,
    ),
    "HTTP_PROXY": f"http://me:{ENCODED}@127.0.0.1:9",
    "DATABASE_URL": f"postgresql://me:{ENCODED}@127.0.0.1:9/mlflow",
}

ADDRESSES = [
    f"http://me:{ENCODED}@127.0.0.1:9",
    f"http://me:{SECRET}@127.0.0.1:9",
    f"http://{ENCODED}@127.0.0.1:9",
    f"postgresql://me:{ENCODED}@127.0.0.1:9/mlflow",
    f"mysql://me@127.0.0.1:9/mlflow?password={ENCODED}",
    f"s3://bucket/x?access_key=AKIA&secret_key={ENCODED}",
    f"s3://bucket/x?{ENCODED}",
    f"s3://AKIA:{SECRET}@bucket/x",
    f"s3://bucket/x?endpoint_override=http%3A%2F%2Fme%3A{quote(ENCODED)}%40127.0.0.1",
    f"gs://me:{ENCODED}@bucket/x",
    f"abfss://:{ENCODED}@account.dfs.core.windows.net/x",
]


@pytest.fixture
def forgetful(monkeypatch):
    """Have secrets that a test plants forgotten afterwards."""
    monkeypatch.setattr(redaction, "_learned", set())


def leaks(text):
    return [form for form in (SECRET, ENCODED, "hunter2") if form in text]


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize(
    "command",
    [
        ["doctor"],
        ["runs"],
        ["config", "show", "e.yaml", "tracking.uri=ADDRESS"],
        ["config", "show", "e.yaml", "storage.root=ADDRESS"],
        ["train", "e.yaml", "data.train=ADDRESS"],
        ["train", "secret.yaml", "--dry-run"],
        ["data", "show", "ADDRESS"],
        ["shard", "--verify", "ADDRESS"],
        ["doctor", "tracking.uri=ADDRESS"],
        ["synth", "ADDRESS"],
    ],
    ids=lambda command: " ".join(command[:4]),
)
def test_no_command_repeats_a_secret_wherever_one_is_given(
    command, address, forgetful, tmp_path, monkeypatch, capfd, caplog
):
    if command[0] == "doctor" and address.startswith("s3"):
        monkeypatch.setenv("AMLRIS_HOME", address)
    monkeypatch.setattr(surroundings, "_check_packages", lambda: 0)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    if "ADDRESS" not in command:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "e.yaml").write_text("name: e\ndata: {train: none}\n")
    (tmp_path / "secret.yaml").write_text(
        "name: e\ndata: {train: none}\ntracking: {uri: '" + address + "'}\n"
    )
    with pytest.raises(SystemExit):
        main([text.replace("ADDRESS", address) for text in command])
    said = capfd.readouterr()
    text = said.out + said.err
    assert not leaks(text) and "Traceback" not in text, text
    written = [p for p in tmp_path.rglob("*") if p.is_file() and p.suffix != ".yaml"]
    assert not [p for p in written if leaks(p.read_bytes().decode("latin-1"))]


def test_a_database_that_cannot_be_asked_for_a_model_is_named_without_its_password(
    forgetful, monkeypatch, capfd, tmp_path
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", ADDRESSES[3])
    monkeypatch.setenv("AMLRIS_HOME", str(tmp_path))
    with pytest.raises(SystemExit) as left:
        main(["predict", "models:/x@champion", "--image", "x.png", "--text", "the red star"])
    said = capfd.readouterr().err
    assert left.value.code == 2 and "postgresql://***@127.0.0.1:9/mlflow" in said
    assert not leaks(said) and "Traceback" not in said


@pytest.mark.parametrize("form", [SECRET, ENCODED, quote(SECRET), ENCODED.replace("%2F", "%2f")])
def test_an_error_that_quotes_a_part_of_an_address_holds_no_secret(form, forgetful, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", ADDRESSES[0])
    assert redact(f"nonnumeric port: {form!r}") == "nonnumeric port: '***'"


def test_the_ui_is_given_its_store_on_no_command_line(
    forgetful, monkeypatch, unused_port, tmp_path
):
    monkeypatch.setenv("AMLRIS_HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", ADDRESSES[3])
    monkeypatch.setattr("orchestrator.tracking.end_lost", lambda root: [])
    started = []

    def run(command, environment):
        started.append((command, environment))
        return 0

    monkeypatch.setattr(surroundings, "_run_until_interrupted", run)
    assert surroundings.serve_mlflow_ui("127.0.0.1", unused_port) == 0
    ((command, environment),) = started
    assert not leaks(" ".join(command))
    assert environment["MLFLOW_BACKEND_STORE_URI"] == ADDRESSES[3]
