"""Test augmentations: the sentence of a flip, the referent in a crop, and draws by item.

The draws must not depend on the number of workers.
"""

import colorsys

import numpy as np
import pytest
import torch

from aml.data import augment, batches, dataset, decode
from aml.data.augment import mirrored
from aml.errors import UserError
from orchestrator.config.loader import from_dict
from tests.conftest import SIZE

WHOLE = (0, 0, 32, 32)


# ---- sentences -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sentence", "swapped"),
    [
        ("left man", "right man"),
        ("man on the right next to the bike", "man on the left next to the bike"),
        ("second from left, not right", "second from right, not left"),
        ("leftmost zebra and rightmost one", "rightmost zebra and leftmost one"),
        ("far Left LEFT", "far Right RIGHT"),
        ("lefty, left's and left-hand", "righty, right's and right-hand"),
        ("righthand side, rightest", "lefthand side, leftest"),
        ("bright shirt upright on the left", "bright shirt upright on the right"),
        ("his left hand", "his right hand"),
        ("2nd from right", "2nd from left"),
        ("middle giraffe", "middle giraffe"),
        ("guy on the right in front", "guy on the left in front"),
        ("let eight bright kites fly at night", "let eight bright kites fly at night"),
    ],
)
def test_left_and_right_change_places_in_every_form(sentence, swapped):
    assert mirrored(sentence) == swapped and mirrored(swapped) == sentence


@pytest.mark.parametrize(
    "sentence",
    ["bike right next to the car", "cup right behind him", "man at 3 o'clock", "number 12",
     "sign that says stop", "the letter on the cap", "east one", "man on r",
     "man on the rigth", "rihgt guy", "righ t one", "lef", "lft car", "rite most", "blue lfet",
     "dark blue umbrella right in front", "boy right in front of the bus",
     "guy onleft", "leftover pizza", '"exit" door', "shirt with writing 7"],
)  # fmt: skip
def test_a_sentence_that_may_not_hold_in_a_mirror_is_left_alone(sentence):
    assert mirrored(sentence) is None


# ---- pictures ------------------------------------------------------------------------------------


def scene(top=4, left=6, bottom=10, right=20, side=32):
    """Return a picture whose red and green are its own coordinates, and a referent."""
    y, x = np.mgrid[:side, :side].astype(np.uint8) * 4
    mask = np.zeros((side, side), bool)
    mask[top:bottom, left:right] = True
    return np.stack([y, x, np.where(mask, 255, 0).astype(np.uint8)], 2), mask


def test_a_flip_by_hand():
    image, mask = scene()
    flipped, target, real = augment.flip(image, mask, (2, 3, 30, 28))
    assert real == (2, 32 - 28, 30, 32 - 3)
    assert (
        (flipped[..., 1] == 4 * (31 - np.arange(32))).all()
        and target[4:10, 12:26].all()
        and target.sum() == mask.sum()
    )
    back = augment.flip(flipped, target, real)
    assert (
        np.array_equal(back[0], image)
        and np.array_equal(back[1], mask)
        and back[2] == (2, 3, 30, 28)
    )


@pytest.mark.parametrize("real", [WHOLE, (4, 0, 28, 32)])
@pytest.mark.parametrize(
    "box", [(4, 6, 10, 20), (5, 1, 27, 31), (4, 0, 28, 32), (15, 15, 16, 16), (27, 0, 28, 1), None]
)
def test_a_window_holds_the_whole_referent_inside_the_picture(real, box):
    mask = np.zeros((32, 32), bool)
    if box:
        mask[box[0] : box[2], box[1] : box[3]] = True
    found = set()
    for draws in np.random.default_rng(0).random((200, 3)).tolist() + [[0, 0, 0], [1 - 2**-24] * 3]:
        top, left, bottom, right = augment.window(mask, real, draws)
        assert real[0] <= top < bottom <= real[2] and real[1] <= left < right <= real[3]
        assert mask[top:bottom, left:right].sum() == mask.sum()
        height, width = (bottom - top) / (real[2] - real[0]), (right - left) / (real[3] - real[1])
        assert min(height, width) >= augment.SMALLEST - 0.03 and abs(height - width) < 0.05
        found.add((top, left, bottom, right))
    assert len(found) > 20 or box and box[2] - box[0] > 20


