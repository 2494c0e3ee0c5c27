"""Test training through a window.

Pictures are the same as from memory, the order is the same on any number of workers, and memory
is bounded.
"""

import json
import threading
import time

import numpy as np
import pytest
import torch
from torch import equal

from aml.data.batches import eval_batches, train_batches
from aml.data.dataset import Items
from aml.data.decode import UnreadableImage
from aml.data.window import AHEAD, Window
from orchestrator.config.loader import from_dict
from orchestrator.config.schema import DataConfig
from orchestrator.data import block_choice, decoded, mixture, shards, streaming
from orchestrator.training import loop
from tests.conftest import SIZE
from tests.support.hearing import hear
from tests.support.staging import wait_for
from tests.support.stores import write_store

ROWS = 4
"""Pictures in a row group of the stores made here."""


@pytest.fixture(scope="module")
def store(rows, tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("windowed") / "shards", rows)


class Watched(streaming.RowGroupReader):
    """Record what is read and decoded."""

    def __post_init__(self):
        super().__post_init__()
        self.reads = []
        self.decodes = []
        self.broken = None

    def read(self, block):
        self.reads.append(block)
        return super().read(block)

    def decode(self, encoded, block, row):
        self.decodes.append((block, row))
        if self.broken == (block, row):
            encoded = [jpeg[:100] for jpeg in encoded]
        return super().decode(encoded, block, row)


def window(store, groups=2, splits=("train", "val")):
    """Return a window that holds `groups` row groups."""
    pictures = Watched((decoded.ShardSelection(store, frozenset(splits), {}),), SIZE, "square")
    return Window(pictures, nbytes=int((groups + 0.5) * np.mean(pictures.nbytes)))


@pytest.fixture
def windowed(store):
    return Items(window(store), "train", size=SIZE)


@pytest.fixture(scope="module")
def model(make_model):
    return make_model()


def epoch_of(items, model, epoch=0, **how):
    return list(train_batches(items, model, **{"batch": 8, "seed": 0, "epoch": epoch} | how))


def test_what_is_asked_for_by_index_is_the_same_as_from_memory(windowed, items, model):
    for batch in epoch_of(windowed, model):
        other = items["train"].batch(batch.index.numpy(), model, seed=0, epoch=0)
        for name in (
            "image",
            "mask",
            "tokens",
            "item",
            "image_id",
            "ref_id",
            "sent_id",
            "size",
            "real",
            "dataset",
        ):
            assert equal(getattr(batch, name), getattr(other, name)), name


def test_an_epoch_is_a_permutation_of_its_own_whatever_ran_before(store, windowed, model):
    def seen(items, **how):
        return [i for b in epoch_of(items, model, **how) for i in b.index.tolist()]

    first = seen(windowed)
    second = seen(windowed, epoch=1)
    assert len(first) == len(set(first)) == len(windowed) // 8 * 8
    assert first != second and first != seen(windowed, seed=1)
    assert second == seen(Items(window(store), "train", size=SIZE), epoch=1)


def test_a_window_at_a_time_is_mixed(windowed):
    order = windowed.order(0, 0)
    assert sorted(order) == list(range(len(windowed)))
    groups = windowed.places(order)[:, 0]
    used, first = np.unique(groups, return_index=True)
    turn = used[np.argsort(first)]  # the row groups in the order of their first item
    assert len(used) > 4 and turn.tolist() != sorted(turn)
    windows = [sorted({*groups[np.isin(groups, turn[k : k + 2])]}) for k in range(0, len(turn), 2)]
    places = [np.flatnonzero(np.isin(groups, two)) for two in windows]
    assert all(len(p) == p[-1] - p[0] + 1 for p in places)  # nothing of another window in between
    # Inside a window the row groups are mixed.
    assert any((np.diff(groups[p]) != 0).sum() > 2 for p in places)
    pictures = windowed.places(order).tolist()
    together = sum(a == b for a, b in zip(pictures, pictures[1:], strict=False))
    assert together < len(order) / 4  # two refs of one picture do not follow each other as a rule


@pytest.mark.parametrize("world", [2, 4])
def test_the_ranks_together_take_what_one_would(store, windowed, model, world):
    alone = epoch_of(windowed, model, epoch=3)
    ranks = [
        epoch_of(Items(window(store), "train", size=SIZE), model, epoch=3, rank=r, world=world)
        for r in range(world)
    ]
    for one, *parts in zip(alone, *ranks, strict=True):
        assert equal(torch.cat([p.index for p in parts]), one.index) and equal(
            torch.cat([p.image for p in parts]), one.image
        )


