"""Answer the questions of the page of `demo` about pictures, one after the other.

A picture that was sent is kept for a while, so that another sentence, corruption, tau or rho need
not send or encode it again.
"""

import hashlib
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from aml.conditions import CLEAN, Condition
from aml.data import check_sentence, corrupt
from aml.errors import UserError
from aml.inference import (
    PREDICTION_COLOUR,
    PictureMasking,
    Segmenter,
    draw_heatmap,
    draw_overlay,
    shown_masking,
)
from aml.masking import Alignment
from aml.reading import decode_as, open_picture
from aml.training import read_checkpoint_config
from orchestrator.evaluation.pages.html_page import png_url
from orchestrator.evaluation.prediction import predict, to_grey

MAX_SIDE = 1280
"""Longer side in pixels that a picture is reduced to: as much as the page shows."""

CACHE_SIZE = 4
"""Number of pictures, and of encodings of them, that are kept for the next question."""

KEPT_SENTENCES = 16
"""Number of sentences of an encoded picture whose alignment is kept."""


class Side:
    """One of the checkpoints on the page."""

    def __init__(self, segmenter: Segmenter, name: str, arm: str = "") -> None:
        """Prepare the masking that the checkpoint's arm trains with.

        Args:
            segmenter: The model.
            name: What the page calls the checkpoint.
            arm: Its arm; empty where it names none.
        """
        self.segmenter = segmenter
        self.name = name
        self.arm = arm
        self.masking = PictureMasking(segmenter, shown_masking(arm))

    @classmethod
    def load(cls, checkpoint: Path, device: str, precision: str | None) -> "Side":
        """Return the side of a checkpoint's folder.

        Raises:
            UserError: There is no checkpoint, or the precision is unknown.
        """
        segmenter = Segmenter.load(checkpoint, device, precision)
        arm = read_checkpoint_config(checkpoint).get("arm") or ""
        name = f"{segmenter.model.name}, {checkpoint.parent.name}/{checkpoint.name}"
        return cls(segmenter, f"{name}{f', trained as {arm}' if arm else ''}", arm)


@dataclass
class _Seen:
    """A picture as the models see it, clean or corrupted."""

    image: np.ndarray
    """(H, W, 3) uint8, RGB"""
    features: list[list[torch.Tensor]]
    """For each side the result of `encode_image`."""
    ms: list[float]
    """For each side the milliseconds of that."""
    alignments: OrderedDict[str, list[Alignment]] = field(default_factory=OrderedDict)
    """For a sentence the alignment of each side."""


