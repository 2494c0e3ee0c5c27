"""Test corruptions: severity 0, seeding, constants, promised orders of PSNR, the command line."""

import functools
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aml.conditions import CORRUPTIONS, SEVERITIES, parse_corruptions
from aml.data import corruptions
from aml.data.corruptions import corrupt, occlusion_mask
from aml.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
FALLING = ("noise", "blur", "jpeg", "low_light", "occlusion")
SEEDED = ("fog", "low_light", "occlusion", "noise")


def scene(seed: int, height: int = 120, width: int = 160) -> np.ndarray:
    """Return a picture with smooth light, hard edges and texture, (height, width, 3) uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    picture = np.stack(
        [60 + 120 * y / height, 40 + 150 * x / width, 90 + 60 * (x + y) / (height + width)], axis=-1
    )
    for _ in range(12):
        top, left = rng.integers(height), rng.integers(width)
        picture[top : top + rng.integers(5, 60), left : left + rng.integers(5, 60)] = rng.integers(
            0, 256, 3
        )
    return np.clip(picture + rng.normal(0, 6, picture.shape), 0, 255).astype(np.uint8)


def psnr(clean: np.ndarray, other: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio in dB, peak 255."""
    error = np.mean(np.square(clean.astype(np.float64) - other))
    return float(10 * np.log10(255**2 / error))


@functools.cache
def load_photos() -> dict[int, np.ndarray]:
    """Return the first 32 real pictures at native size, by image id; skip if there are none."""
    folder = Path(os.environ.get("AMLRIS_REAL_DATA", ROOT / "../shared/data")) / "coco128/images"
    files = sorted(folder.glob("*.jpg"))[:32]
    if len(files) < 32:
        pytest.skip(
            f"needs 32 JPEG files in {folder}; set AMLRIS_REAL_DATA to the folder that holds "
            "coco128"
        )
    return {int(file.stem): np.array(Image.open(file).convert("RGB")) for file in files}


@functools.cache
def photo_psnr(name: str) -> list[float]:
    """Cache mean_psnr of the photographs, which several tests need."""
    return mean_psnr(load_photos(), name)


def mean_psnr(images: dict[int, np.ndarray], name: str) -> list[float]:
    """Return the mean PSNR at each severity 1 to 5."""
    return [
        float(np.mean([psnr(im, corrupt(im, name, s, key)) for key, im in images.items()]))
        for s in SEVERITIES
    ]


def test_the_seven_names():
    assert set(CORRUPTIONS) == {"fog", "low_light", "occlusion", "noise", "blur", "colour", "jpeg"}
    assert len(CORRUPTIONS) == 7


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_severity_zero_is_bit_equal_and_a_copy(name):
    image = scene(1)
    result = corrupt(image, name, 0, 5)
    assert np.array_equal(result, image)
    assert not np.shares_memory(result, image)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_shape_dtype_input_kept_and_every_severity_its_own(name):
    image = scene(2)
    kept = image.copy()
    results = [corrupt(image, name, s, 7) for s in range(6)]
    assert np.array_equal(image, kept)
    assert all(r.shape == image.shape and r.dtype == np.uint8 for r in results)
    assert len({r.tobytes() for r in results}) == 6


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("size", [(1, 1), (1, 37), (37, 1), (2, 3), (17, 300), (257, 64)])
def test_any_size(name, size):
    image = scene(3, *size)
    for severity in SEVERITIES:
        assert corrupt(image, name, severity, 1).shape == (*size, 3)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("value", [0, 128, 255])
def test_an_image_of_one_value_stays_finite(name, value):
    image = np.full((20, 30, 3), value, np.uint8)
    with np.errstate(all="raise"):
        assert corrupt(image, name, 5, 1).shape == image.shape


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_views_give_what_their_copies_give(name):
    view = scene(4)[::-1, ::-2]
    assert np.array_equal(corrupt(view, name, 3, 1), corrupt(view.copy(), name, 3, 1))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_same_arguments_same_picture_whatever_was_drawn_before(name):
    image = scene(5)
    first = corrupt(image, name, 3, 11)
    np.random.seed(0)
    for other in CORRUPTIONS:
        corrupt(image, other, 5, 12)
    assert np.array_equal(corrupt(image, name, 3, np.int64(11)), first)


def test_the_random_stream_is_the_same_in_every_process():
    assert corruptions._generator("fog", 3, 42).bit_generator.random_raw() == 8210053146517362893


