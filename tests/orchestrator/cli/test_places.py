"""Where commands write: the places and addresses that each refuses at once, touching nothing."""

import json

import numpy as np
import pytest
from PIL import Image

from aml.files import MARKER
from orchestrator import cluster
from orchestrator.cli.app import main
from orchestrator.cli.options import named_shards
from orchestrator.storage import listing
from tests.support.hearing import hear

CHECKPOINT, SHARDS = "CHECKPOINT", "SHARDS"
SHARD = ["shard", "--refer-root", "REFER", "--images", "REFER/images"]
PREDICT = ["predict", CHECKPOINT, "--image", "PICTURE", "--text", "the red star"]
PREVIEW = ["preview", "e.yaml", "storage.root=HERE", "data.train=SHARDS"]

FOLDERS = {
    "synth": ["synth"],
    "shard": [*SHARD, "--out"],
    "evaluate": ["evaluate", CHECKPOINT, "--data", SHARDS, "--out"],
    "predict": [*PREDICT, "--text", "the left one", "--out"],
    "report": ["report", "run", "--out"],
}
FILES = {
    "predict": [*PREDICT, "--out"],
    "overlay": [*PREDICT, "--overlay"],
    "probability": [*PREDICT, "--probability"],
    "show": ["data", "show", SHARDS, "--out"],
    "preview": [*PREVIEW, "--out"],
}
EVERY = [*FOLDERS.values(), *FILES.values()]


