"""Corrupt images in seven ways at five severities, for measuring how a trained model degrades.

A corruption acts on the native uint8 RGB image, before any resize. Lengths (the blur radius) are
therefore in native pixels, as in COCO-C, and scores must not be compared with those of images
corrupted after a resize. Geometry never changes, so the clean mask stays the truth. The random
stream depends on (image_id, name, severity) only: all sentences of an image see one picture,
whatever the order or the number of workers.

Sources of formulas and constants (x = image / 255; results are clipped to [0, 1] and rounded to
uint8):

- noise, blur (defocus), fog, jpeg: ImageNet-C, Hendrycks and Dietterich 2019, arXiv 1903.12261;
- low_light: 3D Common Corruptions, Kar et al. 2022, arXiv 2203.01441;
- occlusion: rectangles of Random Erasing, Zhong et al. 2020, arXiv 1708.04896; the total areas are
  this project's;
- colour: hue rotation; the angles are this project's.
"""

import io
import math
import operator
import zlib
from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image

from aml.conditions import SEVERITIES, check_corruption
from aml.errors import UserError

FOG = ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))
"""Thickness, and roughness decay of the plasma."""

LOW_LIGHT = (0.60, 0.50, 0.40, 0.30, 0.20)
"""Brightest value that is left."""

LOW_LIGHT_PHOTONS = 120.0
"""Photons of a pixel of value 1."""

LOW_LIGHT_READ_NOISE = 0.018
"""Standard deviation."""

OCCLUSION = (0.05, 0.10, 0.20, 0.30, 0.40)
"""Share of the image area that is covered."""

OCCLUSION_AREA = (0.02, 0.33)
"""Range of the area of one rectangle, as a share of the image."""

OCCLUSION_RATIO = (0.3, 3.3)
"""Range of height / width of one rectangle."""

OCCLUSION_TOLERANCE = 0.002
"""Share of the image by which the covered area may fall short; filling it would draw specks."""

NOISE = (0.08, 0.12, 0.18, 0.26, 0.38)
"""Standard deviation."""

BLUR = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))
"""Disk radius in pixels, and sigma that softens the edge of the disk."""

COLOUR = (0.05, 0.10, 0.20, 0.30, 0.50)
"""Share of a full turn of hue."""

JPEG = (25, 18, 15, 10, 7)
"""Quality as Pillow counts it."""


def corrupt(image: np.ndarray, name: str, severity: int, image_id: int) -> np.ndarray:
    """Corrupt one image; the same arguments always give the same result.

    Args:
        image: (H, W, 3) uint8 RGB at its native size, left unchanged.
        name: one of CORRUPTIONS.
        severity: 0 (a bit-equal copy) to 5.
        image_id: non-negative id of the picture in its data set.

    Returns:
        A new (H, W, 3) uint8 array.

    Raises:
        UserError: another shape or dtype, an unknown name, or a severity or image_id out of range.
    """
    _check_image(image)
    check_corruption(name)
    level = _check_severity(severity)
    rng = _generator(name, level, image_id)
    if level == 0:
        return image.copy()
    return _FUNCTIONS[name](np.ascontiguousarray(image), level - 1, rng)


def occlusion_mask(height: int, width: int, severity: int, image_id: int) -> np.ndarray:
    """Return the pixels that `corrupt(image, "occlusion", severity, image_id)` covers.

    With this mask an evaluation can score the visible part beside the full mask.

    Args:
        height: pixels, 1 or more.
        width: pixels, 1 or more.
        severity: 0 (nothing is covered) to 5.
        image_id: non-negative id of the picture in its data set.

    Returns:
        (height, width) bool, True where covered.

    Raises:
        UserError: a severity or image_id out of range, or a side below 1.
    """
    if min(height, width) < 1:
        raise UserError(
            f"An image of {height} x {width} pixels cannot be occluded; give sides of at least 1."
        )
    level = _check_severity(severity)
    rng = _generator("occlusion", level, image_id)
    if level == 0:
        return np.zeros((height, width), dtype=bool)
    return _cover(height, width, OCCLUSION[level - 1], rng)


