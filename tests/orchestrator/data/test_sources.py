"""Test mixtures of data sets, and single ones.

Evaluation images leave training, wrong mixtures are refused, and a run logs what leaves.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from aml.conditions import CLEAN
from aml.data import dataset as dataset_module, decode as decode_module, rle
from aml.errors import UserError
from orchestrator.config.loader import from_dict
from orchestrator.config.schema import DataConfig
from orchestrator.data import block_choice, decoded, mixture, shards
from orchestrator.evaluation.pages import masking_preview
from orchestrator.storage import filesystem
from orchestrator.utils import progress
from tests.support.hearing import hear
from tests.support.stores import write_store


def relabelled(rows, dataset, split_of, split_by="unc"):
    """Return the rows as another data set; all refs of picture k are in the split split_of(k)."""
    return [
        row
        | {
            "dataset": dataset,
            "split_by": split_by,
            "refs": [r | {"split": split_of(k)} for r in row["refs"]],
        }
        for k, row in enumerate(rows)
    ]


def splits(val, test_a=(38,), test_b=(39,)):
    """Return split_of for pictures of val, testA and testB by number; the others train."""
    return lambda k: (
        "val" if k in val else "testA" if k in test_a else "testB" if k in test_b else "train"
    )


@pytest.fixture(scope="module")
def root(rows, tmp_path_factory):
    """Write two data sets on the same pictures.

    One evaluates with pictures 0-4, 38 and 39, the other with 3-9, 37 and 39.
    """
    folder = tmp_path_factory.mktemp("mixed")
    write_store(
        folder / "one",
        relabelled(rows[:30] + rows[38:], "refcoco", splits(range(5), test_a=(30,), test_b=(31,))),
    )
    write_store(folder / "two", relabelled(rows, "refcoco+", splits(range(3, 10), test_a=(37,))))
    return folder


def config(*names, **more):
    return DataConfig(train=list(names), size=32, **more)


def ids(rows, numbers):
    return {rows[k]["image_id"] for k in numbers}


# ---- what leaves ---------------------------------------------------------------------------------


def test_every_evaluation_image_of_any_leaves_and_the_number_is_said(root, rows):
    said = hear([])
    used = mixture.prepare_sources(config("one", "two"), root)
    assert used.evaluation == ids(rows, [*range(10), 37, 38, 39])
    # Together they would train on 0-2, 5-36 and 38: `one` on 5-29, `two` on 0-2, 10-36 and 38.
    # Pictures 5-9 leave `one`; pictures 0-2 and 38 leave `two`.
    (line,) = said
    assert line.startswith(
        "mixed training: 9 of 36 images are for evaluation in one of the data sets and leave "
        "training"
    )
    assert f"5 of the 25 of {root}/one, 4 of the 31 of {root}/two" in line
    assert (
        used.uri == f"{root}/one + {root}/two" and used.manifest["dataset"] == "refcoco + refcoco+"
    )


def test_images_for_evaluation_stay_where_that_is_asked(root):
    said = hear([])
    used = mixture.prepare_sources(config("one", "two", allow_eval_images=True), root)
    assert not used.evaluation and said == [
        "mixed training on 36 images: images for evaluation stay, as data.allow_eval_images asks"
    ]


def test_the_fingerprint_is_one_s_own_and_of_a_mixture_that_of_all_and_of_what_validates(root):
    def fingerprint(*names, **more):
        return mixture.check_sources(config(*names, **more), root).manifest["fingerprint"]

    assert fingerprint("one") == "0123456789abcdef"
    mixtures = [
        fingerprint("one", "two"),
        fingerprint("one", "two", val="two"),
        fingerprint("one", "two", allow_eval_images=True),
    ]
    assert len(set(mixtures)) == 3 and mixtures[0] == fingerprint("one", "two", val="one")


def test_the_vocabulary_is_the_union(root, rows, tmp_path):
    store = filesystem.Filesystem("two", root)
    (root / "two" / "vocabulary.json").write_text(json.dumps(["zebra", *shards.words(store)]))
    words = mixture.check_sources(config("one", "two"), root).words()
    assert words[: len(shards.words(filesystem.Filesystem("one", root)))] == shards.words(
        filesystem.Filesystem("one", root)
    )
    assert set(words) == set(shards.words(filesystem.Filesystem("one", root))) | set(
        shards.words(store)
    ) and len(set(words)) == len(words)


def in_store(root, which, monkeypatch):
    """Return what Sources.decode puts into the object store, as one block a store."""
    blocks = []

    def decode(part, size, fit, condition=CLEAN):
        footers = shards.files_with(part.store, part.splits)
        groups = [
            (name, group)
            for name, footer in footers.items()
            for group in range(footer.num_row_groups)
        ]
        names, numbers = zip(*groups, strict=True)
        blocks.append(
            decoded._decode(
                {"file": names, "group": numbers},
                part=part,
                footers=footers,
                size=size,
                fit=fit,
                condition=condition,
            )
        )
        return decoded.ObjectStoreBlocks(())

    monkeypatch.setattr(block_choice, "decode_shards", decode)
    monkeypatch.setattr(block_choice, "free_object_store_bytes", lambda: 1e9)
    mixture.check_sources(which, root).decode()
    return [block | {"meta": block["meta"].tolist()} for block in blocks]


@pytest.mark.parametrize("val", ["one", "two"])
def test_training_holds_no_evaluation_image_and_one_data_set_validates(
    root, rows, monkeypatch, val
):
    blocks = in_store(root, config("one", "two", val=val), monkeypatch)
    train, check = (
        dataset_module.Items(blocks, split, size=32, unit="sentence") for split in ("train", "val")
    )
    seen = {
        name: {
            r["image_id"]
            for item in train.picks(np.arange(len(train)), 0, 0)
            if (r := train.row(item))["dataset"] == name
        }
        for name in train.datasets
    }
    assert seen == {"refcoco": ids(rows, range(10, 30)), "refcoco+": ids(rows, range(10, 37))}
    checked = [check.row(item) for item in check.picks(np.arange(len(check)), 0, 0)]
    assert {row["dataset"] for row in checked} == {"refcoco" if val == "one" else "refcoco+"}
    assert {row["image_id"] for row in checked} == ids(
        rows, range(5) if val == "one" else range(3, 10)
    )
    assert len({item.key for item in train.picks(np.arange(len(train)), 0, 0)}) == len(train)
    every = [json.loads(text) for block in blocks for text in block["meta"]]
    assert {ref["split"] for row in every for ref in row["refs"]} == {"train", "val"}
    for item in train.picks(np.arange(6), 0, 0):
        row = train.row(item)
        full = decode_module.rasterise(
            rle.referent(row, train.ref(item)), row["height"], row["width"]
        )
        assert np.array_equal(train.mask(item), decode_module.fit_mask(full, 32, "square"))


def test_the_preview_of_a_mixture_shows_no_evaluation_image(root, tmp_path, monkeypatch):
    tree = {
        "name": "look",
        "data": {"train": ["two", "one"], "size": 32},
        "storage": {"root": str(root)},
        "model": {"name": "small", "width": 32, "stem": 16},
    }
    shown = []
    monkeypatch.setattr(
        masking_preview,
        "read_rows",
        lambda store, places: shown.extend(places) or shards.read_rows(store, places),
    )
    masking_preview.preview_masks(from_dict(tree), 2, tmp_path / "page.html")
    assert (
        shown
        and not {place[0] for place in shown}
        & mixture.check_sources(config("one", "two"), root).evaluation
    )


# ---- what is refused -----------------------------------------------------------------------------


def refused(which, root, says):
    with pytest.raises(UserError, match=says) as error:
        mixture.check_sources(which, root)
    assert "\n" not in str(error.value)


def test_a_data_set_without_its_evaluation_splits_is_refused_in_a_mixture(root, rows):
    write_store(root / "bare", relabelled(rows[:6], "mine", lambda k: "train", "table"))
    write_store(
        root / "part",
        relabelled(rows[:6], "refcocog", lambda k: "val" if k == 0 else "train", "umd"),
    )
    refused(
        config("one", "bare"),
        root,
        r"bare \(mine, table\) lacks any evaluation split, so nobody can know",
    )
    refused(
        config("one", "part"),
        root,
        r"part \(refcocog, umd\) lacks test, so nobody can know.*allow_eval_images=true",
    )
    assert (
        mixture.check_sources(config("one", "bare", allow_eval_images=True), root).manifest[
            "splits"
        ]["train"]["refs"]
        > 0
    )


def test_training_on_an_evaluation_split_is_refused_unless_asked_for(root):
    for split in ("val", "testA"):
        refused(
            config("one", train_split=split),
            root,
            f"data.train_split '{split}' is there for evaluation.*allow_eval_images=true",
        )
        assert mixture.check_sources(config("one", train_split=split, allow_eval_images=True), root)
    assert mixture.check_sources(config("one"), root).evaluation == frozenset()


def test_a_data_set_split_by_object_is_refused_by_itself_unless_asked_for(root, rows):
    mixed = relabelled(rows[:6], "refcocog", lambda k: "train", "google")
    for row in mixed[:2]:
        row["refs"] = [
            row["refs"][0] | {"split": "val", "ref_id": row["refs"][0]["ref_id"] + 10**6},
            *row["refs"],
        ]
    write_store(root / "google", mixed)
    refused(
        config("google"),
        root,
        r"2 of the 6 training images of .*google also hold refs for evaluation "
        r"\(its splits are by object",
    )
    assert mixture.check_sources(config("google", allow_eval_images=True), root)
    assert mixture.check_sources(config("one", "google"), root).evaluation >= ids(rows, range(2))


@pytest.mark.parametrize(
    ("names", "more", "says"),
    [
        (
            ("one", "two"),
            {"val_split": "train"},
            "both 'train'; a mixture needs two splits|is there for evaluation",
        ),
        (("one", "nowhere"), {}, "no complete shards"),
        (("one", "two"), {"val_split": "tset"}, "data.val_split 'tset' is empty"),
        (("one", "two"), {"train_split": "tset"}, "data.train_split 'tset' is empty"),
    ],
)
def test_what_cannot_be_mixed(root, names, more, says):
    refused(config(*names, **more), root, says)


def test_a_data_set_twice_is_refused(root, rows):
    write_store(root / "again", relabelled(rows, "refcoco", splits(range(5))))
    refused(config("one", "again"), root, r"names refcoco \(unc\) twice")


def test_a_mixture_whose_every_training_image_leaves_is_refused(root, rows):
    write_store(
        root / "other",
        relabelled(
            rows[:2] + rows[38:], "refcoco+", lambda k: ("train", "val", "testA", "testB")[k]
        ),
    )
    write_store(root / "this", relabelled(rows[:2], "mine", lambda k: ("val", "train")[k], "table"))
    refused(config("this", "other"), root, "no image of split 'train' is left")


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ({"train": []}, "data.train is"),
        ({"train": ["a", "a"]}, "each once"),
        ({"train": ["a", 3]}, "data.train is"),
        ({"train": 3}, "data.train is 3; it must be a folder or URI of shards"),
        (
            {"train": ["a", "b"], "val": "c"},
            "data.val is 'c'; it must be one of data.train: a, b",
        ),
        ({"train": ["a", "b"], "synth": {}}, "data.synth generates one data set"),
    ],
)
def test_settings_that_cannot_mean_anything(tree, says):
    with pytest.raises(UserError, match=says):
        from_dict({"name": "x", "data": tree})


def test_settings_of_a_mixture():
    made = from_dict({"name": "x", "data": {"train": ["a", "b"], "val": "b"}}).data
    assert made.trains == ["a", "b"] and made.val_uri == "b"
    assert from_dict({"name": "x", "data": {"train": "a"}}).data.val_uri == "a"


# ---- a run ---------------------------------------------------------------------------------------


def test_a_run_trains_on_a_mixture(root, ray_session, tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "FIRST_S", 0.0)
    monkeypatch.setattr(progress, "AGAIN_S", 0.0)
    tree = {
        "name": "mix",
        "data": {"train": ["one", "two"], "val": "two", "size": 32},
        "model": {"name": "small", "width": 32, "stem": 16},
        "aml": {"mode": "off"},
        "train": {"epochs": 1, "batch": 16},
        "evaluate": {"probe": 4, "pictures": 2},
        "tracking": {"uri": "none"},
        "storage": {"root": str(root)},
    }
    (tmp_path / "mix.yaml").write_text(json.dumps(tree))
    code, text = ray_session(["train", str(tmp_path / "mix.yaml")])
    assert code == 0, text
    assert "9 of 36 images are for evaluation" in text
    counts = re.findall(r"^decoding: (\d+) of (\d+) pictures, .* left$", text, re.M)
    assert counts and all(0 < int(done) < int(total) <= 40 for done, total in counts)
    n = shards.read_manifest(filesystem.Filesystem("two", root))["splits"]["val"]["sentences"]
    assert f"on all {n} sentences of val" in text
    assert [Path(p).name for p in root.glob("*/best")] or list(root.rglob("best"))