@pytest.fixture
def there(data, tmp_path, monkeypatch, capsys):
    """Return a function that runs a command in a folder with somebody else's files.

    It returns the exit code and the sentence, and fails where Ray is started or a file changes.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cluster, "init_ray", lambda: pytest.fail("Ray was started"))
    (tmp_path / "e.yaml").write_text("name: e\ndata: {size: 64}\nmodel: {name: small}\n")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "train.json").write_text('{"state": "done"}')
    (tmp_path / "theirs").mkdir()
    for name in ("sales.parquet", "draft.tmp", "metrics.json", "index.html", "vocabulary.json"):
        (tmp_path / "theirs" / name).write_text("somebody else's")
    (tmp_path / "thesis.pdf").write_text("%PDF")
    (tmp_path / "link.png").symlink_to("thesis.pdf")
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(tmp_path / "picture.png")
    words = {
        "REFER": data.root,
        "PICTURE": tmp_path / "picture.png",
        "HERE": tmp_path,
        CHECKPOINT: data.checkpoint,
        SHARDS: data.store.path,
    }

    def state():
        found = [p for p in sorted(tmp_path.rglob("*")) if p.is_file()]
        return {str(p): p.read_bytes() for p in found}

    def run(command, *more):
        before = state()
        arguments = []
        for text in [*command, *more]:
            for word, value in words.items():
                text = text.replace(word, str(value))
            arguments.append(text)
        with pytest.raises(SystemExit) as left:
            main(arguments)
        said = capsys.readouterr()
        assert state() == before and "Traceback" not in said.err
        return left.value.code, said.out + said.err

    return run


def refused(result, says):
    code, text = result
    errors = [line for line in text.splitlines() if line.lower().startswith("error: ")]
    assert code == 2 and len(errors) == 1 and says in errors[0], text


@pytest.mark.parametrize("command", FOLDERS.values(), ids=FOLDERS)
def test_a_folder_of_somebody_elses_is_refused_and_stays_as_it_is(there, command):
    refused(there(command, "HERE/theirs"), "draft.tmp (5 files and folders")


@pytest.mark.parametrize("command", FOLDERS.values(), ids=FOLDERS)
def test_a_file_is_no_folder(there, command):
    refused(there(command, "HERE/thesis.pdf"), "is a file, and a folder is wanted")


@pytest.mark.parametrize("command", FILES.values(), ids=FILES)
@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("HERE/theirs", "is a folder, and a file is wanted"),
        ("HERE/thesis.pdf", "was not made by this program"),
        ("HERE/link.png", "is a link"),
        ("PICTURE", ""),
    ],
)
def test_a_file_of_somebody_elses_is_refused_and_stays_as_it_is(there, command, place, says):
    refused(there(command, place), says)


@pytest.mark.parametrize("command", EVERY, ids=[*FOLDERS, *FILES])
def test_places_that_cannot_be_written_are_refused_by_every_command(there, command):
    refused(there(command, "/proc/x"), "/proc/x cannot be written")
    refused(there(command, "/dev/null/x"), "/dev/null")
    refused(there(command, "HERE/" + "n" * 300), "has a name of 300 bytes")
    refused(there(command, "gs://bucket/x"), "gs:")
    assert there(command, "")[0] == 2


def test_one_file_is_not_written_for_two_results(there):
    refused(there([*PREDICT, "--out", "x.png", "--overlay", "x.png"]), "is --out, too")
    refused(
        there(FOLDERS["evaluate"], "HERE/b", "--corrupt", "fog:1", "--baseline", "HERE/b"),
        "is the baseline itself",
    )


def test_shards_are_those_of_the_current_folder_else_a_data_set_of_the_results(
    tmp_path, monkeypatch
):
    (tmp_path / "here" / "sub").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("AMLRIS_HOME", str(tmp_path / "results"))
    said = hear([])

    def found(text):
        return named_shards(text).path

    assert found("data/mine") == str(tmp_path / "results" / "data" / "mine")
    (tmp_path / "here" / "data" / "mine").mkdir(parents=True)  # files of another kind
    assert found("data/mine") == str(tmp_path / "results" / "data" / "mine")
    (tmp_path / "here" / "data" / "mine" / "_COMPLETE.json").touch()
    assert found("data/mine") == str(tmp_path / "here" / "data" / "mine") and not said
    (tmp_path / "results" / "data" / "mine").mkdir(parents=True)
    (tmp_path / "results" / "data" / "mine" / "_COMPLETE.json").touch()
    assert found("data/mine") == str(tmp_path / "here" / "data" / "mine")
    assert f"not {tmp_path}/results/data/mine, which holds shards as well" in said[0]
    assert found("./new") == str(tmp_path / "here" / "new")
    monkeypatch.chdir(tmp_path / "here" / "sub")
    assert found("../new") == str(tmp_path / "here" / "new")
    assert found(str(tmp_path / "x")) == str(tmp_path / "x")


def test_what_was_written_is_said_with_its_whole_path(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        main(["data", "show", data.store.path, "--n", "1", "--out", "new/page.html"])
    assert left.value.code == 0
    assert f"wrote {tmp_path / 'new' / 'page.html'}\n" in capsys.readouterr().out
    assert (tmp_path / "new" / "page.html").is_file()


ADDRESSES = [
    "~no-such-user/x",
    "gcs://b/x",
    "http://h/x",
    "file:///x",
    "abfs://container/x",
    "s3://",
    "s3:b",
    "gs:/b",
    "S3://b",
]


@pytest.mark.parametrize("address", ADDRESSES)
def test_addresses_that_are_not_served_are_refused_wherever_one_is_given(
    there, address, monkeypatch
):
    says = "give a folder, s3://BUCKET/PREFIX"
    refused(there(["data", "show", address]), says)
    refused(there([*SHARD, "--out", address]), says)
    refused(there(["shard", "--verify", address]), says)
    refused(there(["rank", CHECKPOINT, "--data", address]), says)
    refused(there(["evaluate", CHECKPOINT, "--data", address, "--out", "new"]), says)
    refused(there(["train", "e.yaml", f"data.train={address}"]), says)
    refused(there(["sweep", "e.yaml", "data.train=x", f"storage.root={address}"]), says)
    monkeypatch.setenv("AMLRIS_HOME", address)
    for command in (["runs"], ["prune"], ["doctor"], ["compare", "a", "b"], ["predict", "x"]):
        more = ["--image", "PICTURE", "--text", "x"] if command[0] == "predict" else []
        refused(there(command, *more), f"AMLRIS_HOME is {address}"[:14])


@pytest.mark.parametrize("home", ["HERE/thesis.pdf", "/proc/x", "/dev/null/x"])
def test_a_home_that_cannot_be_written_is_refused_before_anything_starts(
    there, home, monkeypatch, tmp_path
):
    monkeypatch.setenv("AMLRIS_HOME", home.replace("HERE", str(tmp_path)))
    for command in ("train", "sweep"):
        refused(there([command, "e.yaml", "data.train=SHARDS"]), home.replace("HERE", ""))


def test_a_tracking_store_that_is_no_database_is_refused_and_stays(there):
    for command in ("train", "sweep"):
        settings = ["e.yaml", "storage.root=HERE", "data.train=SHARDS"]
        for store in ("HERE/thesis.pdf", "HERE/theirs", "/proc/x/mlflow.db"):
            result = there([command, *settings, f"tracking.uri=sqlite:///{store}"])
            refused(result, "the tracking store")


def test_pruning_leaves_folders_that_are_no_runs_and_files_that_are_not_its_own(tmp_path):
    theirs = ["project/train.json", "project/chapter.draft", "project/last/state.pt"]
    kept = ["run/notes.draft", "run/mine/state.pt", "run/last/model.safetensors"]
    gone = ["run/last/state.pt", "run/best.previous/x", "run/trials/a/last/state.pt", "run/ray/x"]
    for name in [*theirs, *kept, *gone, "run/train.json", "elsewhere/last/state.pt"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('{"state": "done"}')
    (tmp_path / "run" / "train.json").write_text(
        json.dumps({"state": "done", "run": "run", "kind": "train"})
    )
    (tmp_path / "run" / "best").symlink_to(tmp_path / "elsewhere" / "last")
    listing.prune_runs(tmp_path)
    left = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert left >= {*theirs, *kept, "elsewhere/last/state.pt"} and not left & set(gone)


def test_results_of_a_command_are_written_again_by_the_same_command(
    data, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save("picture.png")
    one = ["predict", str(data.checkpoint), "--image", "picture.png", "--text", "the red star"]
    for command in (
        ["data", "show", str(data.store.path)],
        [*one, "--overlay", "overlay.png"],
        [*one, "--text", "the left one"],
        ["synth", "generated", "--images", "8", "--size", "32"],
    ):
        for _ in range(2):
            with pytest.raises(SystemExit) as left:
                main(command)
            assert left.value.code == 0, capsys.readouterr()
    assert (tmp_path / "predictions" / MARKER).is_file()
