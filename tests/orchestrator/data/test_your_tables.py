"""Run the converters that docs/your_tables.md prints, on files in the shape of the data sets."""

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aml.data import rasterise, read_table, referent

PAGE = Path(__file__).parents[3] / "docs" / "your_tables.md"
HEIGHT, WIDTH = 12, 14
HOUSE, ROOF = (1, 2, 5, 6), (7, 8, 11, 12)
"""top, left, bottom, right"""


def recipe(name: str) -> tuple[str, list[str]]:
    """Return the script under a heading of the page, and the arguments of its command."""
    part = PAGE.read_text("utf-8").split(f"\n## {name}\n")[1].split("\n## ")[0]
    (script,) = re.findall(r"```python\n(.*?)```", part, re.S)
    (command,) = re.findall(r"```bash\npython -m orchestrator (.*?)\n```", part, re.S)
    return script, command.split()


def convert(folder: Path, name: str) -> tuple[list[dict], list[str]]:
    """Run a recipe in the current folder; return the rows of its table and its command."""
    script, command = recipe(name)
    exec(compile(script, name, "exec"), {})  # noqa: S102 (the page's own script)
    options = dict(zip(command[1::2], command[2::2], strict=True))
    return read_table(folder / options["--table"], folder / options["--images"]), command


def corners(box):
    top, left, bottom, right = box
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def drawn(*boxes):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    for top, left, bottom, right in boxes:
        mask[top:bottom, left:right] = 1
    return mask


def found(rows) -> dict:
    """Return {(split, sentence): mask}."""
    return {
        (ref["split"], s["sent"]): rasterise(referent(row, ref), HEIGHT, WIDTH)
        for row in rows
        for ref in row["refs"]
        for s in ref["sentences"]
    }


def same(got: dict, wanted: dict) -> None:
    assert got.keys() == wanted.keys()
    for key, mask in wanted.items():
        assert np.array_equal(got[key], mask), key


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AMLRIS_HOME", str(tmp_path / "home"))
    return tmp_path


def pictures(folder: Path, *names: str) -> None:
    folder.mkdir()
    for k, name in enumerate(names):
        Image.new("RGB", (WIDTH, HEIGHT), (90, 40 * k, 60)).save(folder / name)


def test_phrasecut(folder, ray_session):
    pictures(folder / "images", "61512.jpg", "2.jpg")
    both = {"image_id": 61512, "phrase": "buildings", "ann_ids": [5, 6]}
    both["Polygons"] = [[corners(HOUSE), [[0, 0], [1, 1]]], [corners(ROOF)]]
    one = {"image_id": 2, "phrase": "red roof", "ann_ids": [6], "Polygons": [[corners(ROOF)]]}
    Path("refer_train.json").write_text(json.dumps([both]))
    Path("refer_test.json").write_text(json.dumps([one]))
    rows, command = convert(folder, "PhraseCut")
    same(
        found(rows),
        {("train", "buildings"): drawn(HOUSE, ROOF), ("test", "red roof"): drawn(ROOF)},
    )
    assert {row["file_name"]: row["image_id"] for row in rows} == {"61512.jpg": 61512, "2.jpg": 2}
    code, text = ray_session([*command, "--json"])
    assert code == 0, text
    counts = {"refs": 1, "sentences": 1, "images": 1}
    assert json.loads(text.splitlines()[-1])["splits"] == {"train": counts, "test": counts}


def test_ref_zom(folder):
    names = ["COCO_train2014_000000000009.jpg", "COCO_train2014_000000000025.jpg"]
    pictures(folder / "train2014", *names)
    images = [
        {"id": i, "file_name": name, "height": HEIGHT, "width": WIDTH}
        for i, name in zip((9, 25), names, strict=True)
    ]
    annotations = [
        {"id": 5, "image_id": 9, "segmentation": [np.ravel(corners(HOUSE)).tolist()]},
        {"id": 6, "image_id": 9, "segmentation": [np.ravel(corners(ROOF)).tolist()]},
    ]
    for a in annotations:
        a |= {"category_id": 1, "iscrowd": 0}
    content = {"images": images, "annotations": annotations, "categories": []}
    Path("instances.json").write_text(json.dumps(content))
    refs = [
        ref(0, 9, 5, "one", "train", "the house", "a home"),
        ref(1, 9, [5, 6], "others", "train", "both"),
        ref(2, 25, [], "zero", "test", "a boat"),
    ]
    Path("refs(final).p").write_bytes(pickle.dumps(refs, 2))
    rows, _ = convert(folder, "Ref-ZOM")
    house, nothing = drawn(HOUSE), drawn()
    same(
        found(rows),
        {
            ("train", "the house"): house,
            ("train", "a home"): house,
            ("train", "both"): drawn(HOUSE, ROOF),
            ("test", "a boat"): nothing,
        },
    )
    said = {ref["ref_id"]: ref["no_target"] for row in rows for ref in row["refs"]}
    assert said == {0: False, 1: False, 2: True}


def ref(ref_id, image_id, ann_id, source, split, *texts):
    sentences = [{"sent_id": 10 * ref_id + k, "sent": t, "raw": t} for k, t in enumerate(texts)]
    known = {"ref_id": ref_id, "image_id": image_id, "ann_id": ann_id, "source": source}
    return known | {"split": split, "sentences": sentences}