def _check_severity(severity: int) -> int:
    """Return the severity as an int; raise UserError where it is not one of 0 to 5."""
    try:
        level = operator.index(severity)
    except TypeError:
        level = -1
    if not 0 <= level <= len(SEVERITIES):
        raise UserError(
            f"Severity {severity!r} is not known; give a whole number from 0 (clean) to 5."
        )
    return level


def _check_image(image: np.ndarray) -> None:
    """Raise UserError where the image is not a non-empty (H, W, 3) uint8 array."""
    is_array = isinstance(image, np.ndarray)
    if (
        is_array
        and image.dtype == np.uint8
        and image.ndim == 3
        and image.shape[2] == 3
        and image.size
    ):
        return
    came = f"{image.dtype} array of shape {image.shape}" if is_array else type(image).__name__
    raise UserError(
        f"The image to corrupt came as {came}, wanted was a non-empty uint8 array of shape "
        "(H, W, 3); convert it to 8-bit RGB first."
    )


def _generator(name: str, severity: int, image_id: int) -> np.random.Generator:
    """Return the random stream of (image_id, name, severity), the same in every process."""
    try:
        key = operator.index(image_id)
    except TypeError:
        key = -1
    if key < 0:
        raise UserError(
            f"Image id {image_id!r} cannot seed a corruption; give a whole number that is not "
            "negative."
        )
    # crc32, since hash(str) differs by process; PCG64, since numpy may change its default_rng
    seed = np.random.SeedSequence((key, zlib.crc32(name.encode()), severity))
    return np.random.Generator(np.random.PCG64(seed))


def _to_float(image: np.ndarray) -> np.ndarray:
    """Convert uint8 to float32 in [0, 1]."""
    return image.astype(np.float32) / np.float32(255)


def _to_uint8(x: np.ndarray) -> np.ndarray:
    """Clip to [0, 1] and round to uint8."""
    return np.rint(np.clip(x, 0, 1) * 255).astype(np.uint8)


