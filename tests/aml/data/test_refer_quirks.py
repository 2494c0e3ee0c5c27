"""Test data sets in REFER's format that do it otherwise than RefCOCO: each quirk by itself.

The data set "drones" has two pictures of 14 x 12 pixels: in the first one a house and a roof, in
the second one a car. A quirk changes its files and not what they mean, so the rows are the same.
"""

import json
import pickle

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from aml.data import Findings, rasterise, read_refer, referent, split_counts
from aml.errors import UserError

HEIGHT, WIDTH = 12, 14
BOXES = {7: (2, 2, 8, 8), 8: (4, 4, 6, 6), 9: (1, 3, 5, 13)}
"""ann_id -> top, left, bottom, right."""


def outline(ann_id):
    top, left, bottom, right = BOXES[ann_id]
    return [[left, top, right, top, right, bottom, left, bottom]]


def pixels(ann_id):
    top, left, bottom, right = BOXES[ann_id]
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def compressed(mask):
    return coco.encode(np.asfortranarray(mask))["counts"]


def runs(mask):
    """Return the lengths of runs, column by column, zeros first."""
    flat = np.concatenate([[0], mask.ravel("F"), [1 - mask[-1, -1]]])
    ends = np.flatnonzero(np.diff(flat)) + 1
    return np.diff(np.concatenate([[1], ends])).tolist()


def picture(path, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT), (90, 120, 60)).save(path, **how)


class Files:
    """Content of a data set's files, which a quirk changes before they are written."""

    def __init__(self, root):
        self.root = root
        self.images = root / "pictures"
        self.names = {1: "a.jpg", 2: "b.jpg"}
        self.refs = [self.ref(0, 7, 1, "the house"), self.ref(1, 9, 2, "a car", "white car")]
        self.annotations = [self.annotation(7, 1), self.annotation(8, 1), self.annotation(9, 2)]
        self.categories = [{"id": 3, "name": "building"}, {"id": 4, "name": "vehicle"}]
        self.instances = {"instances.json": [1, 2]}  # each file's images
        self.more = {}  # other JSON files
        self.save = picture

    @staticmethod
    def ref(ref_id, ann_id, image_id, *texts):
        sentences = [
            {"sent_id": 10 * ref_id + k, "sent": text, "raw": text, "tokens": text.split()}
            for k, text in enumerate(texts)
        ]
        ref = {"ref_id": ref_id, "ann_id": ann_id, "image_id": image_id, "split": "test"}
        return ref | {"sentences": sentences, "sent_ids": [s["sent_id"] for s in sentences]}

    @staticmethod
    def annotation(ann_id, image_id):
        of = {"id": ann_id, "image_id": image_id, "category_id": 2 + image_id, "iscrowd": 0}
        return of | {"segmentation": outline(ann_id), "bbox": [0, 0, 1, 1], "area": 1}

    def write(self):
        folder = self.root / "drones"
        folder.mkdir()
        (folder / "refs(own).p").write_bytes(pickle.dumps(self.refs, 2))
        for file, ids in self.instances.items():
            content = {
                "images": [
                    {"id": i, "file_name": self.names[i], "height": HEIGHT, "width": WIDTH}
                    for i in ids
                ],
                "annotations": [
                    a for a in self.annotations if a["image_id"] in ids or a["image_id"] > 2
                ],
                "categories": self.categories,
            }
            (folder / file).write_text(json.dumps({k: v for k, v in content.items() if v}))
        for file, content in self.more.items():
            (folder / file).write_text(json.dumps(content))
        if not self.images.exists():
            for name in self.names.values():
                self.save(self.images / name)

    def read(self, **how):
        self.write()
        return read_refer(self.root, self.images, "drones", "own", **how)


def masks_only_in_refs(f):
    f.annotations = []
    for ref in f.refs:
        mask = pixels(ref["ann_id"])
        ref["segmentation"] = {"size": (HEIGHT, WIDTH), "counts": compressed(mask)}
        ref["category_id"] = 2 + ref["image_id"]


def masks_in_refs_without_annotations(f):
    masks_only_in_refs(f)
    f.annotations = [f.annotation(8, 1)]
    for ref in f.refs:
        del ref["ann_id"]


def integer_names(f):
    f.names = {1: 839, 2: 12}
    picture(f.images / "COCO_train2014_000000000839.jpg")
    picture(f.images / "000000000012.jpg")


def number_names(f):
    f.names = {1: "839.jpg", 2: "0012"}
    picture(f.images / "COCO_val2014_000000000839.jpg")
    picture(f.images / "0012.JPG")


