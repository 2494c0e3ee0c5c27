"""Test the generated data sets: format, determinism, unique sentences, statistics, masks."""

import json
import pickle
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from aml.errors import UserError
from aml.files import MARKER
from aml.synthetic import grammar, meaning, pictures, refer_files, scenes as scenes_module

IMAGES, SIZE = 60, 96


def load(out, dataset="refcoco", split_by="unc"):
    """Return (refs, instances) as the files hold them."""
    with open(out / dataset / f"refs({split_by}).p", "rb") as file:
        return pickle.load(file), json.loads((out / dataset / "instances.json").read_text())


def by_id(records):
    return {r["id"]: r for r in records}


def tree(out):
    return {
        str(p.relative_to(out)): p.read_bytes() for p in sorted(Path(out).rglob("*")) if p.is_file()
    }


def sentences(refs):
    return [s for r in refs for s in r["sentences"]]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return the folder with all three data sets, and {data set: returned counts}."""
    out = tmp_path_factory.mktemp("synthetic")
    return out, {
        d: refer_files.generate_dataset(out, d, IMAGES, SIZE, seed=3, workers=1)
        for d in pictures.SPLIT_BYS
    }


@pytest.mark.parametrize(
    "dataset, split_by",
    [("refcoco", "unc"), ("refcoco+", "unc"), ("refcocog", "umd"), ("refcocog", "google")],
)
def test_refer_format(made, dataset, split_by):
    out, _ = made
    refs, coco = load(out, dataset, split_by)
    images, annotations, categories = (
        by_id(coco[k]) for k in ("images", "annotations", "categories")
    )
    assert set(coco) == {"info", "licenses", "images", "annotations", "categories"}
    assert len(images) == IMAGES and len(annotations) == len(coco["annotations"])
    assert [r["ref_id"] for r in refs] == list(range(len(refs)))
    assert [n for r in refs for n in r["sent_ids"]] == list(range(len(sentences(refs))))
    for ref in refs:
        assert set(ref) == {
            "sent_ids",
            "file_name",
            "ann_id",
            "ref_id",
            "image_id",
            "split",
            "sentences",
            "category_id",
        }
        annotation = annotations[ref["ann_id"]]
        image = images[ref["image_id"]]
        assert (
            annotation["image_id"] == ref["image_id"]
            and annotation["category_id"] == ref["category_id"]
        )
        suffix = ref["ann_id"] if dataset == "refcocog" else ref["ref_id"]
        assert ref["file_name"] == image["file_name"].replace(".jpg", f"_{suffix}.jpg")
        assert [s["sent_id"] for s in ref["sentences"]] == ref["sent_ids"]
        for s in ref["sentences"]:
            assert set(s) == {"tokens", "raw", "sent_id", "sent"} and s["sent"] == " ".join(
                s["tokens"]
            )
            assert s["sent"] == s["sent"].lower() and "grey" not in s["tokens"]
    for annotation in annotations.values():
        assert annotation["iscrowd"] == 0 and annotation["category_id"] in categories
        assert all(len(p) >= 8 and len(p) % 2 == 0 for p in annotation["segmentation"])
    for image in images.values():
        picture = cv2.imread(str(out / "images" / "train2014" / image["file_name"]))
        assert picture.shape == (image["height"], image["width"], 3)
        assert max(picture.shape) == SIZE and min(picture.shape[:2]) >= 0.75 * SIZE - 1


def test_counts_and_splits(made):
    out, counts = made
    for dataset, split_by, splits in (
        ("refcoco", "unc", ["train", "val", "testA", "testB"]),
        ("refcocog", "umd", ["train", "val", "test"]),
    ):
        refs, _ = load(out, dataset, split_by)
        homes = {}
        for ref in refs:
            homes.setdefault(ref["image_id"], set()).add(ref["split"])
        assert all(len(home) == 1 for home in homes.values())
        assert [s for s in counts[dataset] if "/" not in s] == splits
        for split in splits:
            mine = [r for r in refs if r["split"] == split]
            assert counts[dataset][split] == {
                "refs": len(mine),
                "sentences": len(sentences(mine)),
                "images": len({r["image_id"] for r in mine}),
            }
    refs, _ = load(out, "refcocog", "google")
    train, val = ({r["image_id"] for r in refs if r["split"] == s} for s in ("train", "val"))
    assert train & val and {r["split"] for r in refs} == {"train", "val"}
    assert counts["refcocog"]["google/val"]["refs"] == sum(r["split"] == "val" for r in refs)


def test_split_pattern_shares():
    share = {s: pictures.SPLITS.count(s) / len(pictures.SPLITS) for s in set(pictures.SPLITS)}
    assert share == {"train": 0.75, "val": 0.125, "testA": 0.0625, "testB": 0.0625}
    assert set(pictures.SPLITS[:8]) == set(share)


def test_test_splits_hold_their_classes(made):
    refs, coco = load(made[0])
    names = {c["id"]: c["name"] for c in coco["categories"]}
    classes = {
        s: {names[r["category_id"]] for r in refs if r["split"] == s} for s in ("testA", "testB")
    }
    assert classes["testA"] and classes["testA"] <= set(scenes_module.ROUND)
    assert classes["testB"] and not classes["testB"] & set(scenes_module.ROUND)


def test_same_bytes_for_any_number_of_workers(tmp_path):
    for name, workers, seed in (("one", 1, 5), ("two", 2, 5), ("other", 1, 6)):
        refer_files.generate_dataset(tmp_path / name, "refcoco", 24, 64, seed=seed, workers=workers)
    one, two, other = (tree(tmp_path / n) for n in ("one", "two", "other"))
    assert one == two
    assert one.keys() == other.keys() and [k for k in one if one[k] == other[k]] == [MARKER]


@pytest.mark.parametrize(
    "dataset, split_by",
    [("refcoco", "unc"), ("refcoco+", "unc"), ("refcocog", "umd"), ("refcocog", "google")],
)
def test_every_sentence_fits_one_object(made, dataset, split_by):
    assert refer_files.check(made[0], dataset, split_by) == []


def test_plain_descriptions_counted_without_the_grammar(made):
    """Check simple sentences from the annotations alone.

    They have colour and shape words only, or are "leftmost <shape>".
    """
    refs, coco = load(made[0])
    scenes = {}
    for a in coco["annotations"]:
        scenes.setdefault(a["image_id"], []).append(a)
    plain = leftmost = 0
    for ref in refs:
        scene = scenes[ref["image_id"]]
        for s in sentences([ref]):
            words = set(s["tokens"])
            if words <= set(scenes_module.SHAPES) | set(meaning.COLOURS):
                fit = [
                    a["id"]
                    for a in scene
                    if words <= {a["attributes"]["shape"], a["attributes"]["colour"]}
                ]
                assert fit == [ref["ann_id"]], s["sent"]
                plain += 1
            elif (
                len(words) == 2
                and s["tokens"][0] == "leftmost"
                and s["tokens"][1] in scenes_module.SHAPES
            ):
                fit = [a for a in scene if a["attributes"]["shape"] == s["tokens"][1]]
                assert (
                    min(fit, key=lambda a: a["bbox"][0] + a["bbox"][2] / 2)["id"] == ref["ann_id"]
                ), s["sent"]
                leftmost += 1
    assert plain >= 20 and leftmost >= 1


def corrupt(made, tmp_path, dataset, change):
    """Check a copy of the files to which `change`, a function of the list of refs, was applied."""
    shutil.copytree(made[0] / dataset, tmp_path / dataset)
    refs, _ = load(tmp_path, dataset)
    wanted = change(refs)
    (tmp_path / dataset / "refs(unc).p").write_bytes(pickle.dumps(refs))
    return wanted, refer_files.check(tmp_path, dataset, "unc")


def test_check_reports_swapped_sentences(made, tmp_path):
    def swap(refs):
        first, second = next(
            (a, b) for a, b in zip(refs, refs[1:], strict=False) if a["image_id"] == b["image_id"]
        )
        first["sentences"][0], second["sentences"][0] = (
            second["sentences"][0],
            first["sentences"][0],
        )
        return first["ref_id"], second["ref_id"]

    ids, wrong = corrupt(made, tmp_path, "refcoco", swap)
    assert len(wrong) == 2 and all(
        f"ref {i}," in w and "the referent is" in w for i, w in zip(ids, wrong, strict=False)
    )


@pytest.mark.parametrize(
    "sent, told",
    [
        ("the thing", "fits"),
        ("left banana", "banana"),
        ("second square", "not a whole"),
        ("red blue star", "no place"),
        ("square left of", "not a whole"),
    ],
)
def test_check_reports_vague_and_unknown_words(made, tmp_path, sent, told):
    def vague(refs):
        refs[7]["sentences"][0] |= {"sent": sent, "tokens": sent.split()}

    _, wrong = corrupt(made, tmp_path, "refcoco", vague)
    assert len(wrong) == 1 and "ref 7," in wrong[0] and told in wrong[0]


def test_check_reports_a_position_word_in_refcoco_plus(made, tmp_path):
    def place(refs):
        refs[2]["sentences"][0]["tokens"].append("left")

    _, wrong = corrupt(made, tmp_path, "refcoco+", place)
    assert len(wrong) == 1 and "position word" in wrong[0]


def test_words_parse_back_to_the_meaning():
    assert grammar.parse(
        "the small red star that is to the left of the blue square ."
    ) == meaning.Query(
        ("star", "red", "small", None), (), None, (("left", ("square", "blue", None, None)),)
    )
    assert grammar.parse("second one from the left") == meaning.Query(best=("left", 2))
    assert grammar.parse("far right striped donut") == meaning.Query(
        ("ring", None, None, "striped"), best=("right", 1)
    )
    assert grammar.parse("a box on the left side of the picture") == meaning.Query(
        ("square", None, None, None), ("left",)
    )
    assert grammar.parse("upper left") == meaning.Query(where=("top", "left"))


def scene_of(*objects):
    """Return facts of (shape, x, y, area) on a square picture."""
    return [meaning.Fact(s, "red", "big", "plain", x, y, x, y, area) for s, x, y, area in objects]


def test_judge_keeps_doubtful_cases_apart():
    near = scene_of(("star", 0.2, 0.5, 100), ("star", 0.24, 0.5, 100), ("ring", 0.9, 0.5, 130))
    assert meaning.judge(grammar.parse("leftmost star"), near) == [0.5, 0.5, 0.0]
    assert meaning.judge(grammar.parse("largest"), near) == [0.5, 0.5, 0.5]
    apart = scene_of(("star", 0.2, 0.5, 100), ("star", 0.45, 0.5, 300), ("ring", 0.7, 0.5, 130))
    assert meaning.judge(grammar.parse("left star"), apart) == [1.0, 0.5, 0.0]
    assert meaning.judge(grammar.parse("second thing from left"), apart) == [0.0, 1.0, 0.0]
    assert meaning.judge(grammar.parse("largest star"), apart) == [0.0, 1.0, 0.0]
    assert meaning.judge(grammar.parse("star closest to ring"), apart) == [0.0, 1.0, 0.0]
    assert meaning.judge(grammar.parse("ring right of the star"), apart) == [0.0, 0.0, 0.5], (
        "which star?"
    )


def test_statistics_are_near_the_real_ones(made):
    refs, _ = load(made[0])
    said = [s["tokens"] for s in sentences(refs)]
    length = np.array([len(t) for t in said])
    assert (
        3.2 < length.mean() < 4.1 and np.median(length) == 3 and 5 <= np.percentile(length, 95) <= 9
    )
    assert 11 <= length.max() <= 21
    assert 0.05 < (length == 1).mean() < 0.14
    assert 0.55 < np.mean([bool(meaning.POSITION_WORDS & set(t)) for t in said]) < 0.75
    assert 0.25 < np.mean([bool(set(meaning.COLOURS) & set(t)) for t in said]) < 0.50
    assert 2.6 < len(said) / len(refs) < 3.0 and 2.2 < len(refs) / IMAGES < 2.8
    assert any(s["raw"] != s["sent"] for s in sentences(refs))


def test_refcoco_plus_and_refcocog_differ_as_they_should(made):
    plus, _ = load(made[0], "refcoco+")
    assert not any(meaning.POSITION_WORDS & set(s["tokens"]) for s in sentences(plus))
    umd, _ = load(made[0], "refcocog", "umd")
    length = [len(s["tokens"]) for s in sentences(umd)]
    assert 7.4 < np.mean(length) < 9.6
    assert any({".", ","} & set(s["tokens"]) for s in sentences(umd))


@pytest.mark.parametrize("dataset", ["refcoco", "refcoco+"])
def test_scenes_need_the_sentence(made, dataset):
    refs, coco = load(made[0], dataset)
    images, annotations, scenes = by_id(coco["images"]), by_id(coco["annotations"]), {}
    for a in coco["annotations"]:
        scenes.setdefault(a["image_id"], []).append(a)
    assert all(4 <= len(s) <= 8 for s in scenes.values())
    largest = 0
    for ref in refs:
        mine = annotations[ref["ann_id"]]
        scene = scenes[ref["image_id"]]
        image = images[ref["image_id"]]
        assert 0.005 <= mine["area"] / (image["width"] * image["height"]) <= 0.10
        others = [a["attributes"] for a in scene if a["id"] != mine["id"]]
        assert any(o[k] == mine["attributes"][k] for o in others for k in ("shape", "colour"))
        largest += mine["area"] == max(a["area"] for a in scene)
    assert largest / len(refs) < 0.12


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools with numpy 2
def test_masks_are_the_visible_parts(made):
    """Check that COCO's rasteriser gives back the labels exactly and no masks overlap."""
    from pycocotools import mask as coco_mask

    _, coco = load(made[0])
    several = 0
    for index, image in enumerate(coco["images"][:30]):
        _, labels, objects = pictures.scene(3, index, SIZE)
        mine = [a for a in coco["annotations"] if a["image_id"] == image["id"]]
        assert len(mine) == len(objects)
        total = np.zeros((image["height"], image["width"]), int)
        for number, a in enumerate(mine):
            rle = coco_mask.merge(
                coco_mask.frPyObjects(a["segmentation"], image["height"], image["width"])
            )
            mask = coco_mask.decode(rle).astype(bool)
            assert np.array_equal(mask, labels == number + 1)
            assert a["area"] == mask.sum() and a["bbox"] == list(coco_mask.toBbox(rle))
            total += mask
            several += len(a["segmentation"]) > 1
        assert total.max() == 1 and np.array_equal(total > 0, labels > 0)
    assert several > 5, "rings and cut objects have several parts"


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools with numpy 2
def test_polygons_of_any_mask_are_exact():
    from pycocotools import mask as coco_mask

    rng = np.random.default_rng(0)
    for density in (0.2, 0.5, 0.8, 0.95):
        for _ in range(8):
            mask = rng.random((11, 17)) < density
            parts = scenes_module.polygons(mask)
            decoded = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(parts, *mask.shape)))
            assert np.array_equal(decoded.astype(bool), mask)
    assert scenes_module.polygons(np.zeros((4, 4), bool)) == []


def test_data_sets_share_pictures_but_not_with_other_seeds(made):
    before = tree(made[0] / "images")
    refer_files.generate_dataset(made[0], "refcoco", 16, SIZE, seed=3, workers=1)
    refer_files.generate_dataset(made[0], "refcoco", IMAGES, SIZE, seed=3, workers=1)
    assert tree(made[0] / "images") == before
    with pytest.raises(UserError, match="empty folder"):
        refer_files.generate_dataset(made[0], "refcoco", 8, SIZE, seed=4, workers=1)


@pytest.mark.parametrize(
    "wrong, told",
    [
        ({"dataset": "refclef"}, "refclef"),
        ({"images": 7}, "images"),
        ({"size": 31}, "size"),
        ({"seed": -1}, "seed"),
        ({"workers": 0}, "workers"),
        ({"images": 8.5}, "images"),
    ],
)
def test_wrong_inputs(tmp_path, wrong, told):
    with pytest.raises(UserError, match=told):
        refer_files.generate_dataset(tmp_path / "out", **wrong)
    assert not (tmp_path / "out").exists()
