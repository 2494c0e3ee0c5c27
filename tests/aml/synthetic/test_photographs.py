"""Scenes composed of photographs: splits, masks, sentences, files and refusals.

Sentences are judged by rules of the tests' own, from the annotation file alone.
"""

import json
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aml.data import rasterise, read_refer
from aml.errors import UserError
from aml.files import MARKER
from aml.synthetic import compose_dataset, generate_dataset, refer_files
from aml.synthetic.meaning import POSITION_WORDS
from aml.synthetic.photographs import backgrounds, colours, dataset as composed, material
from aml.synthetic.photographs.words import confusable
from tests.support.referring import LINKS, kinds_of, meant, things_by_image

SIZE = 128

PICTURES = {"refcoco": 240, "refcoco+": 110, "refcocog": 130}

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools


@pytest.fixture(scope="module")
def coco128(real_data) -> tuple[Path, Path]:
    """Return the annotation file and the folder of 128 photographs."""
    return real_data / "coco128/instances_train2017.json", real_data / "coco128/images"


@pytest.fixture(scope="module")
def found(coco128) -> material.Material:
    """Return the photographs and cut-outs of coco128, read once."""
    return material.read_material(*coco128, seed=3)


@pytest.fixture(scope="module")
def made(coco128, found, tmp_path_factory) -> Path:
    """Return a folder with the three data sets."""
    out = tmp_path_factory.mktemp("composed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(composed, "read_material", lambda *_: found)
        for name, pictures in PICTURES.items():
            compose_dataset(out, *coco128, name, pictures, SIZE, seed=3, workers=1)
    return out


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> tuple[Path, Path]:
    """Return the annotation file and the pictures of drawn scenes, as stand-ins of photographs."""
    out = tmp_path_factory.mktemp("drawn")
    generate_dataset(out, "refcoco", images=60, size=240, seed=0, workers=1)
    return out / "refcoco/instances.json", out / "images/train2014"


def load(out: Path, name: str) -> tuple[list[dict], dict]:
    file = "refs(umd).p" if name == "refcocog" else "refs(unc).p"
    refs = pickle.loads((out / name / file).read_bytes())
    return refs, json.loads((out / name / "instances.json").read_text())


def tree(out: Path) -> dict[str, bytes]:
    files = (p for p in out.rglob("*") if p.is_file() and p.name != MARKER)
    return {str(p.relative_to(out)): p.read_bytes() for p in files}


def test_the_same_input_gives_the_same_bytes(drawn, tmp_path):
    for name, workers, seed in (("one", 1, 5), ("two", 2, 5), ("other", 1, 6)):
        compose_dataset(tmp_path / name, *drawn, "refcoco", 16, 64, seed=seed, workers=workers)
    one, two, other = (tree(tmp_path / name) for name in ("one", "two", "other"))
    assert one == two and len(one) == 18
    assert one.keys() == other.keys() and all(one[key] != other[key] for key in one)


def test_no_photograph_contributes_to_two_splits(made):
    for name in PICTURES:
        refs, coco = load(made, name)
        split = {ref["image_id"]: ref["split"] for ref in refs}
        used: dict[int, set[str]] = {}
        for image in coco["images"]:
            for photograph in image["photographs"]:
                used.setdefault(photograph, set()).add(split.get(image["id"], "none"))
        several = [splits - {"none"} for splits in used.values() if len(splits - {"none"}) > 1]
        assert used and not several
        sources = {image["id"]: set(image["photographs"]) for image in coco["images"]}
        for annotation in coco["annotations"]:
            assert annotation["attributes"]["photograph"] in sources[annotation["image_id"]]
        assert set(split.values()) == (
            {"train", "val", "test"} if name == "refcocog" else {"train", "val", "testA", "testB"}
        )


def test_test_splits_hold_people_and_others(made):
    refs, coco = load(made, "refcoco")
    names = {category["id"]: category["name"] for category in coco["categories"]}
    found = {
        split: {names[ref["category_id"]] for ref in refs if ref["split"] == split}
        for split in ("testA", "testB")
    }
    assert found["testA"] == {"person"}
    assert len(found["testB"]) > 3 and "person" not in found["testB"]


def test_masks_are_the_visible_opaque_pixels(found, made):
    """Paste the objects again with nothing but their opacities."""
    _, coco = load(made, "refcoco")
    hidden = 0
    for index in range(24):
        scene = composed._scene(found, 3, index, SIZE)
        mine = [a for a in coco["annotations"] if a["image_id"] == index + 1]
        height, width = scene.labels.shape
        opacity = []
        for pasted in scene.objects:
            layer = Image.new("L", (width, height))
            layer.paste(pasted.pixels.getchannel("A"), (pasted.left, pasted.top))
            opacity.append(np.asarray(layer) >= 128)
        assert len(mine) == len(opacity) >= 3
        for number, annotation in enumerate(mine):
            later = np.any([np.zeros((height, width), bool), *opacity[number + 1 :]], axis=0)
            visible = opacity[number] & ~later
            row = {"size": [height, width]}
            assert np.array_equal(decode(annotation, row["size"]), visible)
            assert annotation["area"] == visible.sum() >= 0.7 * opacity[number].sum()
            hidden += bool((opacity[number] & later).any())
    assert hidden > 5, "nothing lies over anything, so the bound was not tried"


def decode(annotation: dict, size: list[int]) -> np.ndarray:
    from pycocotools import mask

    return mask.decode(mask.merge(mask.frPyObjects(annotation["segmentation"], *size))) > 0


def test_backgrounds_show_nothing_of_what_is_pasted(found):
    """Hold the crops against the photographs' own annotations."""
    pool = found.pools["train"]
    rng = random.Random(0)
    tried = 0
    for pasted in (["person"], ["car", "cup"], ["dog"], ["chair", "bird"]):
        banned = frozenset().union(*map(confusable, pasted))
        for photograph in pool.photographs:
            box = backgrounds._crop(rng, photograph, banned, 240)
            if box is None:
                continue
            tried += 1
            left, top, right, bottom = box
            for thing in photograph.things:
                mask = rasterise(thing.rle, photograph.height, photograph.width)
                share = mask[top:bottom, left:right].mean()
                assert share <= 0.12
                assert share == 0 or thing.category not in banned
    assert tried > 30


def test_every_sentence_means_one_object(made):
    judged = 0
    kinds: dict[str, int] = {}
    for name in PICTURES:
        refs, coco = load(made, name)
        things = things_by_image(coco)
        for ref in refs:
            for sentence in ref["sentences"]:
                said = sentence["sent"]
                sure, possible = meant(said, things[ref["image_id"]])
                found = [one["id"] for one in sure], [one["id"] for one in possible]
                assert found == ([ref["ann_id"]], [ref["ann_id"]]), (name, ref["image_id"], said)
                judged += 1
                for kind in kinds_of(said):
                    kinds[kind] = kinds.get(kind, 0) + 1
    assert judged > 2000
    rare = {"below", "closest", "dressed"}
    wanted = {"plain", "first", "rank", "colour", "place", "size big", "size small", *LINKS}
    assert {kind for kind in wanted - rare if kinds.get(kind, 0) < 15} == set(), kinds
    assert all(kinds.get(kind, 0) > 2 for kind in rare), kinds


def test_colours_are_those_of_the_pixels(made):
    """Hold colour words against the mean of the referent's pixels in the JPEG."""
    refs, coco = load(made, "refcoco")
    annotations = {a["id"]: a for a in coco["annotations"]}
    images = {i["id"]: i for i in coco["images"]}
    checked = 0
    for ref in refs:
        colour = annotations[ref["ann_id"]]["attributes"]["colour"]
        if colour not in (" ".join(s["sent"] for s in ref["sentences"])).split():
            continue
        image = images[ref["image_id"]]
        picture = Image.open(made / "images/train2014" / image["file_name"]).convert("RGB")
        mask = decode(annotations[ref["ann_id"]], [image["height"], image["width"]])
        red, green, blue = np.asarray(picture, float)[mask].mean(0)
        spread = max(red, green, blue) - min(red, green, blue)
        bright = (red + green + blue) / 3
        assert {
            "black": bright < 85,
            "white": bright > 150 and spread < 60,
            "gray": 50 < bright < 200 and spread < 45,
            "red": red > max(green, blue) + 30,
            "orange": red > green > blue and spread > 50,
            "yellow": min(red, green) > blue + 30,
            "green": green > max(red, blue),
            "blue": blue > red,
            "purple": min(red, blue) > green,
            "pink": red > green and blue > 0.6 * green,
            "brown": red > green > blue and bright < 140,
        }[colour], (ref["image_id"], colour, red, green, blue)
        checked += 1
    assert checked > 30


def test_sentences_are_like_those_of_the_data_sets(made):
    said = {
        name: [s["tokens"] for ref in load(made, name)[0] for s in ref["sentences"]]
        for name in PICTURES
    }
    assert 2.8 < np.mean([len(tokens) for tokens in said["refcoco"]]) < 4.2
    assert 6.5 < np.mean([len(tokens) for tokens in said["refcocog"]]) < 10
    assert not any(POSITION_WORDS & set(tokens) for tokens in said["refcoco+"])
    articles = [
        pair for tokens in said["refcocog"] for pair in zip(tokens, tokens[1:], strict=False)
    ]
    assert not [pair for pair in articles if pair[0] == "a" and pair[1][0] in "aeiou"]


def test_files_are_read_back(made):
    for name in PICTURES:
        split_by = "umd" if name == "refcocog" else "unc"
        rows = read_refer(made, made / "images", name, split_by)
        refs, coco = load(made, name)
        assert sum(len(row["refs"]) for row in rows) == len(refs)
        assert [path.name for path in (made / name).glob("refs*")] == [f"refs({split_by}).p"]
        picture = Image.open(rows[0]["path"])
        assert picture.size == (rows[0]["width"], rows[0]["height"]) and max(picture.size) == SIZE
        categories = {category["name"] for category in coco["categories"]}
        assert {o["category"] for row in rows for o in row["objects"]} <= categories


@pytest.mark.parametrize(
    "given, colour",
    [
        ((200, 30, 35), "red"),
        ((30, 60, 190), "blue"),
        ((40, 130, 50), "green"),
        ((12, 12, 14), "black"),
        ((240, 240, 238), "white"),
        ((128, 128, 128), "gray"),
        ((240, 215, 40), "yellow"),
        ((95, 60, 30), "brown"),
        ((150, 110, 120), None),
    ],
)
def test_colours_of_plain_patches(given, colour):
    patch = np.full((500, 3), given, np.uint8)
    assert colours.measure_colour(patch)[0] == colour
    half = np.concatenate([patch, np.full((500, 3), (90, 200, 210), np.uint8)])
    certain, maybe = colours.measure_colour(half[:-40])
    assert certain in (colour, None) and (colour in maybe or colour == certain or colour is None)


def changed(drawn, tmp_path, change) -> Path:
    """Return a copy of the annotation file after `change` was applied to its content."""
    coco = json.loads(drawn[0].read_text())
    change(coco)
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(coco))
    return path


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda coco: coco["images"].append({**coco["images"][0], "id": 999, "file_name": "x.jpg"}),
         "1 of 61 photographs .* x.jpg"),
        (lambda coco: coco["images"][0].update(width=20, height=20), "20 x 20|cannot be drawn"),
        (lambda coco: [a.update(iscrowd=1) for a in coco["annotations"]], "can be cut out"),
        (lambda coco: coco.update(annotations=[]), "it has none"),
        (lambda coco: coco.pop("annotations"), "lacks annotations"),
        (lambda coco: coco.update(images=coco["images"][:9]), "too few"),
        (lambda coco: [a.update(category_id=1) for a in coco["annotations"]], "beside circle"),
        (lambda coco: [c.update(name="left arm") for c in coco["categories"]], "cannot be said"),
        (lambda coco: [c.update(name=" _") for c in coco["categories"]], "cannot be said"),
    ],
)  # fmt: skip
def test_useless_material_is_refused_before_anything_is_written(drawn, tmp_path, change, told):
    path = changed(drawn, tmp_path, change)
    with pytest.raises(UserError, match=told):
        compose_dataset(tmp_path / "out", path, drawn[1], images=8, size=64)
    assert not (tmp_path / "out").exists()