def no_endings(f):
    f.names = {1: "a", 2: "b"}
    picture(f.images / "a.png")
    picture(f.images / "b.jpg")


def other_endings(f):
    picture(f.images / "JPEGImages" / "a.png")
    picture(f.images / "JPEGImages" / "b.TIF")


def folders_per_split(f):
    f.names = {1: "1.jpg", 2: "2.jpg"}
    for split in ("train", "test"):
        picture(f.images / split / "1.jpg")
        picture(f.images / split / "2.jpg")
    Image.new("RGB", (3, 3)).save(f.images / "train" / "1.jpg")


def folders_in_names(f):
    f.names = {1: "set/test/1.jpg", 2: "set/train/1.jpg"}
    f.images = f.root / "set"
    picture(f.root / "set" / "test" / "1.png")
    picture(f.root / "set" / "train" / "1.png")


def several_instances(f):
    f.instances = {"instances_train.json": [2], "instances_test.json": [1]}


def several_instances_with_the_same_ids(f):
    several_instances(f)
    f.annotations[2]["id"] = f.refs[1]["ann_id"] = 7


def several_categories(f):
    f.categories = []
    f.more = {
        "categories.json": [{"id": 3, "name": "building"}],
        "categories_more.json": {"categories": [{"id": 4, "name": "vehicle"}]},
    }


def no_sent_ids(f):
    for ref in f.refs:
        del ref["sent_ids"]


def sent_ids_beside_the_sentences(f):
    for ref in f.refs:
        for sentence in ref["sentences"]:
            del sentence["sent_id"]


def run_length_lists(f):
    for a in f.annotations:
        a["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": runs(pixels(a["id"]))}


def lists_of_run_lengths(f):
    for a in f.annotations:
        mask = pixels(a["id"])
        halves = np.split(mask, [4])
        parts = (
            np.concatenate([halves[0], 0 * halves[1]]),
            np.concatenate([0 * halves[0], halves[1]]),
        )
        a["segmentation"] = [
            {"size": [HEIGHT, WIDTH], "counts": compressed(part).decode()} for part in parts
        ]


def bytes_as_text(f):
    for a in f.annotations:
        counts = compressed(pixels(a["id"]))
        a["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": str(counts)}


def unlisted_images(f):
    f.annotations += [f.annotation(8, 1) | {"id": 20, "image_id": 55}] * 2


def repeated_sentence(f):
    f.refs[1]["sentences"].append(dict(f.refs[1]["sentences"][0]))


def tiff(f):
    f.names = {1: "a.tif", 2: "b.tif"}


def turned(f):
    exif = Image.Exif()
    exif[0x0112] = 3
    f.save = lambda path: picture(path, exif=exif)


QUIRKS = [
    masks_only_in_refs,
    masks_in_refs_without_annotations,
    integer_names,
    number_names,
    no_endings,
    other_endings,
    folders_per_split,
    folders_in_names,
    several_instances,
    several_instances_with_the_same_ids,
    several_categories,
    no_sent_ids,
    sent_ids_beside_the_sentences,
    run_length_lists,
    lists_of_run_lengths,
    bytes_as_text,
    unlisted_images,
    repeated_sentence,
    tiff,
    turned,
]

LEFT_OUT = {
    unlisted_images: {"annotations whose image is not in the list": 2},
    repeated_sentence: {"sentences that a ref gives twice": 1},
}


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


@pytest.mark.parametrize("quirk", QUIRKS)
def test_a_quirk_is_met(files, quirk):
    quirk(files)
    findings = Findings()
    house, car = files.read(findings=findings)
    for row, ann_id, kind in ((house, 7, "building"), (car, 9, "vehicle")):
        (ref,) = row["refs"]
        assert np.array_equal(rasterise(referent(row, ref), HEIGHT, WIDTH), pixels(ann_id))
        (named,) = [o for o in row["objects"] if o["ann_id"] == ref["ann_id"]]
        assert named["category"] == kind
        with Image.open(row["path"]) as found:
            assert found.size == (WIDTH, HEIGHT)
        assert (row["dataset"], row["split_by"]) == ("drones", "own")
    said = [(s["sent_id"], s["sent"]) for row in (house, car) for s in row["refs"][0]["sentences"]]
    assert said == [(0, "the house"), (10, "a car"), (11, "white car")]
    assert split_counts([house, car]) == {"test": {"refs": 2, "sentences": 3, "images": 2}}
    noted = findings.to_dict()
    assert noted["masks"] == {"refs" if "masks" in quirk.__name__ else "instances": 2}
    assert noted["left_out"] == LEFT_OUT.get(quirk, {})
    assert noted["files"] == ["refs(own).p", *sorted(files.instances), *sorted(files.more)]