def test_each_picture_is_decoded_once_an_epoch_and_no_more_is_held_than_a_window(
    store, rows, model, monkeypatch
):
    monkeypatch.setattr("aml.data.window.AHEAD", 3)
    items = Items(window(store), "train", size=SIZE, unit="sentence")
    pictures = items.blocks.pictures
    held = []
    for _ in train_batches(items, model, batch=4, seed=0, epoch=0):
        held.append(len(items.blocks.plans[0]))
    shown = {*map(tuple, items.places(items.order(0, 0)[: len(items) // 4 * 4]).tolist())}
    assert sorted(pictures.decodes) == sorted(shown) and len(pictures.reads) == len(
        {block for block, _ in shown}
    )
    assert max(held) <= 2 * ROWS + 3 + 4 < len(shown)
    assert AHEAD > 0 and not items.blocks.plans


def test_every_sentence_is_evaluated_once_with_the_pictures_of_memory(store, items, model):
    for rank in range(2):
        val = Items(window(store), "val", size=SIZE, unit="sentence")
        for a, b in zip(
            *(
                eval_batches(which, model, batch=7, rank=rank, world=2)
                for which in (val, items["val"])
            ),
            strict=True,
        ):
            assert equal(a.item, b.item) and equal(a.image, b.image) and equal(a.mask, b.mask)
        assert len(val.blocks.pictures.decodes) == len(set(val.blocks.pictures.decodes)) > 1
    probe = val.batch(np.array([5, 1, 5]), model)  # without a plan
    assert equal(probe.image, items["val"].batch(np.array([5, 1, 5]), model).image)


def test_one_who_stops_in_the_middle_leaves_no_thread_and_the_next_finds_everything(
    windowed, model
):
    before = threading.active_count()
    batches = train_batches(windowed, model, batch=4, seed=0, epoch=0)
    next(batches)
    assert threading.active_count() > before
    batches.close()
    wait_for(lambda: threading.active_count() == before)
    assert not windowed.blocks.plans
    assert len(epoch_of(windowed, model)) == len(windowed) // 8


def test_a_picture_that_cannot_be_decoded_is_named(windowed, model):
    windowed.blocks.pictures.broken = tuple(
        windowed.places(windowed.order(0, 0)[20:21])[0].tolist()
    )
    with pytest.raises(UnreadableImage, match=r"COCO_train2014_\d+\.jpg cannot be read"):
        epoch_of(windowed, model)


# ---- which of the two ----------------------------------------------------------------------------


def placed(store, monkeypatch, free, **how):
    """Choose blocks of the store's train and val splits with `free` bytes free.

    Returns:
        The blocks, the splits that were decoded, and the messages.
    """
    made = []
    said = hear([])
    monkeypatch.setattr(
        block_choice, "free_object_store_bytes", lambda: free / block_choice.USABLE_SHARE
    )
    monkeypatch.setattr(
        block_choice,
        "decode_shards",
        lambda part, size, fit, *_: (
            made.append(set(part.splits)) or decoded.ObjectStoreBlocks((0,))
        ),
    )
    used = mixture.check_sources(DataConfig(train=store.uri, size=SIZE), None)
    return used.decode(**how), made, said


def need(store, *splits):
    counts = [shards.read_manifest(store)["splits"][s] for s in splits]
    return sum(c["images"] * SIZE * SIZE * 3 + c["refs"] * SIZE * SIZE // 8 for c in counts)


def test_what_fits_is_shared_and_what_does_not_goes_through_a_window_and_is_said(
    store, monkeypatch
):
    both = need(store, "train", "val")
    val = need(store, "val")
    found, made, said = placed(store, monkeypatch, both)
    assert (
        isinstance(found, decoded.ObjectStoreBlocks) and made == [{"train", "val"}] and said == []
    )
    found, made, (line,) = placed(store, monkeypatch, both - 1)
    assert isinstance(found, streaming.StreamingBlocks) and made == [{"val"}] and found.resident
    assert "reads training pictures through a window of 512 MiB" in line and "GB free" in line
    found, made, (line,) = placed(store, monkeypatch, val - 1)
    assert made == [] and found.resident is None and "reads all pictures through a window" in line


def test_a_run_goes_on_as_it_began(store, monkeypatch):
    found, _, _ = placed(store, monkeypatch, 1e12, windowed=True)
    assert isinstance(found, streaming.StreamingBlocks)
    found, _, (line,) = placed(store, monkeypatch, 1, windowed=False)
    assert isinstance(found, decoded.ObjectStoreBlocks) and "spilled to disk" in line


def test_validation_pictures_in_memory_beside_a_window(store, blocks, items, model):
    """Blocks in memory come before the others, and an item is in one of the two only."""
    val = [
        b
        | {
            "meta": [
                json.dumps(with_val) for m in b["meta"] if (with_val := only(json.loads(m), "val"))
            ]
        }
        for b in blocks
    ]
    kept = [[i for i, m in enumerate(b["meta"]) if only(json.loads(m), "val")] for b in blocks]
    val = [
        v | {"image": b["image"][k], "masks": [b["masks"][i] for i in k]}
        for v, b, k in zip(val, blocks, kept, strict=True)
    ]
    pictures = Watched((decoded.ShardSelection(store, frozenset({"train"}), {}),), SIZE, "square")
    both = Window(pictures, val)
    train = Items(both, "train", size=SIZE)
    check = Items(both, "val", size=SIZE, unit="sentence")
    for batch in epoch_of(train, model):
        assert equal(batch.image, items["train"].batch(batch.index.numpy(), model).image)
    before = len(pictures.decodes)
    for a, b in zip(
        eval_batches(check, model, batch=9), eval_batches(items["val"], model, batch=9), strict=True
    ):
        assert equal(a.image, b.image) and equal(a.mask, b.mask) and equal(a.item, b.item)
    assert len(pictures.decodes) == before


def only(row, split):
    return shards.keep_refs(row, {split}, {})


# ---- training ------------------------------------------------------------------------------------


def test_a_resumed_run_repeats_the_bits_of_one_that_was_not_interrupted(store, tmp_path):
    tree = {
        "name": "through",
        "data": {"train": store.uri, "size": SIZE},
        "model": {"name": "small", "width": 32, "stem": 16, "heads": 2},
        "train": {"epochs": 2, "batch": 8},
        "evaluate": {"probe": 8, "pictures": 2},
    }
    experiment = from_dict(tree)

    class Stop(Exception):
        pass

    def run(folder, limit=None):
        heard = []

        def report(metrics):
            heard.append(
                {k: v for k, v in metrics.items() if k.split("/")[0] not in ("time", "mem")}
            )
            if len(heard) == limit:
                raise Stop

        loop._ITEMS.clear()
        loop.run_training(experiment, lambda: window(store), shards.words(store), folder, report)
        return heard

    whole = run(tmp_path / "whole")
    with pytest.raises(Stop):
        run(tmp_path / "parts", limit=1)
    (second,) = run(tmp_path / "parts")
    assert len(whole) == 2 and second == whole[1]


def test_a_run_whose_pictures_do_not_fit_trains_through_a_window_and_reproduces(
    store, ray_session, tmp_path, monkeypatch
):
    tree = {
        "name": "large",
        "data": {"train": store.uri, "size": SIZE},
        "model": {"name": "small", "width": 32, "stem": 16},
        "train": {"epochs": 2, "batch": 8},
        "evaluate": {"probe": 4, "pictures": 2},
        "tracking": {"uri": "none"},
        "storage": {"root": str(tmp_path)},
    }
    (tmp_path / "large.yaml").write_text(json.dumps(tree))
    monkeypatch.setattr(block_choice, "free_object_store_bytes", lambda: 1.5 * need(store, "val"))
    monkeypatch.setenv("AMLRIS_HOME", str(tmp_path))
    code, text = ray_session(["train", str(tmp_path / "large.yaml")])
    assert code == 0 and "reads training pictures through a window" in text, text
    code, text = ray_session(["reproduce", "large"])
    assert code == 0 and "agree bit for bit" in text, text


def test_the_free_memory_of_the_object_store_is_what_is_not_used(ray_session):
    import ray

    before = block_choice.free_object_store_bytes()
    held = ray.put(np.ones(20_000_000, np.uint8))
    for _ in range(50):
        if before - block_choice.free_object_store_bytes() >= 20e6:
            break
        time.sleep(0.2)
    assert before > before - block_choice.free_object_store_bytes() >= 20e6
    del held
