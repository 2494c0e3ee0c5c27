"""A row's pictures and masks as arrays at network size. Without torch: processes that only decode need not wait for it.

row      one image: its JPEG once, every annotated object as RLE, its refs with their sentences   (aml.refer)
decoded  one image at network size: pixels, packed referent masks, the rest of the row as JSON    (decode_row)
block    decoded rows, stacked                                                                    (block_of)
"""

import io
import json

import numpy as np
from PIL import Image, UnidentifiedImageError

from aml.data.rle import referent
from aml.errors import UserError

LETTERBOX = (124, 116, 104)

"""Colour around a letterboxed picture: the mean of natural images."""


class UnreadableImage(UserError):
    """A JPEG that cannot be decoded whole."""


def open_image(jpeg: bytes, name: str) -> Image.Image:
    """JPEG or PNG (colour, grey, palette or CMYK) -> RGB, decoded, as it lies in the file: EXIF's orientation is not applied, since masks are
    drawn on the file's own pixels. UnreadableImage names the file."""
    try:
        picture = Image.open(io.BytesIO(jpeg))
        if picture.mode.startswith(("I", "F")):  # Pillow would cut these off at 255
            raise ValueError("it has more than 8 bits a channel")
        picture.load()
        return picture if picture.mode == "RGB" else picture.convert("RGB")
    except (
        Exception
    ) as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error ... on damaged files
        why = (
            "it is empty"
            if not jpeg
            else "it is no picture"
            if isinstance(error, UnidentifiedImageError)
            else str(error)
        )
        raise UnreadableImage(
            f"{name} cannot be decoded ({why}); get the image again, or pass skip_unreadable to leave such images out"
        ) from None


def decode_image(jpeg: bytes, name: str) -> np.ndarray:
    """open_image's as (H, W, 3) uint8."""
    return np.asarray(open_image(jpeg, name))


def placement(height: int, width: int, size: int, fit: str) -> tuple[int, int, int, int]:
    """Where an image lands in the size x size network image: top, left, bottom, right in pixels."""
    if fit == "square":
        return 0, 0, size, size
    scale = size / max(height, width)
    h, w = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = (size - h) // 2, (size - w) // 2
    return top, left, top + h, left + w


def fit_image(image: np.ndarray | Image.Image, size: int, fit: str) -> np.ndarray:
    """(H, W, 3) uint8 -> (size, size, 3) uint8, bilinear with antialiasing (Pillow's, as the published loaders do it)."""
    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    top, left, bottom, right = placement(picture.height, picture.width, size, fit)
    resized = np.asarray(picture.resize((right - left, bottom - top), Image.Resampling.BILINEAR))
    if resized.shape[:2] == (size, size):
        return resized
    out = np.full((size, size, 3), LETTERBOX, np.uint8)
    out[top:bottom, left:right] = resized
    return out


def fit_mask(mask: np.ndarray, size: int, fit: str) -> np.ndarray:
    """(H, W) uint8 0/1 -> (size, size) bool, nearest as Pillow does it."""
    top, left, bottom, right = placement(*mask.shape, size, fit)
    out = np.zeros((size, size), bool)
    out[top:bottom, left:right] = np.asarray(
        Image.fromarray(mask).resize((right - left, bottom - top), Image.Resampling.NEAREST)
    )
    return out


def rasterise(counts: str, height: int, width: int) -> np.ndarray:
    """Compressed RLE counts -> (height, width) uint8 of 0 and 1."""
    from pycocotools import mask

    return mask.decode({"size": [height, width], "counts": counts.encode()})


def decode_row(row: dict, size: int, fit: str = "square") -> dict:
    """A row with its `jpeg` -> image (size, size, 3) uint8, masks bytes (one bit a pixel, refs after one another), meta JSON text."""
    image = fit_image(open_image(row["jpeg"], row["file_name"]), size, fit)
    masks = [
        fit_mask(rasterise(referent(row, ref), row["height"], row["width"]), size, fit)
        for ref in row["refs"]
    ]
    meta = {key: value for key, value in row.items() if key not in ("jpeg", "path")}
    return {
        "image": image,
        "masks": np.packbits(np.stack(masks).reshape(len(masks), -1), axis=1).tobytes(),
        "meta": json.dumps(meta),
    }


def rows_of_block(decoded: list[dict]) -> dict:
    """Decoded rows to one block: image (n, H, W, 3) uint8, masks list of bytes, meta list of str."""
    return {
        "image": np.stack([d["image"] for d in decoded]),
        "masks": [d["masks"] for d in decoded],
        "meta": [d["meta"] for d in decoded],
    }
