"""Decode the picture and masks of a row to arrays at network size.

The module does not import torch, so that processes that only decode start without it.

- A row is one image: its JPEG once, every annotated object as RLE, its refs with their sentences
  (see `refer`).
- A decoded row is one image at network size: pixels, packed referent masks, and the rest of the row
  as JSON (see `decode_row`).
- A block is several decoded rows, stacked (see `rows_of_block`).
"""

import json

import numpy as np
from PIL import Image

from aml.conditions import CLEAN, Condition
from aml.data.rle import rasterise, referent
from aml.reading import (
    MAX_PIXELS,
    MOST_PIXELS,
    UnreadableImage,
    decode_as,
    open_picture,
    orientation,
)

LETTERBOX = (124, 116, 104)
"""Colour around a letterboxed picture: the mean of natural images."""


def decode_image(content: bytes, name: str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode a picture of 8 bits a channel to (H, W, 3) uint8.

    EXIF's orientation is not applied, since masks are drawn on the pixels as they lie in the file.

    Args:
        content: content of the file.
        name: name of the file, for the message.
        max_pixels: height times width at most.

    Raises:
        UnreadableImage: the content is damaged, too large or no such picture.
    """
    return np.asarray(decode_as(open_picture(content, name, max_pixels), name))


def row_picture(row: dict) -> Image.Image:
    """Decode the picture of a row to RGB as it lies in the file.

    Raises:
        UnreadableImage: the picture is damaged, or not of the size that its annotations are for.
    """
    picture = open_picture(row["jpeg"], row["file_name"], MOST_PIXELS)
    if picture.size != (row["width"], row["height"]):
        turned = picture.size == (row["height"], row["width"]) and picture_kind(picture)[1]
        raise UnreadableImage(
            f"{row['file_name']} is {picture.width} x {picture.height}, but its annotations are "
            f"for {row['width']} x {row['height']}; "
            + (
                "EXIF turns it when it is shown, and masks must lie on the file's own pixels: save "
                "it upright"
                if turned
                else "get the original image"
            )
        )
    return decode_as(picture, row["file_name"])


def picture_kind(picture: Image.Image) -> tuple[str, bool]:
    """Return the format of an open picture, and whether EXIF turns it when it is shown."""
    try:
        turned = orientation(picture, "it") != 1
    except UnreadableImage:  # damaged EXIF turns nothing
        turned = False
    return picture.format or "", turned


def placement(height: int, width: int, size: int, fit: str) -> tuple[int, int, int, int]:
    """Return where an image lies in the network image.

    Args:
        height: pixels of the original.
        width: pixels of the original.
        size: side of the square network image.
        fit: "square" stretches the image; otherwise it is letterboxed.

    Returns:
        Top, left, bottom and right in pixels.
    """
    if fit == "square":
        return 0, 0, size, size
    scale = size / max(height, width)
    h = max(1, round(height * scale))
    w = max(1, round(width * scale))
    top = (size - h) // 2
    left = (size - w) // 2
    return top, left, top + h, left + w


def fit_image(image: np.ndarray | Image.Image, size: int, fit: str) -> np.ndarray:
    """Resize an image to network size.

    The resize is Pillow's, bilinear with antialiasing, as in the published loaders.

    Args:
        image: (H, W, 3) uint8 or an RGB picture.
        size: side of the network image.
        fit: see `placement`.

    Returns:
        (size, size, 3) uint8.
    """
    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    top, left, bottom, right = placement(picture.height, picture.width, size, fit)
    resized = np.asarray(picture.resize((right - left, bottom - top), Image.Resampling.BILINEAR))
    if resized.shape[:2] == (size, size):
        return resized
    out = np.full((size, size, 3), LETTERBOX, np.uint8)
    out[top:bottom, left:right] = resized
    return out


def fit_mask(mask: np.ndarray, size: int, fit: str) -> np.ndarray:
    """Resize a mask to network size by Pillow's nearest neighbour.

    Args:
        mask: (H, W) uint8 of 0 and 1.
        size: side of the network image.
        fit: see `placement`.

    Returns:
        (size, size) bool.
    """
    height, width = mask.shape
    top, left, bottom, right = placement(height, width, size, fit)
    out = np.zeros((size, size), bool)
    out[top:bottom, left:right] = np.asarray(
        Image.fromarray(mask).resize((right - left, bottom - top), Image.Resampling.NEAREST)
    )
    return out


def decode_row(row: dict, size: int, fit: str = "square", condition: Condition = CLEAN) -> dict:
    """Decode a row to network size.

    Args:
        row: a row with its `jpeg`.
        size: side of the network image.
        fit: see `placement`.
        condition: corruption and severity of the picture, which acts before the resize.

    Returns:
        `image`, (size, size, 3) uint8; `masks`, bytes with one bit a pixel, one ref after the
        other, each padded to whole bytes; `meta`, the rest of the row as JSON text.
    """
    picture: Image.Image | np.ndarray = row_picture(row)
    if condition != CLEAN:
        from aml.data.corruptions import corrupt  # imports OpenCV, which clean pictures do without

        picture = corrupt(np.asarray(picture), *condition, row["image_id"])
    image = fit_image(picture, size, fit)
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
    """Stack decoded rows: `image` (n, H, W, 3) uint8, `masks` list of bytes, `meta` list of str."""
    return {
        "image": np.stack([d["image"] for d in decoded]),
        "masks": [d["masks"] for d in decoded],
        "meta": [d["meta"] for d in decoded],
    }