def test_a_crop_moves_picture_and_mask_alike_and_leaves_the_letterbox():
    image, mask = scene()
    real = (4, 0, 28, 32)
    image[:4], image[28:] = decode.LETTERBOX, decode.LETTERBOX
    cropped, target = augment.crop(image, mask, real, [0.0, 0.5, 0.5])
    assert (
        (cropped[:4] == decode.LETTERBOX).all()
        and (cropped[28:] == decode.LETTERBOX).all()
        and not target[:4].any()
    )
    assert (
        target.sum() > 1.8 * mask.sum()
    )  # 0.6 of each side: 2.8 times the area, but for the referent's place on the grid
    blue = cropped[4:28, :, 2] > 127
    assert (blue != target[4:28]).mean() < 0.06
    same, still = augment.crop(image, mask, real, [1 - 2**-24, 0, 0])
    assert np.array_equal(same, image) and np.array_equal(still, mask)


# ---- items ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(make_model):
    return make_model()


def train(blocks, *names):
    return dataset.Items(blocks, "train", size=SIZE, augment=names)


def test_off_by_default_and_validation_is_never_augmented(blocks, items, model):
    assert (
        from_dict({"name": "x", "data": {"train": "a"}}).data.augment == []
        and items["train"].augment == ()
    )
    plain, none = (
        items["train"].batch(np.arange(9), model, seed=1, epoch=2),
        train(blocks).batch(np.arange(9), model, seed=1, epoch=2),
    )
    assert torch.equal(plain.image, none.image) and torch.equal(plain.tokens, none.tokens)
    from orchestrator.training import loop

    made = from_dict(
        {"name": "x", "data": {"train": "a", "size": SIZE, "augment": ["flip", "crop"]}}
    )
    of_train, of_val = loop.load_items(made, lambda: blocks)
    assert of_train.augment == ("flip", "crop") and of_val.augment == ()


def test_flipped_items_say_so_in_their_sentence(blocks, items, model):
    chosen, plain = np.arange(len(items["train"])), items["train"]
    a, b = (
        plain.batch(chosen, model, seed=0, epoch=0),
        train(blocks, "flip").batch(chosen, model, seed=0, epoch=0),
    )
    drawn = augment.flips(a.item, 0, 0)
    sentences = [item.sentence["sent"] for item in plain.picks(chosen, 0, 0)]
    swapped = [mirrored(s) if d else None for s, d in zip(sentences, drawn, strict=True)]
    assert 0.3 < np.mean(drawn) < 0.7 and any(
        s not in (None, t) for s, t in zip(swapped, sentences, strict=True)
    )
    for k, new in enumerate(swapped):
        done = new is not None
        assert torch.equal(b.image[k], a.image[k].flip(2) if done else a.image[k]) and torch.equal(
            b.mask[k], a.mask[k].flip(1) if done else a.mask[k]
        )
        assert torch.equal(b.tokens[k], model.tokenise([new if done else sentences[k]])[0][0])
    assert torch.equal(a.item, b.item)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_augmented_batches_are_the_same_on_any_number_of_workers(blocks, model, world):
    def epoch(world, epoch=1):
        items = train(blocks, "flip", "crop")
        return [
            list(
                batches.train_batches(
                    items, model, batch=12, seed=5, epoch=epoch, rank=r, world=world
                )
            )
            for r in range(world)
        ]

    (whole,), ranks = epoch(1), epoch(world)
    for one, *parts in zip(whole, *ranks, strict=True):
        for name in ("image", "mask", "tokens", "real"):
            assert torch.equal(torch.cat([getattr(p, name) for p in parts]), getattr(one, name))
    (other,) = epoch(1, epoch=2)
    first = {int(i): image for b in whole for i, image in zip(b.item, b.image, strict=True)}
    again = {int(i): image for b in other for i, image in zip(b.item, b.image, strict=True)}
    assert any(not torch.equal(first[i], again[i]) for i in first.keys() & again.keys())


