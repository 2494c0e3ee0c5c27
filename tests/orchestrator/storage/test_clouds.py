"""Shards and results at gs://, abfs:// and hf:// addresses, against servers of this machine."""

import base64
import os
import shutil
import socket

import pytest

from aml.errors import Unreachable, UserError
from orchestrator.cli.app import main
from orchestrator.config.resources import StorageConfig
from orchestrator.data import convert, shards
from orchestrator.storage import circuit_breaker, filesystem, lease, paths, run as run_module
from orchestrator.utils import redaction
from orchestrator.utils.redaction import redact
from tests.orchestrator.storage.test_mirror import a_run
from tests.support import clouds
from tests.support.s3 import Machine
from tests.support.stores import write_store

KEY = base64.b64encode(b"planted key of an account").decode()

ABFS = "abfss://amlris@account.dfs.core.windows.net"


@pytest.fixture(scope="module")
def google():
    with clouds.serving("Google") as host:
        yield f"?scheme=http&endpoint_override={host}"


@pytest.fixture(scope="module")
def azure():
    with clouds.serving("Azure") as host:
        yield f"?scheme=http&endpoint_override={host}"


@pytest.fixture
def hub(rows, tmp_path, monkeypatch):
    """Return the address of a data set of the hub whose folder `small` holds shards."""
    write_store(tmp_path / "me" / "mine" / "small", rows)
    with clouds.serving("Hub", tmp_path) as host:
        monkeypatch.setenv("HF_ENDPOINT", f"http://{host}")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", clouds.TOKEN)
        yield "hf://datasets/me/mine"


def command(capsys, *arguments) -> tuple[int, str]:
    with pytest.raises(SystemExit) as left:
        main(list(arguments))
    said = capsys.readouterr()
    return left.value.code, said.out + said.err


