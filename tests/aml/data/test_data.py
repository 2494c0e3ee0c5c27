"""Test pictures and masks at network size, items, and their order on any number of workers."""

import gc
import io
import json
import math
import tracemalloc
from dataclasses import fields

import numpy as np
import pytest
import torch
from PIL import Image

from aml.data import decode
from aml.data.annotations import item_key
from aml.data.batches import eval_batches, rank_part, rank_rows, train_batches
from aml.data.dataset import Items
from aml.data.decode import fit_image, fit_mask, placement
from aml.errors import UserError
from aml.reading import UnreadableImage
from tests.conftest import SIZE


@pytest.fixture(scope="module")
def model(make_model):
    return make_model()


def jpeg(array, **options):
    out = io.BytesIO()
    Image.fromarray(array).save(out, "JPEG", **options)
    return out.getvalue()


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


# ---- pictures and masks --------------------------------------------------------------------------


def test_an_unreadable_jpeg_is_named():
    good = jpeg(noise(40, 60))
    for bad, why in (
        (b"", "it is empty"),
        (b"not a picture", "it is no picture"),
        (good[: len(good) // 2], "truncated"),
    ):
        with pytest.raises(
            UnreadableImage,
            match=rf"COCO_7\.jpg cannot be read as a picture \(.*{why}.*\); g",
        ) as caught:
            decode.decode_image(bad, "COCO_7.jpg")
        assert isinstance(caught.value, UserError)


def png(picture):
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def test_pictures_of_other_modes():
    colour = np.zeros((32, 48, 3), np.uint8)
    colour[:, 24:] = (250, 10, 120)
    out = io.BytesIO()
    Image.fromarray(colour).convert("CMYK").save(out, "JPEG", quality=95)
    assert abs(decode.decode_image(out.getvalue(), "cmyk.jpg").astype(int) - colour).mean() < 4
    palette = Image.fromarray(colour).convert("P", palette=Image.Palette.ADAPTIVE)
    for picture in (palette, Image.fromarray(colour).convert("RGBA")):
        assert np.array_equal(decode.decode_image(png(picture), "p.png"), colour)
    with pytest.raises(
        UnreadableImage,
        match="deep.png cannot be read as a picture .*it has more than 8 bits a channel",
    ):
        decode.decode_image(png(Image.fromarray(np.full((4, 4), 40000, np.uint16))), "deep.png")


def test_a_picture_that_is_to_be_turned_is_read_as_it_lies():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode.decode_image(jpeg(noise(40, 60), exif=exif), "turned.jpg").shape == (40, 60, 3)


def test_a_grey_jpeg_becomes_three_equal_channels():
    grey = np.tile(np.arange(48, dtype=np.uint8) * 5, (32, 1))
    image = decode.decode_image(jpeg(grey, quality=95), "grey.jpg")
    assert image.shape == (32, 48, 3) and image.dtype == np.uint8
    assert (image == image[..., :1]).all() and abs(image[..., 0].astype(int) - grey).mean() < 3


def test_a_real_grey_jpeg(real_data):
    grey = [
        p
        for p in sorted((real_data / "coco128" / "images").glob("*.jpg"))
        if Image.open(p).mode == "L"
    ]
    assert grey
    image = decode.decode_image(grey[0].read_bytes(), grey[0].name)
    assert image.shape[2] == 3 and (image == image[..., :1]).all() and image.std() > 0


@pytest.mark.parametrize(
    "height, width, size, expected",
    [
        (480, 640, 112, (14, 0, 98, 112)),
        (640, 480, 112, (0, 14, 112, 98)),
        (100, 100, 64, (0, 0, 64, 64)),
        (3, 1000, 64, (31, 0, 32, 64)),
    ],
)
def test_where_a_letterboxed_picture_lands(height, width, size, expected):
    assert placement(height, width, size, "letterbox") == expected
    assert placement(height, width, size, "square") == (0, 0, size, size)


def test_fit_image():
    image = noise(48, 96)
    square = fit_image(image, 64, "square")
    assert np.array_equal(
        square, np.asarray(Image.fromarray(image).resize((64, 64), Image.Resampling.BILINEAR))
    )
    boxed = fit_image(image, 64, "letterbox")
    assert (boxed[:16] == decode.LETTERBOX).all() and (boxed[48:] == decode.LETTERBOX).all()
    assert np.array_equal(
        boxed[16:48], np.asarray(Image.fromarray(image).resize((64, 32), Image.Resampling.BILINEAR))
    )


def test_fit_mask_is_nearest_as_pillow_does_it():
    mask = (noise(37, 53)[..., 0] > 128).astype(np.uint8)
    assert np.array_equal(
        fit_mask(mask, 64, "square"),
        np.asarray(Image.fromarray(mask).resize((64, 64), Image.Resampling.NEAREST)),
    )
    # Pillow takes the source pixel under the centre of each target pixel
    source = (
        [min(math.floor((i + 0.5) * 37 / 64), 36) for i in range(64)],
        [min(math.floor((i + 0.5) * 53 / 64), 52) for i in range(64)],
    )
    assert np.array_equal(fit_mask(mask, 64, "square"), mask[np.ix_(*source)])
    boxed = fit_mask(mask, 64, "letterbox")
    top, left, bottom, right = placement(37, 53, 64, "letterbox")
    assert (
        boxed[top:bottom, left:right].any() and boxed.sum() == boxed[top:bottom, left:right].sum()
    )


@pytest.mark.parametrize("fit", ["square", "letterbox"])
def test_a_decoded_row_gives_back_picture_masks_and_meta(rows, scenes, fit):
    row = rows[0]
    encoded = (scenes / "images" / "train2014" / row["file_name"]).read_bytes()
    block = decode.rows_of_block(
        [decode.decode_row(row | {"jpeg": encoded}, 30, fit)]
    )  # 900 bits: no whole number of bytes
    items = Items([block], row["refs"][0]["split"], size=30, fit=fit, unit="sentence")
    assert items.row(items.pick(0, 0, 0)) == {k: v for k, v in row.items() if k != "path"}
    rles = {o["ann_id"]: o["rle"] for o in row["objects"]}
    for index in range(len(items)):
        item = items.pick(index, 0, 0)
        full = decode.rasterise(rles[items.ref(item)["ann_id"]], row["height"], row["width"])
        assert np.array_equal(items.mask(item), fit_mask(full, 30, fit))
        assert np.array_equal(
            items.image(item), fit_image(decode.decode_image(encoded, ""), 30, fit)
        )


# ---- items ---------------------------------------------------------------------------------------


def test_units_and_limits(rows, items, blocks):
    val = [ref for row in rows for ref in row["refs"] if ref["split"] == "val"]
    assert len(Items(blocks, "val", size=SIZE)) == len(val)
    assert len(items["val"]) == sum(len(ref["sentences"]) for ref in val)
    keys = {items["val"].pick(i, 0, 0).key for i in range(len(items["val"]))}
    assert keys == {
        item_key("refcoco", "unc", ref["ref_id"], s["sent_id"])
        for ref in val
        for s in ref["sentences"]
    }
    assert len(Items(blocks, "val", size=SIZE, limit=3)) == 3


def test_a_reader_holds_150_bytes_a_sentence_beside_the_texts_of_its_blocks(blocks, model):
    def shifted(text: str, turn: int) -> str:
        row = json.loads(text)
        row["image_id"] += turn << 40
        for ref in row["refs"]:
            ref["ref_id"] += turn << 40
            for sentence in ref["sentences"]:
                sentence["sent"] += f" {turn}"
        return json.dumps(row)

    many = [
        b | {"meta": [shifted(text, turn) for text in b["meta"]]}
        for turn in range(20)
        for b in blocks
    ]

    def read(blocks) -> tuple[Items, Items]:
        train = Items(blocks, "train", size=SIZE, unit="sentence")
        train.batch(np.arange(8), model)
        return train, Items(blocks, "val", size=SIZE, annotations=train.annotations)

    read(blocks)  # what is imported and cached on first use does not count
    tracemalloc.start()
    readers = read(many)
    gc.collect()
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    sentences = len(readers[0].annotations.sentences)
    assert sentences > 4000 and held / sentences < 150


def test_an_empty_split_is_refused_with_those_there_are(blocks):
    with pytest.raises(
        UserError, match="split 'test' is empty; the data hold testA, testB, train, val"
    ):
        Items(blocks, "test", size=SIZE)


def test_a_pinned_key_and_that_every_part_matters():
    assert item_key("refcoco", "unc", 1, 2) == 4294336311092876915
    others = [
        ("refcoco+", "unc", 1, 2),
        ("refcoco", "google", 1, 2),
        ("refcoco", "unc", 12, 2),
        ("refcoco", "unc", 1, 12),
    ]
    assert len({item_key(*o) for o in others} | {item_key("refcoco", "unc", 1, 2)}) == 5


def test_the_order_does_not_depend_on_how_rows_lie_in_blocks(blocks, items):
    rows = [{k: b[k][i] for k in b} for b in blocks for i in range(len(b["meta"]))]
    shuffled = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    other = Items(
        [
            decode.rows_of_block(shuffled[:5]),
            decode.rows_of_block(shuffled[5:6]),
            decode.rows_of_block(shuffled[6:]),
        ],
        "train",
        size=SIZE,
    )
    for index in range(len(other)):
        a, b = items["train"].pick(index, 3, 1), other.pick(index, 3, 1)
        assert (
            a.key == b.key
            and np.array_equal(items["train"].image(a), other.image(b))
            and np.array_equal(items["train"].mask(a), other.mask(b))
        )


def test_the_sentence_of_a_ref_is_drawn_anew_each_epoch_and_all_get_their_turn(items):
    train = items["train"]
    indices = np.arange(len(train))
    epochs = [
        [i.sentence["sent_id"] for i in train.picks(indices, 0, epoch)] for epoch in range(40)
    ]
    assert epochs[0] == [i.sentence["sent_id"] for i in train.picks(indices, 0, 0)]
    assert epochs[0] == [train.pick(i, 0, 0).sentence["sent_id"] for i in indices]
    assert epochs[0] != epochs[1] and epochs[0] != [
        i.sentence["sent_id"] for i in train.picks(indices, 1, 0)
    ]
    for index in indices:
        every = [s["sent_id"] for s in train.ref(train.pick(index, 0, 0))["sentences"]]
        assert {epoch[index] for epoch in epochs} == set(every)


def test_what_a_batch_holds(items, model, rows):
    train = items["train"]
    b = train.batch(np.array([4, 9, 2]), model, seed=1, epoch=2)
    length = model.options.max_words + 1
    expected = {
        "image": ((3, 3, SIZE, SIZE), torch.uint8), "mask": ((3, SIZE, SIZE), torch.bool),
        "tokens": ((3, length), torch.int64), "token_mask": ((3, length), torch.bool),
        "real": ((3, 4), torch.int64), "size": ((3, 2), torch.int64),
        **dict.fromkeys(("valid", "no_target"), ((3,), torch.bool)),
        **dict.fromkeys(("item", "image_id", "ref_id", "sent_id"), ((3,), torch.int64)),
        **dict.fromkeys(("dataset", "index"), ((3,), torch.int64)),
    }  # fmt: skip
    tensors = {
        f.name: getattr(b, f.name)
        for f in fields(b)
        if f.name not in ("total", "generalised", "view")
    }
    assert b.view is None, "nothing is flipped or cropped"
    assert {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()} == expected
    assert (
        b.total == 3
        and not b.generalised
        and b.index.tolist() == [4, 9, 2]
        and b.valid.all()
        and not b.no_target.any()
    )
    by_image = {row["image_id"]: row for row in rows}
    for k, item in enumerate(train.picks(np.array([4, 9, 2]), 1, 2)):
        row = by_image[int(b.image_id[k])]
        assert b.size[k].tolist() == [row["height"], row["width"]] and b.real[k].tolist() == [
            0,
            0,
            SIZE,
            SIZE,
        ]
        assert (
            int(b.item[k])
            == item.key
            == item_key("refcoco", "unc", int(b.ref_id[k]), int(b.sent_id[k]))
        )
        assert (
            np.array_equal(b.image[k].permute(1, 2, 0), train.image(item))
            and np.array_equal(b.mask[k], train.mask(item))
            and b.mask[k].any()
        )
        tokens, token_mask = model.tokenise([item.sentence["sent"]])
        assert torch.equal(b.tokens[k], tokens[0]) and torch.equal(b.token_mask[k], token_mask[0])


def test_padding_and_parts(items, model):
    b = items["train"].batch(np.array([4, 9, 2]), model, pad_to=8, total=11)
    assert b.valid.tolist() == [True] * 3 + [False] * 5 and len(b.image) == 8 and b.total == 11
    assert b.index.tolist() == [4, 9, 2, -1, -1, -1, -1, -1] and torch.equal(b.image[3], b.image[0])
    part = b.part(slice(2, 4))
    assert (
        part.total == 11
        and torch.equal(part.image, b.image[2:4])
        and part.valid.tolist() == [True, False]
    )


# ---- the plan ------------------------------------------------------------------------------------


def epoch_of(items, model, epoch=0, seed=0, batch=12, rank=0, world=1):
    return list(
        train_batches(items, model, batch=batch, seed=seed, epoch=epoch, rank=rank, world=world)
    )


@pytest.mark.parametrize("batch", [12, 13])
@pytest.mark.parametrize("world", [2, 3, 4])
def test_the_ranks_together_take_what_one_would(items, model, world, batch):
    whole = epoch_of(items["train"], model, batch=batch)
    ranks = [
        epoch_of(items["train"], model, rank=r, world=world, batch=batch) for r in range(world)
    ]
    assert len(whole) == len(items["train"]) // batch
    for one, *parts in zip(whole, *ranks, strict=True):
        assert one.valid.all() and torch.equal(
            torch.cat([p.item[p.valid] for p in parts]), one.item
        )
        assert torch.equal(torch.cat([p.image[p.valid] for p in parts]), one.image)
        assert all(p.total == one.total == batch for p in parts)
        assert {len(p.image) for p in parts} == {-(-batch // world)} and max(
            int((~p.valid).sum()) for p in parts
        ) <= 1


@pytest.mark.parametrize(
    "batch, world, accumulate, rows, parts",
    [
        (32, 4, 1, 8, [8, 8, 8, 8]),
        (10, 3, 1, 4, [3, 3, 4]),
        (10, 4, 1, 3, [2, 3, 2, 3]),
        (10, 3, 2, 4, [3, 3, 4]),
        (10, 2, 4, 8, [5, 5]),
    ],
)
def test_batches_that_do_not_divide_are_padded_to_equal_rows(batch, world, accumulate, rows, parts):
    slices = [rank_part(batch, r, world) for r in range(world)]
    assert [s.stop - s.start for s in slices] == parts and [
        i for s in slices for i in range(batch)[s]
    ] == list(range(batch))
    assert rank_rows(batch, world, accumulate) == rows


def test_an_epoch_is_a_permutation_of_its_own(items, model):
    def order(**which):
        return [i for b in epoch_of(items["train"], model, **which) for i in b.index.tolist()]

    first = order()
    assert len(first) == len(set(first)) == 72 and first == order()
    assert first != order(epoch=1) and first != order(seed=1)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_fewer_items_than_a_batch_are_padded(blocks, model, world):
    few = Items(blocks, "train", size=SIZE, limit=5)
    steps = [epoch_of(few, model, batch=12, rank=r, world=world) for r in range(world)]
    assert [len(s) for s in steps] == [1] * world
    parts = [s[0] for s in steps]
    assert all(len(p.image) == 12 // world and p.total == 5 for p in parts)
    assert sorted(i for p in parts for i in p.index[p.valid].tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("batch", [4, 7, 100])
def test_every_sentence_is_evaluated_exactly_once(items, model, world, batch):
    seen = [
        b
        for r in range(world)
        for b in eval_batches(items["val"], model, batch=batch, rank=r, world=world)
    ]
    assert [i for b in seen for i in b.index.tolist()] == list(range(len(items["val"])))
    assert len({i for b in seen for i in b.item.tolist()}) == len(items["val"])
    assert all(b.valid.all() and len(b.image) <= batch for b in seen)


def test_letterboxed_batches_say_where_the_picture_is(rows, scenes, model):
    decoded = [
        decode.decode_row(
            row | {"jpeg": (scenes / "images" / "train2014" / row["file_name"]).read_bytes()},
            SIZE,
            "letterbox",
        )
        for row in rows[:4]
    ]
    items = Items([decode.rows_of_block(decoded)], "train", size=SIZE, fit="letterbox")
    b = items.batch(np.arange(len(items)), model)
    for real, size, image, mask in zip(
        b.real.tolist(), b.size.tolist(), b.image, b.mask, strict=True
    ):
        assert tuple(real) == placement(*size, SIZE, "letterbox")
        outside = torch.ones(SIZE, SIZE, dtype=torch.bool)
        outside[real[0] : real[2], real[1] : real[3]] = False
        assert (torch.tensor(decode.LETTERBOX) == image[:, outside].T).all() and not (
            mask & outside
        ).any()
    assert (b.real[:, 2] - b.real[:, 0] < SIZE).any() or (b.real[:, 3] - b.real[:, 1] < SIZE).any()