def test_a_cropped_referent_is_all_there(blocks, items, model):
    chosen = np.arange(len(items["train"]))
    a, b = items["train"].batch(chosen, model), train(blocks, "crop").batch(chosen, model)
    small, large = a.mask.flatten(1).sum(1), b.mask.flatten(1).sum(1)
    assert (
        (large >= 0.9 * small).all()
        and (large > small).float().mean() > 0.7
        and torch.equal(a.tokens, b.tokens)
    )


@pytest.mark.parametrize(
    ("sentence", "named"),
    [
        ("red shirt", True),
        ("the lighter one", True),
        ("dark haired girl", True),
        ("greenish", True),
        ("whitest cow", True),
        ("light-brown dog", True),
        ("Grey-Blue", True),
        ("left man", False),
        ("lightning bolt", False),
        ("grandma with a tantrum", False),
        ("greenhouse", False),
    ],
)
def test_sentences_that_name_a_colour(sentence, named):
    assert augment.names_colour(sentence) == named


def test_colour_jitter_by_hand():
    image = np.zeros((4, 4, 3), np.uint8)
    image[1:3] = (100, 50, 0)
    real = (1, 0, 3, 4)
    middle = [0.5, 0.5, 0.5, 0.5]
    assert np.array_equal(augment.jitter(image, real, middle), image), "the middle changes nothing"
    brighter = augment.jitter(image, real, [0.75, *middle[1:]])
    assert (brighter[1:3] == (120, 60, 0)).all() and not brighter[[0, 3]].any(), "x 1.2"
    # grey of (100, 50, 0) is 59: halfway between 1 - .4 and 1 the distance to it is x 0.8
    paler = augment.jitter(image, real, [0.5, 0.5, 0.25, 0.5])
    assert np.abs(paler[1, 0].astype(int) - (92, 52, 12)).max() <= 1
    # hue 30 degrees of 360, turned by at most a tenth of a full turn
    turned = augment.jitter(image, real, [0.5, 0.5, 0.5, 1 - 1e-9])
    hue = colorsys.rgb_to_hsv(*(turned[1, 0] / 255))[0]
    assert hue == pytest.approx(30 / 360 + augment.HUE_JITTER, abs=0.01)
    assert image[1, 0].tolist() == [100, 50, 0]


def test_only_items_whose_sentence_names_no_colour_are_changed(blocks, items, model):
    plain, jittered = train(blocks), train(blocks, "colour")
    chosen = np.arange(len(plain))
    a, b = (x.batch(chosen, model, seed=0, epoch=1) for x in (plain, jittered))
    sentences = [plain.pick(i, 0, 1).sentence["sent"] for i in range(len(plain))]
    same = (a.image == b.image).flatten(1).all(1).tolist()
    named = [augment.names_colour(sentence) for sentence in sentences]
    assert all(s for s, n in zip(same, named, strict=True) if n) and any(named)
    assert sum(same) < len(same) - sum(not n for n in named) // 2
    assert torch.equal(a.mask, b.mask) and torch.equal(a.tokens, b.tokens)


def test_an_arm_that_ends_in_colour_trains_with_it():
    tree = {"name": "x", "data": {"train": "a", "augment": ["flip"]}}
    arms = ["off", "off+colour", "aml/calibrated+colour@compute"]
    experiment = from_dict(tree | {"search": {"arms": arms}})
    found = [experiment.for_arm(arm, {}) for arm in arms]
    assert [e.data.augment for e in found] == [["flip"], *[["flip", "colour"]] * 2]
    assert [e.aml.mode for e in found] == ["off", "off", "aml"]


def test_an_unknown_augmentation_is_refused():
    with pytest.raises(
        UserError,
        match=r"data.augment is 'flipp' \(did you mean flip\?\); known: flip, crop, colour",
    ):
        from_dict({"name": "x", "data": {"train": "a", "augment": ["flipp"]}})