@pytest.mark.parametrize("kind", ["google", "azure"])
def test_shards_are_written_to_a_bucket_and_read_back(
    kind, request, scenes, rows, capsys, tmp_path, monkeypatch
):
    monkeypatch.setenv("AZURE_STORAGE_KEY", KEY)
    monkeypatch.setenv("AMLRIS_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    query = request.getfixturevalue(kind)
    uri = ("gs://amlris" if kind == "google" else ABFS) + "/team/scenes" + query
    source = ["--refer-root", str(scenes), "--images", str(scenes / "images")]
    asked = ["shard", *source, "--dataset", "refcoco", "--split-by", "unc", "--out", uri]
    code, text = command(capsys, *asked)
    assert code == 0 and KEY not in text, text
    code, text = command(capsys, "shard", "--verify", uri)
    assert code == 0 and "is whole" in text
    store = filesystem.Filesystem(uri)
    assert not [name for name in store.names() if name.endswith(".amlris-draft")]
    places = shards.picture_places(store, ["train", "val", "testA", "testB"])
    read = {row["image_id"]: row["refs"] for row in shards.read_rows(store, places)}
    assert read == {row["image_id"]: row["refs"] for row in rows}
    assert not [p for p in tmp_path.rglob("*") if ":" in p.name]
    other = uri.replace("/scenes", "/none")
    assert filesystem.Filesystem(other).read("x") is None
    with pytest.raises(UserError, match="no complete shards"):
        shards.read_manifest(filesystem.Filesystem(other))


def test_shards_of_the_hub_are_read_with_the_token_and_never_written(
    hub, rows, capsys, monkeypatch, tmp_path
):
    store = filesystem.Filesystem(f"{hub}/small")
    places = shards.picture_places(store, ["val"])
    wanted = {r["image_id"] for r in rows if any(ref["split"] == "val" for ref in r["refs"])}
    assert {row["image_id"] for row in shards.read_rows(store, places)} == wanted
    with pytest.raises(UserError, match=r"--out is hf://.*only read"):
        convert.check_output(store, None)
    page = tmp_path / "page.html"
    code, text = command(
        capsys, "data", "show", f"{hub}/small", "--split", "val", "--out", str(page)
    )
    assert code == 0 and page.is_file(), text
    monkeypatch.setenv("HF_TOKEN", "another")
    with pytest.raises(UserError, match="no complete shards"):
        shards.read_manifest(filesystem.Filesystem(f"{hub}/other"))


@pytest.mark.parametrize("scheme", ["gs", "abfs", "hf"])
def test_a_bucket_that_is_away_is_said_with_what_to_check(scheme, unused_port, monkeypatch):
    query = f"?scheme=http&endpoint_override=127.0.0.1:{unused_port}"
    monkeypatch.setenv("AZURE_STORAGE_KEY", KEY)
    monkeypatch.setattr(filesystem, "GS_RETRY_S", (1, 1))
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{unused_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    uri = {"gs": f"gs://b/x{query}", "abfs": f"{ABFS}/x{query}", "hf": "hf://datasets/me/gone"}
    variables = {"gs": "GOOGLE_", "abfs": "AZURE_", "hf": "HF_"}
    with pytest.raises(Unreachable, match=f"what {variables[scheme]}"):
        filesystem.Filesystem(uri[scheme], impatient=True).read("x")


def test_google_without_credentials_is_refused_before_its_library_waits(
    monkeypatch, tmp_path, unused_port, capsys
):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.setattr(filesystem, "GOOGLE_METADATA", ("127.0.0.1", unused_port))
    page = str(tmp_path / "page.html")
    code, text = command(capsys, "data", "show", "gs://bucket/x", "--split", "val", "--out", page)
    assert code == 2
    assert text.startswith("error: gs://bucket/x cannot be reached without credentials, and this")
    with monkeypatch.context() as patch:
        key = tmp_path / "key.json"
        patch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(key))
        with pytest.raises(Unreachable, match="names a file that is not here"):
            filesystem.Filesystem("gs://bucket/x")
        key.write_text("no key")
        with pytest.raises(Unreachable, match=r"what GOOGLE_\* is exported"):
            filesystem.Filesystem("gs://bucket/x").read("y")
    login = tmp_path / ".config" / "gcloud" / "application_default_credentials.json"
    login.parent.mkdir(parents=True)
    login.write_text(
        '{"type": "authorized_user", "client_id": "a", "client_secret": "b", "refresh_token": "c"}'
    )
    filesystem.Filesystem("gs://bucket/x")  # which asks nothing yet
    login.unlink()
    with socket.create_server(("127.0.0.1", unused_port)):
        filesystem.Filesystem("gs://bucket/x")


def test_a_damaged_file_is_no_bucket_that_is_away():
    hub = filesystem.Filesystem("hf://datasets/me/mine")
    google = filesystem.Filesystem("gs://bucket/x?scheme=http&endpoint_override=127.0.0.1:9")
    away = hub.errors[0]("no answer")
    assert hub.is_silent(away) and not hub.is_silent(OSError("Corrupt snappy compressed data."))
    refused = OSError("google::cloud::Status(UNAVAILABLE: Retry policy exhausted)")
    assert google.is_silent(refused) and not google.is_silent(OSError("Corrupt snappy data."))


def test_a_bucket_of_google_that_does_not_answer_is_not_asked_again_at_once(tmp_path):
    folder = paths.working_root("gs://bucket/x") / "run"
    try:
        with pytest.raises(OSError), circuit_breaker.circuit_breaker(folder, force=False):
            raise OSError("google::cloud::Status(UNAVAILABLE: Retry policy exhausted)")
        again = circuit_breaker.circuit_breaker(folder, force=False)
        with pytest.raises(Unreachable, match="not asked for"), again:
            pass
    finally:
        circuit_breaker.reset_circuit(folder)


def test_results_at_gs_are_one_machines_at_a_time_and_outlive_its_disk(
    google, tmp_path, monkeypatch
):
    monkeypatch.setenv("AMLRIS_HOME", f"gs://amlris/results{google}")
    monkeypatch.setenv("AMLRIS_LEASE_S", "0.3")
    machine = Machine(tmp_path, monkeypatch)
    run = a_run(machine("a"))
    shutil.rmtree(machine("a"))
    again = run_module.find_run(machine("b"), "tiny")
    with again.locked():
        assert [line["trial"] for line in again.ledger()] == ["off-000"]
        other = run_module.Run(machine("d") / run.folder.name, "sweep")
        with (
            pytest.raises(UserError, match=f"worked on by process {os.getpid()}"),
            lease.bucket_lease(other.folder),
        ):
            pass
    store = filesystem.Filesystem(paths.bucket_of(again.folder))
    assert store.read("lease") is None and store.read("driver.manifest.json") is not None
    assert not [p for p in tmp_path.rglob("*") if p.name.startswith("gs:")]


@pytest.mark.parametrize(
    ("address", "said"),
    [
        (f"{ABFS}/team", "where shards may be but no results"),
        ("hf://datasets/me/mine", "which is only read"),
        ("gs:bucket/team", "names no bucket"),
        ("gs:/bucket/team", "names no bucket"),
        ("gs://", "names no bucket"),
        ("gcs://bucket/team", "not served"),
        ("abfs://container/team", "names no bucket"),
        (f"gs://me:{KEY}@bucket/team", "holds keys"),
        (f"abfss://:{KEY}@account.dfs.core.windows.net/team", "holds keys"),
        (f"{ABFS}/team?sig={KEY}", "holds keys or an unknown option"),
    ],
)
def test_a_root_that_is_not_served_is_refused_and_no_folder_is_made(
    address, said, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(redaction, "_learned", set())
    monkeypatch.setenv("AMLRIS_HOME", address)
    code, text = command(capsys, "runs")
    assert code == 2 and said in text and KEY not in text and "Traceback" not in text
    with pytest.raises(UserError, match="storage.root"):
        StorageConfig(root=address)
    assert not list(tmp_path.iterdir())


def test_a_container_of_azure_is_shown_and_a_key_in_its_place_is_not(monkeypatch):
    monkeypatch.setattr(redaction, "_learned", set())
    redaction.learn_secrets(f"{ABFS}/team")
    assert redact(f"wrote {ABFS}/team to amlris") == f"wrote {ABFS}/team to amlris"
    assert KEY not in redact(f"abfss://{KEY}@account.dfs.core.windows.net/team")
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", f"AccountName=x;AccountKey={KEY}")
    assert KEY not in redact(f"failed with AccountName=x;AccountKey={KEY}")