class InferenceServer:
    """Segments pictures with each of its sides, and tells what their training would hide."""

    def __init__(self, sides: list[Side], max_pixels: int) -> None:
        """Start with nothing kept.

        Args:
            sides: The checkpoints, one or two.
            max_pixels: Height times width of a picture at most.
        """
        self.sides = sides
        self.max_pixels = max_pixels
        self.pictures: OrderedDict[str, np.ndarray] = OrderedDict()
        self.seen: OrderedDict[tuple[str, Condition], _Seen] = OrderedDict()

    def segment(self, file: bytes, text: str, condition: Condition = CLEAN) -> dict:
        """Return what the page shows for a picture and a sentence.

        Args:
            file: The bytes of a picture file.
            text: The sentence.
            condition: Corruption and severity. It acts on the picture as it is shown, its longer
                side at most MAX_SIDE.

        Returns:
            picture: the key by which `hide` knows the picture.
            encoded: whether the picture was new under this condition.
            seen: the corrupted picture as a data: URL; None where it is clean.
            sides: for each checkpoint name, arm, share of the picture that the mask covers, note (a
                warning about the sentence, or nothing), ms (milliseconds that it took, the
                encoding of a new picture included), and overlay, probability and alignment as
                data: URLs of PNG pictures.

        Raises:
            UserError: The file is no picture, or one too large, the sentence holds no word, or the
                condition is unknown.
        """
        check_sentence(text)
        key = hashlib.sha256(file).hexdigest()
        if key not in self.pictures:
            self.pictures[key] = _open_reduced(file, self.max_pixels)
        _keep(self.pictures, key)
        is_new = (key, condition) not in self.seen
        seen = self._look(key, condition)
        found = [
            self._ask(side, seen, place, text, is_new) for place, side in enumerate(self.sides)
        ]
        maps = self._alignments(seen, text)
        for side, alignment, one in zip(self.sides, maps, found, strict=True):
            heat = side.masking.full_map(alignment, seen.image.shape[:2])
            one["alignment"] = png_url(draw_heatmap(seen.image, heat))
        return {
            "picture": key,
            "encoded": is_new,
            "seen": None if condition == CLEAN else png_url(seen.image),
            "sides": found,
        }

    def hide(
        self, key: str, text: str, condition: Condition, tau: float, rho: float, draw: int
    ) -> dict | None:
        """Return which blocks of a picture that was sent training would hide.

        Args:
            key: As `segment` returned it.
            text: The sentence.
            condition: Corruption and severity.
            tau: The threshold of alignment, in [0, 1].
            rho: The share of the weak blocks that is hidden, in [0, 1].
            draw: Keys the random choice among them.

        Returns:
            sides: for each checkpoint arm, weak and hidden (lists of boxes: left, top, right,
                bottom as shares of the picture), weak_share and hidden_share of the picture's
                area, and refused, which says why training refuses such settings, or nothing.
            None where the picture is not kept any more.

        Raises:
            UserError: The sentence holds no word, a number is out of range, or the condition is
                unknown.
        """
        check_sentence(text)
        if key not in self.pictures:
            return None
        _keep(self.pictures, key)
        seen = self._look(key, condition)
        size = seen.image.shape[:2]
        maps = self._alignments(seen, text)
        found = []
        for side, alignment in zip(self.sides, maps, strict=True):
            blocks = side.masking.hide(alignment, size, tau, rho, draw)
            found.append({"arm": side.masking.config.arm} | vars(blocks))
        return {"sides": found}

    def _look(self, key: str, condition: Condition) -> _Seen:
        """Return a picture that is kept as the models see it, encoded where it is new."""
        if (key, condition) not in self.seen:
            image = self.pictures[key]
            if condition != CLEAN:
                image = corrupt(image, *condition, image_id=0)
            encoded = [_timed(side.segmenter.encode_image, image) for side in self.sides]
            self.seen[key, condition] = _Seen(
                image, [e[0] for e in encoded], [e[1] for e in encoded]
            )
        return _keep(self.seen, (key, condition))

    def _alignments(self, seen: _Seen, text: str) -> list[Alignment]:
        """Return the alignment of each side with a sentence."""
        if text not in seen.alignments:
            found = [side.masking.align(seen.image, text) for side in self.sides]
            seen.alignments[text] = found
        return _keep(seen.alignments, text, KEPT_SENTENCES)

    def _ask(self, side: Side, seen: _Seen, place: int, text: str, is_new: bool) -> dict:
        """Return what the side at a place finds."""
        (prediction,), ms = _timed(
            predict, side.segmenter, seen.image, [text], seen.features[place]
        )
        overlay = draw_overlay(seen.image, prediction.mask, PREDICTION_COLOUR)
        return {
            "name": side.name,
            "arm": side.arm,
            "share": float(prediction.mask.mean()),
            "note": prediction.note,
            "ms": round(ms + (seen.ms[place] if is_new else 0.0), 1),
            "overlay": png_url(overlay),
            "probability": png_url(to_grey(prediction.probability)),
        }


def _keep(cache: OrderedDict, key: object, most: int = CACHE_SIZE):
    """Return an entry of a cache, as the newest; drop the oldest ones beyond `most`."""
    cache.move_to_end(key)
    while len(cache) > most:
        cache.popitem(last=False)
    return cache[key]


def _timed(function, *arguments):
    """Return a function's result and the milliseconds that it took."""
    start = time.perf_counter()
    found = function(*arguments)
    return found, 1e3 * (time.perf_counter() - start)


def _open_reduced(file: bytes, max_pixels: int) -> np.ndarray:
    """Read a picture as it is seen, made smaller where a side is longer than MAX_SIDE.

    Args:
        file: The bytes of a picture file.
        max_pixels: Height times width at most; a third of them where the format is not JPEG.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        UserError: The file is no picture, or one too large.
    """
    picture = open_picture(file, "the picture", max_pixels)
    width, height = picture.size
    # A JPEG file is decoded at half, a quarter or an eighth of its size, down to MAX_SIDE.
    scale = MAX_SIDE / max(width, height)
    picture.draft(None, (int(scale * width), int(scale * height)))
    decoded = max(max_pixels // 3, (2 * MAX_SIDE) ** 2)
    if picture.width * picture.height > decoded:
        raise UserError(
            f"the picture is {width} x {height} pixels, and {decoded / 1e6:.1f} megapixels are the "
            f"most of a {picture.format} file; give a smaller one, a JPEG file or a larger "
            "--max-megapixels"
        )
    rgb = decode_as(picture, "the picture", upright=True)
    rgb.thumbnail((MAX_SIDE, MAX_SIDE))
    return np.asarray(rgb)
