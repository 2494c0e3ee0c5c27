"""Open pictures: files of a few formats, up to a number of pixels."""

import io
import threading
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from aml.errors import Unreadable, UserError
from aml.reading.files import read_bytes

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
"""Formats that are read. Pillow knows more, and hands some of them to other programs."""

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""Endings of the names of such files."""

MAX_PIXELS = 100_000_000
"""Pixels of a picture at most, where nobody says otherwise; 300 MB once decoded."""

MOST_PIXELS = 2_000_000_000
"""Largest limit that may be given; run lengths of masks are 32-bit numbers."""

MAX_BYTES = 1 << 29
"""Largest picture file in bytes."""

EIGHT_BITS = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")
"""Pillow's modes of pictures of 8 bits a channel."""

ORIENTATION = 0x0112
"""EXIF's tag for how a picture is to be turned when it is shown."""

_header_lock = threading.Lock()

# what is wrong with a picture ends in a sentence, or does no harm
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


class UnreadableImage(Unreadable):
    """A picture is damaged, too large, or of a format or kind that is not read."""


def read_picture(path: Path, name: str = "") -> bytes:
    """Return the content of a picture's file.

    Args:
        path: the file.
        name: how messages begin; by default with the path.

    Raises:
        Unreadable: as `read_bytes`.
    """
    return read_bytes(path, _wanted(FORMATS), MAX_BYTES, name)


def open_picture(
    content: bytes,
    name: str,
    max_pixels: int = MAX_PIXELS,
    *,
    formats: Sequence[str] = FORMATS,
    modes: Iterable[str] = EIGHT_BITS,
    option: str = "--max-megapixels",
) -> Image.Image:
    """Open a picture without decoding its pixels; format, size and mode are checked.

    Args:
        content: content of the file.
        name: name of the file, with which messages begin.
        max_pixels: height times width at most.
        formats: admitted formats, of FORMATS.
        modes: Pillow's modes that are admitted.
        option: what raises the limit, for the message.

    Raises:
        UnreadableImage: the picture is damaged, too large, or of another format or mode.
    """
    try:
        picture = _open_header(content, tuple(formats))
    except UnidentifiedImageError:
        why = "it is no picture, or of another format" if content else "it is empty"
        raise UnreadableImage(
            f"{name} cannot be read as a picture ({why}); give {_wanted(formats)}"
        ) from None
    except Exception as error:  # on damaged files Pillow raises almost anything
        raise _damaged(name, error) from None
    check_pixels(picture.width, picture.height, name, max_pixels, option)
    if picture.mode not in modes:
        raise UnreadableImage(
            f"{name} cannot be read as a picture (its pixels are {picture.mode}: it has "
            "more than 8 bits a channel, or no colours); save it with 8 bits a channel"
        )
    return picture


def decode_as(
    picture: Image.Image, name: str, mode: str = "RGB", *, upright: bool = False
) -> Image.Image:
    """Decode the pixels of an open picture and convert them.

    Args:
        picture: the result of `open_picture`.
        name: name of the file, with which messages begin.
        mode: Pillow's mode of the result.
        upright: turn the picture as EXIF's orientation says.

    Raises:
        UnreadableImage: the pixels are damaged.
    """
    try:
        picture.load()
        picture = ImageOps.exif_transpose(picture) if upright else picture
        return picture if picture.mode == mode else picture.convert(mode)
    except Exception as error:  # on damaged files Pillow raises almost anything
        raise _damaged(name, error) from None


def orientation(picture: Image.Image, name: str) -> int:
    """Return EXIF's orientation of an open picture, 1 where it is upright.

    Raises:
        UnreadableImage: EXIF's entries are damaged.
    """
    try:
        return picture.getexif().get(ORIENTATION, 1)
    except Exception as error:  # on damaged entries Pillow raises almost anything
        raise _damaged(name, error) from None


def check_pixels(
    width: int, height: int, name: str, max_pixels: int, option: str = "--max-megapixels"
) -> None:
    """Raise UnreadableImage where a picture has more pixels than the limit.

    Args:
        width: pixels.
        height: pixels.
        name: name of the picture, with which the message begins.
        max_pixels: height times width at most.
        option: what raises the limit, for the message.
    """
    if width * height > max_pixels:
        raise UnreadableImage(
            f"{name} is {width} x {height} pixels, and {max_pixels / 1e6:g} megapixels are the "
            f"most; give a smaller picture or a larger {option}"
        )


def pixels_of(megapixels: float) -> int:
    """Return the limit in pixels that an option names in megapixels.

    Raises:
        UserError: the number is not above 0 and at most MOST_PIXELS.
    """
    if not 0 < megapixels <= MOST_PIXELS / 1e6:
        raise UserError(
            f"--max-megapixels is {megapixels:g}; give a number above 0, and at most "
            f"{MOST_PIXELS / 1e6:g}"
        )
    return int(megapixels * 1e6)


def _open_header(content: bytes, formats: tuple[str, ...]) -> Image.Image:
    """Open a picture of any size: Pillow's limit is one for the process and cannot be an argument.

    Its limit stands for whatever else uses Pillow, so it is away while the header is read alone.
    """
    with _header_lock:
        limit = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            return Image.open(io.BytesIO(content), formats=formats)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _wanted(formats: Sequence[str]) -> str:
    """Return "a JPEG, PNG or BMP file" for these formats."""
    return f"a {' or '.join(filter(None, (', '.join(formats[:-1]), formats[-1])))} file"


def _damaged(name: str, error: Exception) -> UnreadableImage:
    why = " ".join(str(error).split())[:160] or type(error).__name__
    return UnreadableImage(f"{name} cannot be read as a picture ({why}); get it again")
