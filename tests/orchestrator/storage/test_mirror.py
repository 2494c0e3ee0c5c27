"""A storage root in a bucket, without Ray.

Tested are uploads and downloads, damaged files, a bucket that is away, and who may write.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time

import pytest

from aml.data.refer_counts import vocabulary
from aml.errors import UserError
from aml.training import checkpoint
from orchestrator.config.loader import from_dict
from orchestrator.storage import (
    circuit_breaker,
    filesystem,
    listing,
    paths,
    records,
    run as run_module,
    snapshot as snapshot_module,
    uploads,
)
from orchestrator.storage.paths import storage_root
from orchestrator.storage.remote_folder import RemoteFolder
from orchestrator.storage.snapshot import DRIVER, TRIAL
from orchestrator.storage.synced_folder import SyncedFolder
from orchestrator.tracking import resolve
from orchestrator.training import loop
from orchestrator.utils import locks
from tests.orchestrator.storage.test_survival import NUMBERS, TREE, finished
from tests.support.hearing import hear
from tests.support.s3 import KEYS, Machine, objects
from tests.support.stores import save_model

WORDS = ["red", "star"]


@pytest.fixture
def there(bucket, monkeypatch):
    """Return a bucket whose address AMLRIS_HOME is."""
    monkeypatch.setenv("AMLRIS_HOME", bucket.uri)
    return bucket


@pytest.fixture
def machines(tmp_path, monkeypatch):
    """Return a function that puts this process on a machine and returns its storage root."""
    return Machine(tmp_path, monkeypatch)


def upload(folder, kind) -> None:
    snapshot = SyncedFolder(folder, kind).snapshot()
    SyncedFolder(folder, kind).upload(snapshot)


def a_run(root, name="tiny-01234567"):
    run = run_module.Run(root / name, "sweep")
    with run.locked():
        run.update(run=name, name="tiny", kind="sweep", state="running", started=1.0)
        (run.folder / "trials" / "off-000").mkdir(parents=True)
        (run.folder / "trials" / "off-000" / "trial.json").write_text("{}")
        run.append(finished("off-000", history=[{"epoch": 1, "val/mIoU": 0.25}]))
    return run


def test_a_run_of_one_machine_is_listed_and_read_on_another(there, machines):
    one = a_run(machines("a"))
    (trial := one.folder / "trials" / "off-000").joinpath("epochs.jsonl").write_text(
        '{"epoch": 1}\n'
    )
    save_model(trial / "last", WORDS)
    upload(trial, TRIAL)
    with one.locked():
        one.update(state="done", champion={"checkpoint": "trials/off-000/last"})
    two = machines("b")
    assert two != one.folder.parent
    (found,) = run_module.list_runs(two)
    assert (
        found.finished
        and found.ledger() == one.ledger()
        and "best mIoU 25.0%" in listing.run_line(found)
    )
    folder = resolve.find_checkpoint("tiny", two)
    assert (
        folder == two / "tiny-01234567" / "trials" / "off-000" / "last"
        and checkpoint.damage(folder) == ""
    )
    assert (folder / "model.safetensors").read_bytes() == (
        trial / "last" / "model.safetensors"
    ).read_bytes()


def test_what_did_not_change_is_not_sent_again_and_what_nothing_names_is_removed(there, machines):
    folder = machines("a") / "run" / "trials" / "x"
    save_model(folder / "last", WORDS)
    (folder / "notes.txt").write_text("one\n")
    upload(folder, TRIAL)
    first = objects(there)
    (folder / "notes.txt").write_text("one\ntwo\n")
    upload(folder, TRIAL)
    second = objects(there)
    assert len(second) == len(first) and len({*first} - {*second}) == 1
    assert {k: v for k, v in first.items() if k in second and "/objects/" in k} == {
        k: v for k, v in second.items() if k in first and "/objects/" in k
    }


def test_of_a_ledger_that_grows_only_its_end_is_sent(there, machines, monkeypatch):
    folder, sizes = machines("a") / "run", {}
    folder.mkdir(parents=True)
    upload_piece = RemoteFolder.upload_piece
    monkeypatch.setattr(
        RemoteFolder,
        "upload_piece",
        lambda self, sha, chunks: upload_piece(self, sha, counted(sizes, sha, chunks)),
    )
    written = b""
    for _ in range(5):
        sizes.clear()
        with open(folder / "ledger.jsonl", "ab") as file:
            file.write(more := os.urandom(snapshot_module.PIECE - 2000))
        written += more
        upload(folder, DRIVER)
        assert len(sizes) <= 2 and sum(sizes.values()) < 2 * snapshot_module.PIECE
    sizes.clear()
    with open(folder / "ledger.jsonl", "ab") as file:
        file.write(b"a line\n")
    snapshot = SyncedFolder(folder, DRIVER).snapshot()
    with open(folder / "ledger.jsonl", "ab") as file:
        file.write(b"after that moment\n")
    SyncedFolder(folder, DRIVER).upload(snapshot)
    assert list(sizes.values()) == [len(written + b"a line\n") % snapshot_module.PIECE]
    assert sum("/objects/" in key for key in objects(there)) == 5, (
        "the ends that were sent before are taken away"
    )
    other = machines("b") / "run"
    uploads.download(other, DRIVER)
    assert (other / "ledger.jsonl").read_bytes() == written + b"a line\n"
    damaged = json.loads(there.get("run/driver.manifest.json"))["ledger.jsonl"]["pieces"][2]
    there.put(f"run/objects/{damaged}", b"altered")
    with pytest.raises(UserError, match=rf"{damaged} \(ledger.jsonl\) is not as it was written"):
        uploads.download(machines("c") / "run", DRIVER)
    assert not (machines("c") / "run" / "ledger.jsonl").exists()


def counted(sizes: dict[str, int], sha: str, chunks):
    for chunk in chunks:
        sizes[sha] = sizes.get(sha, 0) + len(chunk)
        yield chunk


def test_a_delivery_that_was_cut_off_leaves_the_one_before(there, machines, monkeypatch):
    folder = machines("a") / "run" / "trials" / "x"
    save_model(folder / "last", WORDS)
    upload(folder, TRIAL)
    before = (folder / "last" / "config.json").read_bytes()
    save_model(folder / "last", [*WORDS, "circle"])
    monkeypatch.setattr(
        RemoteFolder,
        "replace_manifest",
        lambda *_: (_ for _ in ()).throw(OSError("the machine is taken away")),
    )
    with pytest.raises(OSError, match="taken away"):
        upload(folder, TRIAL)
    assert SyncedFolder(folder, TRIAL).has_pending_upload()
    monkeypatch.undo()
    monkeypatch.setenv("AMLRIS_HOME", there.uri)
    other = machines("b") / "run" / "trials" / "x"
    uploads.download(other)
    assert (
        checkpoint.damage(other / "last") == ""
        and (other / "last" / "config.json").read_bytes() == before
    )
    assert not (other / "last.previous").exists()


def test_a_checkpoint_that_is_damaged_in_the_bucket_gives_way_to_the_one_before(there, machines):
    folder = machines("a") / "run" / "trials" / "x"
    save_model(folder / "last", WORDS)
    save_model(folder / "last", [*WORDS, "circle"])
    upload(folder, TRIAL)
    sha = json.loads(there.get("run/trials/x/trial.manifest.json"))["last/model.safetensors"][
        "pieces"
    ][0]
    there.put(f"run/trials/x/objects/{sha}", b"altered")
    other, said = machines("b") / "run" / "trials" / "x", []
    uploads.download(other)
    assert checkpoint.usable_checkpoint(other / "last", said.append) == other / "last.previous"
    assert "model.safetensors is not as it was written" in said[0]


def test_what_was_not_delivered_stays_unless_the_bucket_has_gone_on(there, machines):
    a = machines("a") / "run" / "trials" / "x"
    a.mkdir(parents=True)
    (a / "epochs.jsonl").write_text("1\n")
    upload(a, TRIAL)
    (a / "epochs.jsonl").write_text("1\n2\n")
    uploads.download(a)
    assert (a / "epochs.jsonl").read_text() == "1\n2\n", "the bucket has nothing that is newer"
    uploads.download(a, exact=True)
    assert (a / "epochs.jsonl").read_text() == "1\n"
    (a / "epochs.jsonl").write_text("1\n2\n")
    SyncedFolder(a, TRIAL).snapshot()
    b = machines("b") / "run" / "trials" / "x"
    uploads.download(b)
    (b / "epochs.jsonl").write_text("1\n2\n3\n")
    upload(b, TRIAL)
    machines("a")
    assert uploads.upload_from_this_node(paths.to_uri(a.parents[1])) == []
    uploads.download(a)
    assert (a / "epochs.jsonl").read_text() == "1\n2\n3\n", (
        "an older branch does not replace what went on elsewhere"
    )


def test_what_is_left_behind_is_delivered_by_whoever_comes_next(there, machines):
    a = machines("a") / "run" / "trials" / "x"
    a.mkdir(parents=True)
    (a / "notes.txt").write_text("left behind\n")
    SyncedFolder(a, TRIAL).snapshot()  # its process was killed before it delivered
    assert (
        uploads.upload_from_this_node(paths.to_uri(a.parents[1])) == []
        and not SyncedFolder(a, TRIAL).has_pending_upload()
    )
    b = machines("b") / "run" / "trials" / "x"
    uploads.download(b)
    assert (b / "notes.txt").read_text() == "left behind\n"


def test_a_bucket_that_is_away_is_said_once_and_gets_everything_when_it_is_back(
    there, machines, monkeypatch
):
    monkeypatch.setattr(uploads, "LONGEST_PAUSE_S", 0.05)
    a, said, gone = machines("a") / "run" / "trials" / "x", [], [True]
    a.mkdir(parents=True)
    real = RemoteFolder.replace_manifest
    monkeypatch.setattr(
        RemoteFolder,
        "replace_manifest",
        lambda *args: (
            (_ for _ in ()).throw(OSError("no route, key AKIAPLANTED")) if gone[0] else real(*args)
        ),
    )
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAPLANTED")
    uploader = uploads.BackgroundUploader(a, said.append)
    for n in range(3):
        (a / "epochs.jsonl").write_text(f"{n}\n")
        uploader.submit()
        assert uploader.wait() is False
    assert uploader.flush(timeout=0.2) is False
    uploader.close()
    assert (
        len(said) == 1
        and str(a) in said[0]
        and "training goes on" in said[0]
        and "PLANTED" not in said[0]
    )
    again = uploads.BackgroundUploader(a, said.append)
    again.submit()
    gone[0] = False
    assert again.flush(timeout=60)
    again.close()
    b = machines("b") / "run" / "trials" / "x"
    uploads.download(b)
    assert (b / "epochs.jsonl").read_text() == "2\n"


def test_a_bucket_that_does_not_answer_ends_a_command_with_one_sentence(
    machines, monkeypatch, unused_port
):
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(
        "AMLRIS_HOME", f"s3://amlris/team?scheme=http&endpoint_override=127.0.0.1:{unused_port}"
    )
    with pytest.raises(UserError, match="cannot be reached .*; check the endpoint, the bucket"):
        run_module.list_runs(machines("a"))


def test_a_bucket_that_was_silent_just_now_is_asked_again_by_who_insists_alone(
    there, machines, monkeypatch
):
    """Each try takes seconds, so callers that can do without the answer must not wait for each."""
    run, asked, gone = a_run(machines("a")), [], [True]
    real = SyncedFolder.download

    def download(self, *arguments, **how):
        asked.append(self.folder.name)
        if gone[0]:
            raise OSError("AWS Error NETWORK_CONNECTION")
        return real(self, *arguments, **how)

    monkeypatch.setattr(SyncedFolder, "download", download)
    for name in "abc":
        assert "NETWORK_CONNECTION" in uploads.try_download(run.folder / "trials" / name)
    assert asked == ["a"]
    assert uploads.try_download(run.folder / "trials" / "d", exact=True) and asked == ["a", "d"]
    assert loop.restore_from_bucket(run.folder / "trials" / "e") and asked == ["a", "d", "e"], (
        "who starts a trial: from an older state it would take the newer one's place"
    )
    gone[0] = False
    assert (
        uploads.try_download(run.folder / "trials" / "e2", exact=True)
        == uploads.try_download(run.folder / "trials" / "f")
        == ""
    )
    gone[0] = True
    assert uploads.try_download(run.folder / "trials" / "g")
    monkeypatch.setattr(circuit_breaker, "OPEN_S", 0.0)
    circuit_breaker._circuit_open_until.clear()
    assert uploads.try_download(run.folder / "trials" / "h") and uploads.try_download(
        run.folder / "trials" / "i"
    )
    assert asked == ["a", "d", "e", "e2", "f", "g", "h", "i"]


def test_a_bucket_that_takes_nothing_is_said_in_one_sentence(there, machines, monkeypatch):
    run = a_run(machines("a"))

    def refuse(self, name):
        raise OSError(
            "When initiating multiple part upload: AWS Error ACCESS_DENIED during "
            "CreateMultipartUpload operation"
        )

    class ReadOnly:
        def __getattr__(self, name):
            return getattr(real, name)

        open_output_stream = refuse

    store = filesystem.Filesystem(paths.bucket_of(run.folder))
    real, made = store.fs, filesystem.Filesystem.__init__

    def make(self, *arguments, **how):
        made(self, *arguments, **how)
        self.fs = ReadOnly()

    monkeypatch.setattr(filesystem.Filesystem, "__init__", make)
    with (
        pytest.raises(
            UserError,
            match="tiny-01234567/lease.* cannot be reached .*ACCESS_DENIED.*"
            "check the endpoint, the bucket and what AWS_",
        ),
        run.locked(),
    ):
        pass


def test_an_address_with_keys_in_it_is_refused_without_repeating_them(monkeypatch):
    monkeypatch.setenv("AMLRIS_HOME", "s3://AKIAPLANTED:planted@amlris/team")
    with pytest.raises(UserError, match="holds keys") as refused:
        storage_root()
    assert "planted" not in str(refused.value).lower()


def test_relative_shards_are_in_the_bucket_and_absolute_ones_where_they_are(
    there, machines, tmp_path
):
    root = machines("a")
    assert filesystem.Filesystem("data/tiny", root).uri == paths.join_uri(there.uri, "data", "tiny")
    assert filesystem.Filesystem(tmp_path / "data", root).uri == str(tmp_path / "data")


def test_a_run_is_worked_on_by_one_machine_at_a_time(there, machines, monkeypatch):
    run = a_run(machines("a"))
    holder = "elsewhere 7"
    there.put("tiny-01234567/lease", locks.lease_text(pid=7, host="elsewhere").encode())
    renewing = subprocess.Popen(
        [sys.executable, "-c", RENEW, there.uri, holder],
        env={**os.environ},
        stdout=subprocess.PIPE,
        text=True,
        cwd=os.path.dirname(__file__) + "/../../..",
    )
    renewing.stdout.readline()
    with (
        pytest.raises(UserError, match="is being worked on by process 7 of elsewhere"),
        run.locked(),
    ):
        pass
    renewing.kill()
    renewing.wait()
    monkeypatch.setenv("AMLRIS_LEASE_S", "0.3")
    with run.locked():  # silent for four renewals: it has died
        assert there.get("tiny-01234567/lease").decode().split()[0] == socket.gethostname()
    assert not there.has("tiny-01234567/lease")


RENEW = """
import sys, time
from orchestrator.storage import Filesystem
store = Filesystem(sys.argv[1].replace("?", "/tiny-01234567?"))
while True:
    with store.fs.open_output_stream(store.join("lease")) as stream:
        stream.write(f"{sys.argv[2]} {time.time():.0f}".encode())
    print("renewed", flush=True)
    time.sleep(0.2)