@pytest.mark.parametrize("name", SEEDED)
def test_another_image_id_draws_another_picture(name):
    image = scene(6)
    assert len({corrupt(image, name, 3, key).tobytes() for key in range(8)}) == 8


def test_name_and_severity_are_part_of_the_seed():
    grey = np.full((64, 64, 3), 128, np.uint8)
    weak, strong = (corrupt(grey, "noise", s, 1)[..., 0].astype(float) - 128 for s in (1, 2))
    assert abs(np.corrcoef(weak.ravel(), strong.ravel())[0, 1]) < 0.1
    streams = [
        corruptions._generator(name, 1, 1).bit_generator.random_raw() for name in CORRUPTIONS
    ]
    assert len(set(streams)) == len(CORRUPTIONS)


@pytest.mark.parametrize("name", FALLING)
def test_psnr_falls_with_severity_on_drawn_images(name):
    values = mean_psnr({key: scene(key) for key in range(32)}, name)
    assert all(a > b for a, b in pairwise(values)), values


@pytest.mark.parametrize("name", FALLING)
def test_psnr_falls_with_severity_on_photographs(name):
    values = photo_psnr(name)
    assert all(a > b for a, b in pairwise(values)), values


@pytest.mark.parametrize(
    (
        "name",
        "published",
    ),  # the reference implementations on other COCO photographs, so within 2 dB and not equal
    [
        ("noise", (22.3, 19.0, 15.8, 13.1, 10.7)),
        ("blur", (23.3, 22.4, 21.1, 20.4, 19.8)),
        ("fog", (14.5, 13.6, 13.0, 12.9, 12.4)),
        ("jpeg", (26.8, 25.9, 25.4, 24.3, 23.2)),
        ("low_light", (10.8, 10.0, 9.2, 8.5, 7.8)),
    ],
)
def test_psnr_is_near_that_of_the_reference_implementations(name, published):
    assert photo_psnr(name) == pytest.approx(published, abs=2.0)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_noise_has_the_stated_deviation(severity):
    grey = np.full((200, 200, 3), 128, np.uint8)
    sigma = corruptions.NOISE[severity - 1]
    result = corrupt(grey, "noise", severity, 3).astype(float) / 255
    inside = np.abs(
        np.random.default_rng(0).normal(128 / 255, sigma, 200_000).clip(0, 1) - 128 / 255
    ).mean()
    assert np.abs(result - 128 / 255).mean() == pytest.approx(inside, rel=0.02)


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("size", [(120, 160), (640, 60), (9, 500)])
def test_occlusion_covers_its_share_in_the_mean_colour(severity, size):
    image = scene(8, *size)
    for key in range(10):
        covered = occlusion_mask(*size, severity, key)
        result = corrupt(image, "occlusion", severity, key)
        assert covered.mean() == pytest.approx(corruptions.OCCLUSION[severity - 1], abs=0.003)
        assert np.array_equal(result[~covered], image[~covered])
        assert np.array_equal(
            np.unique(result[covered], axis=0), [np.rint(image.mean(axis=(0, 1)))]
        )


def test_occlusion_mask_is_empty_at_severity_zero_and_needs_an_area():
    assert not occlusion_mask(8, 9, 0, 1).any()
    with pytest.raises(UserError, match="0 x 9 pixels"):
        occlusion_mask(0, 9, 1, 1)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_blur_spreads_a_point_over_the_disk_and_keeps_flat_areas(severity):
    radius, _ = corruptions.BLUR[severity - 1]
    image = np.zeros((61, 61, 3), np.uint8)
    image[30, 30] = 255
    spread = corruptions._disk(*corruptions.BLUR[severity - 1])
    assert spread.sum() == pytest.approx(1, abs=1e-4)
    lit = corrupt(image, "blur", severity, 1)[..., 0] > 0
    assert np.flatnonzero(lit[30]).tolist()[0] in (30 - radius, 29 - radius, 28 - radius)
    flat = np.full((40, 40, 3), 77, np.uint8)
    assert np.array_equal(corrupt(flat, "blur", severity, 1), flat)


def test_colour_turns_hue_and_leaves_grey():
    red = np.zeros((2, 2, 3), np.uint8)
    red[..., 0] = 200
    grey = np.full((2, 2, 3), 90, np.uint8)
    assert corrupt(red, "colour", 5, 1)[0, 0].tolist() == [0, 200, 200]
    seen = {tuple(corrupt(red, "colour", 2, key)[0, 0].tolist()) for key in range(16)}
    assert seen == {(200, 120, 0), (200, 0, 120)}
    assert all(np.array_equal(corrupt(grey, "colour", s, 1), grey) for s in SEVERITIES)


