"""`init` writes an experiment that runs as it is, for what it finds, and keeps others' files."""

import csv
import re
import shlex
import shutil

import pytest
from PIL import Image

from orchestrator.cli.app import main
from orchestrator.config import check_sweep, load
from orchestrator.proposal import Machine, experiment_file, propose
from tests.support.stores import write_store


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Return an empty current folder whose results go to its own runs/."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as left:
        main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return left.value.code or 0, captured.out + captured.err


def named_commands(file):
    """Return the arguments of the commands that an experiment's file names, in order."""
    lines = re.findall(r"^#     python -m orchestrator (.*)$", file.read_text(), re.M)
    return [shlex.split(line) for line in lines]


def write_table(path, scenes, splits=("train", "val")):
    """Write a table of as many lines a split as there are pictures; masks are polygons."""
    pictures = sorted((scenes / "images" / "train2014").iterdir())[:16]
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "expression", "mask", "split"])
        for split in splits:
            for number, picture in enumerate(pictures[:: len(splits)]):
                (path.parent / picture.name).write_bytes(picture.read_bytes())
                rows.writerow([picture.name, f"thing {number}", "[[1,1,9,1,9,9]]", split])


def test_a_refer_folder_is_found_and_the_named_commands_run(place, scenes, ray_session, capsys):
    shutil.copytree(scenes, place / "my data")
    code, text = run(capsys, "init", "mine")
    assert code == 0 and "found refcoco (unc) in my data: " in text
    shard, dry, sweep = named_commands(place / "mine.yaml")
    assert shard[0] == "shard" and sweep == ["sweep", "mine.yaml"] and dry == [*sweep, "--dry-run"]
    for command in (shard, dry):
        code, text = ray_session(command)
        assert code == 0, text
    assert "mine: 18 trials of 40 epochs" in text
    experiment = load(place / "mine.yaml")
    assert experiment.data.train == "data/mine" and experiment.data.size == 64
    assert experiment.train.batch == 8, "76 refs are 9 steps of 8 an epoch"


def test_tables_and_shards_are_found(place, scenes, rows, capsys):
    (place / "pictures").mkdir()
    write_table(place / "pictures" / "mine.csv", scenes)
    (place / "notes.csv").write_text("a,b\n1,2\n")
    write_store(place / "ready", rows)
    code, text = run(capsys, "init", "one")
    assert code == 0 and "found table pictures/mine.csv: train 8 sentences, val 8" in text
    assert "also found, not used: shards of refcoco (unc) in ready" in text
    assert "notes.csv" not in text
    (shard, *_) = named_commands(place / "one.yaml")
    assert shard == ["shard", "--table", "pictures/mine.csv", "--out", "data/one"]
    code, text = run(capsys, "init", "two", "--data", "ready")
    assert code == 0 and len(named_commands(place / "two.yaml")) == 2
    experiment = load(place / "two.yaml")
    check_sweep(experiment)
    assert experiment.data.train == str(place / "ready")
    assert (experiment.model["name"], experiment.data.size) == ("small", 64), "96 px in shards"
    code, text = run(capsys, *named_commands(place / "two.yaml")[0])
    assert code == 0 and "two: 18 trials" in text


def test_photographs_get_the_pretrained_encoders_that_are_installed(
    place, scenes, capsys, monkeypatch
):
    write_table(place / "mine.csv", scenes)
    for picture in place.glob("*.jpg"):
        Image.open(picture).resize((320, 240)).save(picture)
    for installed, model in ((True, "compose"), (False, "small")):
        monkeypatch.setattr(experiment_file, "has_photo_encoders", lambda here=installed: here)
        code, text = run(capsys, "init", model)
        assert code == 0 and f"proposed: model {model} (" in text
        assert load(place / f"{model}.yaml").model["name"] == model
    assert "pip install '.[photos]'" in (place / "small.yaml").read_text()


def test_without_data_scenes_are_generated_but_a_folder_must_hold_some(place, scenes, capsys):
    code, text = run(capsys, "init", "new")
    assert code == 0 and "no data were found" in text
    assert load(place / "new.yaml").data.synth.images == 1400
    (place / "tests_only").mkdir()
    write_table(place / "tests_only" / "mine.csv", scenes, splits=["test"])
    code, text = run(capsys, "init", "other", "--data", "tests_only")
    assert code == 2 and "no split train (its splits are test)" in text
    assert not (place / "other.yaml").exists()
    for wrong in ("a b", "../x", "a'b", ""):
        assert run(capsys, "init", wrong)[0] == 2


def test_files_of_others_and_changed_ones_stay(place, capsys):
    for text in ("name: mine\n", "# made by amlris init (00000000)\nname: mine\n"):
        (place / "mine.yaml").write_text(text)
        code, said = run(capsys, "init", "mine")
        assert code == 2 and "mine.yaml" in said and (place / "mine.yaml").read_text() == text
    (place / "mine.yaml").unlink()
    assert run(capsys, "init", "mine")[0] == 0
    written = (place / "mine.yaml").read_text()
    assert run(capsys, "init", "mine")[0] == 0, "its own file, unchanged, is written again"
    (place / "mine.yaml").write_text(written.replace("seed: 0", "seed: 1", 1))
    code, said = run(capsys, "init", "mine")
    assert code == 2 and "was changed since" in said
    assert "seed: 1" in (place / "mine.yaml").read_text()


def test_sizes_fit_the_machine():
    laptop = propose(Machine(8, 0, 9.0), refs=42_404, val_sentences=10_834, side=640)
    assert (laptop.size, laptop.batch, laptop.epochs) == (112, 16, 4)
    assert laptop.max_concurrent == 4, "9 GiB hold four trials of 2"
    assert laptop.val_limit == 800 and laptop.gpus_per_worker == 0
    server = propose(Machine(32, 4, 200.0), refs=42_404, val_sentences=10_834, side=640)
    assert (server.size, server.batch, server.epochs) == (224, 64, 10)
    assert (server.max_concurrent, server.cpus_per_worker, server.gpus_per_worker) == (4, 4, 1)
    assert server.val_limit is None
    assert {laptop.model, server.model} == {"small"} and "not installed" in laptop.why
    photos = propose(Machine(8, 0, 9.0), 42_404, 10_834, side=640, photo_encoders=True)
    assert (photos.model, photos.size, photos.max_concurrent) == ("compose", 160, 3)
    assert photos.epochs == 4 and "pretrained encoders" in photos.why
    drawn = propose(Machine(8, 0, 9.0), 42_404, 10_834, side=96, photo_encoders=True)
    assert (drawn.model, drawn.size) == ("small", 64) and "96 px" in drawn.why
    tiny = propose(Machine(1, 0, 0.5), refs=50, val_sentences=20, side=96)
    assert (tiny.size, tiny.batch, tiny.epochs, tiny.max_concurrent) == (64, 4, 40, 1)