def test_missing_and_damaged_files_are_refused(drawn, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UserError, match="is no file"):
        compose_dataset(out, tmp_path / "none.json", drawn[1], images=8)
    with pytest.raises(UserError, match="is no folder"):
        compose_dataset(out, drawn[0], tmp_path / "none", images=8)
    folder = tmp_path / "photographs"
    folder.mkdir()
    for path in drawn[1].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    damaged = sorted(folder.iterdir())[4]
    damaged.write_bytes(damaged.read_bytes()[:900])
    with pytest.raises(UserError, match=damaged.name):
        compose_dataset(out, drawn[0], folder, images=8)
    assert not out.exists()


def test_other_pictures_in_the_folder_are_refused(drawn, tmp_path):
    compose_dataset(tmp_path, *drawn, images=8, size=64, seed=1, workers=1)
    before = tree(tmp_path)
    compose_dataset(tmp_path, *drawn, images=8, size=64, seed=1, workers=1)
    assert tree(tmp_path) == before
    with pytest.raises(UserError, match="empty folder"):
        compose_dataset(tmp_path, *drawn, images=8, size=64, seed=2, workers=1)


def test_crowded_photographs_are_refused(drawn, tmp_path, monkeypatch):
    monkeypatch.setattr(backgrounds, "LARGEST_OWN", 0.0)
    with pytest.raises(UserError, match="too crowded"):
        compose_dataset(tmp_path / "out", *drawn, images=8, size=64, workers=1)
    assert not (tmp_path / "out").exists()


def test_pictures_larger_than_the_photographs_are_refused(drawn, tmp_path):
    with pytest.raises(UserError, match="larger photographs"):
        compose_dataset(tmp_path / "out", *drawn, images=8, size=2000, workers=1)
    assert not (tmp_path / "out").exists()


def test_the_key_of_the_content_follows_the_files_and_not_their_place(drawn, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in drawn[1].iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    assert material.content_key(drawn[0], copy) == material.content_key(*drawn)
    next(copy.iterdir()).unlink()
    assert material.content_key(drawn[0], copy) != material.content_key(*drawn)


def test_google_splits_are_written_for_drawn_scenes_alone(drawn, made):
    """A split of refcocog by Google divides a picture among splits."""
    assert "google" in refer_files.SPLIT_BYS["refcocog"]
    assert not (made / "refcocog" / "refs(google).p").exists()