def test_colour_keeps_value_and_saturation():
    image = scene(9)
    result = corrupt(image, "colour", 3, 1)
    for extreme in (np.max, np.min):
        assert np.abs(extreme(image, axis=2).astype(int) - extreme(result, axis=2)).max() <= 1


@pytest.mark.parametrize("severity", SEVERITIES)
def test_low_light_caps_brightness(severity):
    image = np.zeros((60, 60, 3), np.uint8)
    image[:, 30:] = 255
    result = corrupt(image, "low_light", severity, 1).astype(float) / 255
    assert result[:, 30:].mean() == pytest.approx(corruptions.LOW_LIGHT[severity - 1], abs=0.01)
    assert result[:, :30].mean() < 0.02


@pytest.mark.parametrize("severity", SEVERITIES)
def test_fog_is_one_uneven_veil_over_all_channels(severity):
    image = scene(10)
    foggy = corrupt(image, "fog", severity, 2)
    thickness = corruptions.FOG[severity - 1][0]
    x = image / 255
    peak = image.max() / 255
    veil = foggy / 255 * (peak + thickness) / peak - x
    veil[foggy == 255] = np.nan  # clipped
    rounding = (peak + thickness) / peak / 255
    assert np.nanmin(veil) > -rounding
    assert np.nanmax(veil) < thickness + rounding
    assert np.nanmax(np.ptp(veil, axis=2)) < rounding
    assert np.nanmax(veil) - np.nanmin(veil) > 0.3 * thickness


@pytest.mark.parametrize("side", [2, 8, 256])
def test_plasma_fills_zero_to_one(side):
    field = corruptions._plasma(side, 1.7, np.random.default_rng(0))
    assert field.shape == (side, side)
    assert (field.min(), field.max()) == (0.0, 1.0)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        [[[0, 0, 0]]],
    ],
    ids=["grey", "rgba", "float", "empty", "list"],
)
def test_other_arrays_are_refused(image):
    with pytest.raises(UserError, match="uint8 array of shape"):
        corrupt(image, "fog", 0, 1)


@pytest.mark.parametrize("severity", [-1, 6, 2.0, "3", None])
def test_other_severities_are_refused(severity):
    with pytest.raises(UserError, match="from 0 .clean. to 5"):
        corrupt(scene(1), "fog", severity, 1)
    with pytest.raises(UserError, match="from 0 .clean. to 5"):
        occlusion_mask(4, 4, severity, 1)


@pytest.mark.parametrize("image_id", [-1, "12", 1.5])
def test_other_image_ids_are_refused(image_id):
    with pytest.raises(UserError, match="not negative"):
        corrupt(scene(1), "fog", 1, image_id)


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(UserError, match="'color' is not known; did you mean 'colour'"):
        corrupt(scene(1), "color", 0, 1)


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("fog:3,noise:1", [("fog", 3), ("noise", 1)]),
        (" noise : 1 , fog:0 ", [("noise", 1), ("fog", 0)]),
        ("fog:all", [("fog", s) for s in range(1, 6)]),
        ("all:2", [(n, 2) for n in CORRUPTIONS]),
        ("all:all", [(n, s) for n in CORRUPTIONS for s in range(1, 6)]),
        ("fog:2,fog:2,fog:all", [("fog", 2), ("fog", 1), ("fog", 3), ("fog", 4), ("fog", 5)]),
    ],
)
def test_parse(text, pairs):
    assert parse_corruptions(text) == pairs


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("fgo:3", "did you mean 'fog'"),
        ("Fog:3", "did you mean 'fog'"),
        ("lowlight:3", "did you mean 'low_light'"),
        ("gaussian_noise:3", "did you mean 'noise'"),
        ("xyz:1", "known names are fog, low_light, occlusion, noise, blur, colour, jpeg"),
        ("xyz:1", "severity of 0 to 5"),
        ("fog:6", "give 0 .clean., 1, 2, 3, 4, 5 or all"),
        ("fog:-1", "Severity '-1' of corruption 'fog'"),
        ("fog:³", "Severity '³' of corruption 'fog'"),
        ("fog:2.5", "Severity '2.5'"),
        ("fog", "'fog' is not name:severity"),
        ("fog:", "is not name:severity"),
        ("fog:1,,noise:1", "'' is not name:severity"),
        ("", "is not name:severity"),
    ],
)
def test_parse_refuses(text, part):
    with pytest.raises(UserError, match=part):
        parse_corruptions(text)