def _fog(image: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    """Return (x + c0 plasma) max / (max + c0), where max is the maximum of x.

    The side of the plasma is the next power of two of the longer side.
    """
    thickness, decay = FOG[level]
    height, width = image.shape[:2]
    side = 1 << max(1, (max(height, width) - 1).bit_length())
    x = _to_float(image)
    brightest = x.max()
    fog = np.float32(thickness) * _plasma(side, decay, rng)[:height, :width, None].astype(
        np.float32
    )
    return _to_uint8((x + fog) * (brightest / (brightest + np.float32(thickness))))


def _plasma(side: int, decay: float, rng: np.random.Generator) -> np.ndarray:
    """Draw a diamond-square fractal on a torus.

    As in ImageNet-C, a midpoint is the mean of its four neighbours plus U(-w^2, w^2), and w is
    divided by `decay` from one scale to the next.

    Args:
        side: a power of two, 2 or more.
        decay: divisor of w.
        rng: source of the draws.

    Returns:
        (side, side) float64 scaled to [0, 1].
    """
    field = np.zeros((side, side))
    step = side
    wibble = 100.0

    def midpoint(total: np.ndarray) -> np.ndarray:
        return total / 4 + wibble * rng.uniform(-wibble, wibble, total.shape)

    while step >= 2:
        half = step // 2
        corners = field[::step, ::step]
        pairs = corners + np.roll(corners, -1, axis=0)
        field[half::step, half::step] = midpoint(pairs + np.roll(pairs, -1, axis=1))
        centres = field[half::step, half::step]
        across = corners + np.roll(corners, -1, axis=1) + centres + np.roll(centres, 1, axis=0)
        down = corners + np.roll(corners, -1, axis=0) + centres + np.roll(centres, 1, axis=1)
        field[::step, half::step] = midpoint(across)
        field[half::step, ::step] = midpoint(down)
        step = half
        wibble /= decay
    field -= field.min()
    return field / field.max()


def _low_light(image: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    """Darken: stretch to [0, 1], apply gamma 2, scale to [0, c], add photon and read noise.

    Photon noise is Poisson, read noise Gaussian.
    """
    x = _to_float(image)
    low = x.min()
    high = x.max()
    if high > low:  # an image of one value has no range to stretch
        x = (x - low) / (high - low)
    dark = np.square(x) * np.float32(LOW_LIGHT[level])
    photons = rng.poisson(dark * LOW_LIGHT_PHOTONS).astype(np.float32) / np.float32(
        LOW_LIGHT_PHOTONS
    )
    return _to_uint8(photons + _normal(rng, image.shape, LOW_LIGHT_READ_NOISE))


def _normal(rng: np.random.Generator, shape: tuple[int, ...], sigma: float) -> np.ndarray:
    """Draw Gaussian float32 noise of standard deviation sigma."""
    return rng.standard_normal(shape, dtype=np.float32) * np.float32(sigma)


def _occlusion(image: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    """Cover a fixed share of the area by rectangles of the image's mean colour."""
    height, width = image.shape[:2]
    covered = _cover(height, width, OCCLUSION[level], rng)
    result = image.copy()
    result[covered] = np.rint(image.mean(axis=(0, 1))).astype(np.uint8)
    return result


def _cover(height: int, width: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """Draw rectangles that together cover a share of the area to within OCCLUSION_TOLERANCE.

    Args:
        height: pixels.
        width: pixels.
        share: share of the area that is to be covered.
        rng: source of the draws.

    Returns:
        (height, width) bool, True where covered.
    """
    covered = np.zeros((height, width), dtype=bool)
    goal = round(share * covered.size)
    missing = goal
    while missing >= max(1.0, OCCLUSION_TOLERANCE * covered.size):
        area = min(rng.uniform(*OCCLUSION_AREA) * covered.size, missing)
        ratio = math.exp(rng.uniform(math.log(OCCLUSION_RATIO[0]), math.log(OCCLUSION_RATIO[1])))
        tall = int(np.clip(math.sqrt(area * ratio), max(1.0, area / width), height))
        wide = int(np.clip(area / tall, 1, width))
        top = rng.integers(height - tall + 1)
        left = rng.integers(width - wide + 1)
        covered[top : top + tall, left : left + wide] = True
        missing = goal - int(covered.sum())
    return covered


def _noise(image: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    """Return x + N(0, c), independent in each pixel and channel."""
    return _to_uint8(_to_float(image) + _normal(rng, image.shape, NOISE[level]))


def _blur(image: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    """Defocus by convolution with a disk, borders mirrored."""
    return _to_uint8(
        cv2.filter2D(_to_float(image), -1, _disk(*BLUR[level]), borderType=cv2.BORDER_REFLECT_101)
    )


def _disk(radius: int, edge_sigma: float) -> np.ndarray:
    """Return a disk of sum 1 whose edge is softened by a Gaussian.

    The Gaussian has 3 x 3 taps, above radius 8 it has 5 x 5, as in ImageNet-C. There the larger
    disks touch the border of the kernel and sum to 1.01, which brightens; here the kernel has room.
    """
    reach = radius + 2
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    size = 3 if radius <= 8 else 5
    disk = cv2.GaussianBlur(
        (x * x + y * y <= radius * radius).astype(np.float32), (size, size), edge_sigma
    )
    return disk / disk.sum()


def _colour(image: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    """Turn the hue by +c or -c of the circle and keep saturation and value; grey pixels stay."""
    hsv = cv2.cvtColor(_to_float(image), cv2.COLOR_RGB2HSV)
    sign = 1 if rng.random() < 0.5 else -1
    hsv[..., 0] = (hsv[..., 0] + np.float32(sign * 360 * COLOUR[level])) % np.float32(360)
    return _to_uint8(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB))


def _jpeg(image: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    """Encode and decode at low quality, chroma at half resolution (Pillow's default)."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=JPEG[level])
    with Image.open(buffer, formats=("JPEG",)) as decoded:
        return np.array(decoded.convert("RGB"))


_FUNCTIONS: dict[str, Callable[[np.ndarray, int, np.random.Generator], np.ndarray]] = {
    "fog": _fog,
    "low_light": _low_light,
    "occlusion": _occlusion,
    "noise": _noise,
    "blur": _blur,
    "colour": _colour,
    "jpeg": _jpeg,
}
