"""A checkpoint on one's own pictures. A picture is encoded once for all the sentences asked of it."""

import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps

from aml.data import split_words
from aml.errors import UserError
from aml.inference import PREDICTION, Segmenter, draw_overlay, png
from orchestrator.utils import atomic_write

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


@dataclass
class Answer:
    """What a sentence names in a picture."""

    sentence: str
    probability: np.ndarray
    """(H, W) float32 in [0, 1]"""
    mask: np.ndarray
    """(H, W) bool"""
    note: str
    """What one should know of it, or nothing."""

    @property
    def found(self) -> str:
        return f"{self.mask.mean():.1%} of the picture, {int(self.mask.sum())} of {self.mask.size} pixels"


def predict_files(
    checkpoint: Path,
    images: Path,
    texts: list[str],
    out: Path | None = None,
    overlay: Path | None = None,
    probability: Path | None = None,
    *,
    precision: str | None = None,
    say=print,
) -> None:
    """Segment what each sentence names in a picture, or in every picture of a folder, as it is seen (EXIF orientation applied).

    One picture and one sentence: OUT (mask.png) is a PNG of the picture's size, 255 the referent, 0 the rest; `overlay` the picture with the
    rest dimmed; `probability` grey, 255 is certainty. More of either: OUT (predictions) is a folder that gets all three for each, as
    cat.jpg.1.mask.png for the first sentence, and predictions.jsonl, one line each.

    UserError: a picture that cannot be read (of a folder: none that can), a sentence without a word, no checkpoint there, or single files
    asked for where there are more results than one.
    """
    texts, many = [sentence(text) for text in texts], Path(images).is_dir() or len(texts) > 1
    if many and (overlay or probability):
        raise UserError(
            "--overlay and --probability name one file each, but more results were asked for; give --out a folder, all three go there"
        )
    if many and out and Path(out).is_file():
        raise UserError(
            f"--out {out} is a file, but more results than one were asked for; give a folder"
        )
    paths = _pictures(Path(images)) if Path(images).is_dir() else [Path(images)]
    if len(paths) == 1:
        open_picture(paths[0], str(paths[0]))  # refused before the checkpoint is read
    segmenter = Segmenter.load(
        checkpoint, "cuda" if torch.cuda.is_available() else "cpu", precision
    )
    if many:
        _many(segmenter, paths, texts, Path(out or "predictions"), say)
    else:
        _one(
            segmenter,
            paths[0],
            texts[0],
            {"mask": Path(out or "mask.png"), "overlay": overlay, "probability": probability},
            say,
        )


def _one(segmenter: Segmenter, path: Path, text: str, files: dict[str, Path | None], say) -> None:
    image = open_picture(path, str(path))
    (one,), seconds = _timed(segmenter, image, [text])
    _write(image, one, files)
    say(
        f"{one.found}, {1e3 * seconds:.0f} ms: {', '.join(str(file) for file in files.values() if file)}"
    )
    if one.note:
        say(one.note)


def _many(segmenter: Segmenter, paths: list[Path], texts: list[str], out: Path, say) -> None:
    lines, times = [], []
    for path in paths:
        try:
            image = open_picture(path, str(path))
        except UserError as error:  # one bad file of a folder leaves the others their answers
            say(f"left out: {error}")
            continue
        answers, seconds = _timed(segmenter, image, texts)
        times.append(seconds)
        for k, one in enumerate(answers, 1):
            files = {
                kind: out / f"{path.name}.{k}.{kind}.png"
                for kind in ("mask", "overlay", "probability")
            }
            _write(image, one, files)
            what = {
                "image": path.name,
                "sentence": one.sentence,
                "pixels": int(one.mask.sum()),
                "of": one.mask.size,
            }
            lines.append(
                what
                | {kind: file.name for kind, file in files.items()}
                | ({"note": one.note} if one.note else {})
            )
            say(
                f"{path.name}: {one.sentence!r} {one.found}" + (f"; {one.note}" if one.note else "")
            )
    if not lines:
        raise UserError(
            f"none of the {len(paths)} pictures in {paths[0].parent} can be read; give JPEG or PNG files"
        )
    atomic_write(
        out / "predictions.jsonl", b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    )
    say(
        f"{len(times)} picture(s), {len(texts)} sentence(s) each, {1e3 * statistics.median(times):.0f} ms a picture (median): {out}"
    )


def answer(
    segmenter: Segmenter,
    image: np.ndarray,
    sentences: list[str],
    seen: list[torch.Tensor] | None = None,
) -> list[Answer]:
    """image (H, W, 3) uint8; seen: segmenter.see(image), if at hand"""
    maps = segmenter.probabilities(image, sentences, seen)
    return [
        Answer(text, p, p >= segmenter.threshold, _note(segmenter, text))
        for text, p in zip(sentences, maps, strict=True)
    ]


def sentence(text: str) -> str:
    """The text. UserError where it holds no word."""
    if not split_words(text):
        raise UserError(
            f'the sentence {text!r} holds no word; say what to look for, as in "the left dog"'
        )
    return text


def open_picture(file: Path | BinaryIO, name: str, most: int | None = None) -> np.ndarray:
    """A picture as it is seen.   -> (H, W, 3) uint8

    UserError where it cannot be read, or has more than `most` pixels; these are counted before they are decoded.
    """
    try:
        with Image.open(file) as picture:
            if most is not None and picture.width * picture.height > most:
                raise UserError(
                    f"{name} has {picture.width} x {picture.height} pixels, and {most / 1e6:.0f} million are the most; make it smaller"
                )
            return np.array(ImageOps.exif_transpose(picture).convert("RGB"))
    except UserError:
        raise
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, DecompressionBombError ... on what it cannot read
        what = (
            error.strerror
            if isinstance(error, OSError) and error.strerror
            else f"{type(error).__name__}"
        )
        raise UserError(
            f"{name} cannot be read as a picture ({what}); give a JPEG or PNG file"
        ) from None


def grey(probability: np.ndarray) -> np.ndarray:
    """(H, W) in [0, 1] -> uint8, 255 is certainty"""
    return (probability * 255).round().astype(np.uint8)


def _note(segmenter: Segmenter, text: str) -> str:
    known = set(segmenter.model.vocabulary or ())
    if not known or known & set(split_words(text)):
        return ""
    return f"no word of {text!r} is in the checkpoint's vocabulary of {len(known)} words: the mask says nothing about the sentence"


def _pictures(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not found:
        raise UserError(
            f"{folder} holds no picture; give a folder with {', '.join(SUFFIXES[:3])} files, or one file"
        )
    return found


def _timed(segmenter: Segmenter, image: np.ndarray, texts: list[str]) -> tuple[list[Answer], float]:
    start = time.perf_counter()
    return answer(segmenter, image, texts), time.perf_counter() - start


def _write(image: np.ndarray, one: Answer, files: dict[str, Path | None]) -> None:
    drawn = {
        "mask": lambda: one.mask.astype(np.uint8) * 255,
        "overlay": lambda: draw_overlay(image, one.mask, PREDICTION),
        "probability": lambda: grey(one.probability),
    }
    for kind, file in files.items():
        if file:
            atomic_write(Path(file), png(Image.fromarray(drawn[kind]())))