def test_sentences_without_any_id_are_numbered_after_the_others(files):
    for sentence in files.refs[0]["sentences"]:
        del sentence["sent_id"]
    del files.refs[0]["sent_ids"]
    house, _ = files.read()
    assert [s["sent_id"] for s in house["refs"][0]["sentences"]] == [12]


def test_two_refs_of_one_annotation_and_one_text_twice(files):
    files.refs.append(files.ref(2, 7, 1, "the house", "the house"))
    first, second = files.read()[0]["refs"]
    assert first["ann_id"] == second["ann_id"] == 7
    assert [s["sent_id"] for s in second["sentences"]] == [20, 21]


def test_refs_with_one_mask_of_their_own_share_an_object(files):
    files.refs.append(files.ref(2, 7, 1, "it"))
    masks_in_refs_without_annotations(files)
    house, _ = files.read()
    assert [ref["ann_id"] for ref in house["refs"]] == [9, 9]
    assert [o["ann_id"] for o in house["objects"]] == [8, 9]


def test_what_cannot_be_used_is_refused_or_left_out_and_counted(files):
    blank = {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}
    files.annotations += [
        files.annotation(8, 2) | {"id": 30, "segmentation": blank},
        files.annotation(8, 2) | {"id": 31, "segmentation": {"size": [1, 2], "counts": [2]}},
    ]
    files.refs += [files.ref(2, 77, 1, "it"), files.ref(3, 7, 55, "it"), files.ref(4, 30, 2, "it")]
    files.refs += [files.ref(5, 31, 2, "it"), files.ref(6, 7, 1, "...")]
    with pytest.raises(UserError, match="--skip-unreadable to leave such"):
        files.read()
    findings = Findings()
    rows = read_refer(
        files.root, files.images, "drones", "own", skip_unusable=True, findings=findings
    )
    assert [[ref["ref_id"] for ref in row["refs"]] for row in rows] == [[0], [1]]
    assert findings.to_dict()["left_out"] == {
        "annotations whose mask cannot be drawn": 1,
        "refs whose annotation is missing": 2,
        "refs whose image is not in the list": 1,
        "refs whose mask covers no pixel": 1,
        "refs without a sentence": 1,
        "sentences without a word": 1,
    }
    (files.images / "a.jpg").unlink()
    with pytest.raises(UserError, match=r"images are not under .*--skip-unreadable"):
        rows = files.refs.clear() or files.refs.append(files.ref(0, 7, 1, "it"))
        (files.root / "drones" / "refs(own).p").write_bytes(pickle.dumps(files.refs))
        read_refer(files.root, files.images, "drones", "own")


def ambiguous_picture(f):
    picture(f.images / "one" / "a.jpg")
    picture(f.images / "two" / "a.jpg")
    picture(f.images / "b.jpg")


def two_pictures_of_one_id(f):
    f.instances = {"instances_a.json": [1], "instances_b.json": [1, 2]}
    names = iter(["a.jpg", "other.jpg", "b.jpg"])
    f.names = type(
        "Names", (), {"__getitem__": lambda self, i: next(names), "values": lambda s: []}
    )()


def two_names_of_a_category(f):
    several_categories(f)
    f.more["categories_more.json"]["categories"].append({"id": 3, "name": "tower"})


def a_mask_of_another_size_in_a_ref(f):
    masks_only_in_refs(f)
    f.refs[1]["segmentation"]["size"] = [3, 4]


def one_id_of_two_texts(f):
    f.refs[1]["sentences"].append(f.refs[1]["sentences"][0] | {"sent": "another car"})


@pytest.mark.parametrize(
    ("quirk", "says"),
    [
        (ambiguous_picture, "'a.jpg' is one/a.jpg and two/a.jpg under .*name its folder"),
        (two_pictures_of_one_id, "image 1 is 'other.jpg', and in another file 'a.jpg'"),
        (two_names_of_a_category, "names category 3 'tower', and another file 'building'"),
        (a_mask_of_another_size_in_a_ref, "ref 1 of drones .own. has a mask that cannot be drawn"),
        (one_id_of_two_texts, "ref 1 has sentence 10 twice"),
    ],
)
def test_what_is_not_certain_is_refused(files, quirk, says):
    quirk(files)
    with pytest.raises(UserError, match=says):
        files.read()
