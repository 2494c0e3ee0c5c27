"""Data of an experiment that are composed of photographs: made once, known by their content."""

import shutil
from pathlib import Path

import pytest

from aml.errors import UserError
from aml.synthetic import generate_dataset
from orchestrator.config.loader import from_dict
from orchestrator.data import convert, mixture, shard_file


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Return a folder with instances.json and its pictures, drawn ones as stand-ins."""
    out = tmp_path_factory.mktemp("source")
    generate_dataset(out / "drawn", images=60, size=240, seed=0, workers=1)
    shutil.copytree(out / "drawn/images/train2014", out / "photographs")
    shutil.copy(out / "drawn/refcoco/instances.json", out / "instances.json")
    return out


@pytest.fixture
def without_ray(monkeypatch):
    """Write shards in this process."""
    monkeypatch.setattr(convert.cluster, "init_ray", lambda: None)

    def convert_here(files, out, skip_unreadable, on_driver, *more):
        return {
            name: shard_file.write_file(out, name, lines, skip_unreadable, *more)
            for name, lines in files.items()
        }

    monkeypatch.setattr(convert, "_convert", convert_here)


def settings(root: Path, source: Path, **synth):
    files = {"cutouts": str(source / "instances.json"), "photographs": str(source / "photographs")}
    tree = {"train": "shards", "synth": {"images": 16, "size": 64, **files, **synth}}
    return from_dict({"name": "x", "data": tree, "storage": {"root": str(root)}}).data


def test_data_are_composed_once_and_used_again(tmp_path, source, without_ray, monkeypatch):
    sources = mixture.prepare_sources(settings(tmp_path, source), tmp_path)
    assert {"train", "val", "testA", "testB"} <= sources.manifest["splits"].keys()
    key = sources.manifest["synth"]["cutouts"]
    assert [path.name for path in (tmp_path / "generated").glob("refcoco*")] == [
        f"refcoco-16-64-0-{key}"
    ]
    monkeypatch.setattr(convert, "make_synthetic", None)
    again = mixture.prepare_sources(settings(tmp_path, source), tmp_path)
    assert again.manifest == sources.manifest

    moved = tmp_path / "moved"
    shutil.copytree(source / "photographs", moved / "photographs")
    shutil.copy(source / "instances.json", moved)
    assert mixture.check_sources(settings(tmp_path, moved), tmp_path), "the same content elsewhere"
    shutil.rmtree(moved)
    assert mixture.check_sources(settings(tmp_path, moved), tmp_path), "the originals are gone"

    shutil.copytree(source / "photographs", moved / "photographs")
    text = (source / "instances.json").read_text()
    (moved / "instances.json").write_text(text + " ")
    for other in ({"seed": 1}, {"cutouts": None, "photographs": None}):
        with pytest.raises(UserError, match="was generated with"):
            mixture.check_sources(settings(tmp_path, source, **other), tmp_path)
    with pytest.raises(UserError, match="was generated with"):
        mixture.check_sources(settings(tmp_path, moved), tmp_path)


@pytest.mark.parametrize(
    ("synth", "says"),
    [
        ({"photographs": None}, "belong together"),
        ({"cutouts": None}, "belong together"),
        ({"cutouts": "nowhere.json"}, "nowhere.json is no file"),
        ({"photographs": "nowhere"}, "nowhere is no folder"),
        ({"cutouts": 3}, "data.synth.cutouts is 3"),
    ],
)
def test_missing_photographs_are_refused_before_anything_starts(tmp_path, source, synth, says):
    with pytest.raises(UserError, match=says):
        mixture.check_sources(settings(tmp_path, source, **synth), tmp_path)
    assert not list(tmp_path.iterdir())
