"""Test that pictures of a few formats are opened, up to a number of pixels."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, strategies as st
from PIL import Image

from aml.errors import UserError
from aml.reading import decode_as, open_picture, pixels_of
from tests.support.fuzzing import damaged, outcome

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
COLOURS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


def encoded(picture, form):
    out = io.BytesIO()
    Image.fromarray(picture).save(out, form)
    return out.getvalue()


def png_header(width, height):
    """Return a PNG file that says its size and holds hardly any pixel."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(bytes(9))), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def read(content, **options):
    return np.asarray(decode_as(open_picture(content, "it", **options), "it", upright=True))


@pytest.mark.parametrize("form", FORMATS)
def test_these_formats_are_read(form):
    found = read(encoded(COLOURS, form))
    assert found.shape == COLOURS.shape
    assert form in ("JPEG", "WEBP") or np.array_equal(found, COLOURS)


def test_no_other_format_is_read_and_no_program_is_run(tmp_path, monkeypatch):
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/was-run\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    for content in (encoded(COLOURS, "EPS"), encoded(COLOURS, "GIF"), encoded(COLOURS, "PPM")):
        with pytest.raises(UserError, match="it is no picture, or of another format"):
            read(content)
    assert not (tmp_path / "was-run").exists()


def test_a_picture_of_too_many_pixels_is_refused_by_its_header():
    limit = Image.MAX_IMAGE_PIXELS
    for width, height in ((20_000, 10_000), (100_000, 100_000)):
        with pytest.raises(
            UserError, match=rf"is {width} x {height} pixels, and 100 .* a larger --max-megapixels"
        ):
            open_picture(png_header(width, height), "it")
    # a larger limit than Pillow's own
    assert open_picture(png_header(20_000, 10_000), "it", pixels_of(300)).size == (20_000, 10_000)
    assert limit == Image.MAX_IMAGE_PIXELS
    for megapixels in (0, -1, float("nan"), float("inf"), 1e9):
        with pytest.raises(UserError, match="--max-megapixels is"):
            pixels_of(megapixels)


@pytest.mark.parametrize("kind", [np.uint16, np.float32, np.int32])
def test_a_picture_of_more_than_8_bits_is_refused(kind):
    form = "PNG" if kind == np.uint16 else "TIFF"
    with pytest.raises(UserError, match="more than 8 bits a channel"):
        open_picture(encoded(np.full((4, 4), 4000, kind), form), "it")


@pytest.mark.fuzz
@given(st.sampled_from([encoded(COLOURS, form) for form in FORMATS]).flatmap(damaged))
def test_a_damaged_picture_is_read_or_refused(content):
    found = outcome(read, content, max_pixels=10**6)
    assert isinstance(found, UserError) or (found.shape[2] == 3 and found.dtype == np.uint8)