"""


def test_a_machine_that_lost_its_disk_goes_on_with_the_ledger(there, machines):
    run = a_run(machines("a"))
    shutil.rmtree(machines("a"))
    again = run_module.find_run(machines("a"), "tiny-01234567")
    with again.locked():
        assert [r["trial"] for r in again.ledger()] == ["off-000"] and again.state == run.state
        again.append(finished("off-001"))
    assert [r["trial"] for r in run_module.find_run(machines("b"), "tiny").ledger()] == [
        "off-000",
        "off-001",
    ]
    assert time.time() - (again.folder / "ledger.jsonl").stat().st_mtime < 3600


def test_a_pruned_run_keeps_its_weights_in_the_bucket_alone(there, machines):
    run = a_run(machines("a"))
    trial = run.folder / "trials" / "off-000"
    for words in (WORDS, [*WORDS, "circle"]):
        save_model(trial / "last", words)
        (trial / "last" / "state.pt").write_bytes(b"optimiser")
    upload(trial, TRIAL)
    with run.locked():
        run.update(state="done")
    listing.prune_runs(machines("b"))
    names = set(json.loads(there.get("tiny-01234567/trials/off-000/trial.manifest.json")))
    assert names == {"last/model.safetensors", "last/config.json", "last/digests.json"}
    assert sum("trials/off-000/objects/" in key for key in objects(there)) == 3


def test_the_driver_leaves_to_others_what_is_theirs(there, machines):
    folder = machines("a") / "run"
    for name in (
        "train.json",
        "lock",
        "last/model.safetensors",
        "tune/x",
        "trials/a/trial.json",
        "trials/a/epochs.jsonl",
        "report/index.html",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    assert set(SyncedFolder(folder, DRIVER).names()) == {
        "train.json",
        "trials/a/trial.json",
        "report/index.html",
    }
    assert set(SyncedFolder(folder, TRIAL).names()) == {"last/model.safetensors"} and set(
        SyncedFolder(folder / "trials" / "a", TRIAL).names()
    ) == {"epochs.jsonl"}


@pytest.mark.parametrize("name", ["../../escaped", "/escaped", "pictures/../../escaped"])
def test_a_manifest_that_names_files_outside_its_folder_is_refused(there, machines, name):
    """A writer of the bucket may not write anywhere on the machines that read it."""
    folder = machines("a") / "little-01234567"
    there.put(
        "little-01234567/trial.manifest.json",
        json.dumps({name: {"pieces": [], "mtime_ns": 0}}).encode(),
    )
    with pytest.raises(UserError, match=r"trial\.manifest\.json that this program did not write"):
        uploads.download(folder)


def test_doctor_says_whether_the_bucket_can_be_used(there, machines, monkeypatch):
    from orchestrator.cli.surroundings import check_surroundings

    machines("a")
    said = hear([])
    check_surroundings()
    assert f"bucket        {paths.join_uri(there.uri)} reachable" in said and objects(there) == {}
    monkeypatch.setenv("AMLRIS_HOME", there.uri.replace(there.name, "nobodys"))
    said.clear()
    assert check_surroundings() == 1 and any(
        line.startswith("bucket        s3://nobodys") and "cannot be used" in line for line in said
    )


def test_a_training_goes_on_on_another_machine_to_the_same_bits(
    there, machines, blocks, rows, tmp_path
):
    experiment = from_dict(TREE)

    def train(folder, until: int) -> list[list[float]]:
        heard, uploader = [], loop.restore_from_bucket(folder)

        def report(metrics):
            heard.append([metrics[name] for name in NUMBERS])
            uploader.submit()
            assert uploader.wait()
            if metrics["epoch"] == until:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            loop.run_training(experiment, lambda: blocks, vocabulary(rows), folder, report)
        uploader.close()
        return heard

    whole = train(tmp_path / "in no bucket", 4)
    first = train(machines("a") / "little-01234567" / "trials" / "off-000", 2)
    second = train(machines("b") / "little-01234567" / "trials" / "off-000", 4)
    assert first == whole[:2] and second == whole[2:]
    uploads.download(
        folder := machines("c") / "little-01234567" / "trials" / "off-000",
        wanted=uploads.without_checkpoints,
    )
    assert [e["epoch"] for e in records.read_history(folder)] == [1, 2, 3, 4]
    assert [p.name for p in (folder / "pictures").iterdir()] == ["epoch-0004.png"] and not (
        folder / "last"
    ).exists()


@pytest.mark.parametrize("value", ["soon", "-1", "nan", "inf"])
def test_a_patience_that_is_no_time_is_refused(monkeypatch, value):
    monkeypatch.setenv("AMLRIS_PATIENCE_S", value)
    with pytest.raises(
        UserError, match=f"^AMLRIS_PATIENCE_S is {value}; give seconds, or unset it for 30$"
    ):
        locks.seconds_setting("AMLRIS_PATIENCE_S", 30)
    monkeypatch.setenv("AMLRIS_PATIENCE_S", "2.5")
    assert locks.seconds_setting("AMLRIS_PATIENCE_S", 30) == 2.5
