"""Apply a checkpoint to a person's own pictures.

A picture is encoded once for all the sentences about it.
"""

import json
import logging
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from aml.data import check_sentence, split_words
from aml.errors import UserError
from aml.files import check_file, check_own_folder, mark_folder
from aml.inference import PREDICTION_COLOUR, Segmenter, draw_overlay, encode_png
from aml.reading import MAX_PIXELS, SUFFIXES, decode_as, open_picture, read_picture
from orchestrator.utils import atomic_write

logger = logging.getLogger(__name__)

FOLDER_KIND = "predictions"
"""What the marker of a folder of results says."""

KINDS = ("mask", "overlay", "probability")
"""Pictures that are written for a prediction."""


@dataclass
class Prediction:
    """Mask of the object that a sentence names in a picture."""

    sentence: str
    probability: np.ndarray
    """(H, W) float32 in [0, 1]"""
    mask: np.ndarray
    """(H, W) bool"""
    note: str
    """A warning about the sentence, or nothing."""

    @property
    def summary(self) -> str:
        """Return how much of the picture the mask covers."""
        pixels = int(self.mask.sum())
        return f"{self.mask.mean():.1%} of the picture, {pixels} of {self.mask.size} pixels"


def predict_files(
    checkpoint: Path,
    images: Path,
    texts: list[str],
    out: Path | None = None,
    overlay: Path | None = None,
    probability: Path | None = None,
    *,
    precision: str | None = None,
    max_pixels: int = MAX_PIXELS,
) -> None:
    """Segment what each sentence names in a picture, or in every picture of a folder.

    Pictures are taken as they are seen, with the EXIF orientation applied.

    With several pictures or sentences `out` is a folder that gets mask, overlay and probability
    for each, as cat.jpg.1.mask.png for the first sentence, and predictions.jsonl, one line each.

    Args:
        checkpoint: The checkpoint's folder.
        images: A picture, or a folder of pictures.
        texts: The sentences.
        out: For one picture and one sentence the mask, a PNG of the picture's size, 255 the
            referent and 0 the rest (default mask.png); else a folder (default predictions).
        overlay: For one picture and one sentence, a PNG of the picture with the rest dimmed.
        probability: For one picture and one sentence, a grey PNG in which 255 is certainty.
        precision: None is that of training on a GPU, fp32 on a CPU.
        max_pixels: Height times width of a picture at most.

    Raises:
        UserError: A picture cannot be read (of a folder: none can), a sentence holds no word,
            there is no checkpoint, single files were asked for where there are more results
            than one, or somebody else's file is where one is to be written.
        NotSaved: The disk takes no more.
    """
    sentences = [check_sentence(text) for text in texts]
    several = Path(images).is_dir() or len(sentences) > 1
    if several and (overlay or probability):
        raise UserError(
            "--overlay and --probability name one file each, but more results were asked for; "
            "give --out a folder, all three go there"
        )
    files = {
        "mask": Path("mask.png") if out is None else out,
        "overlay": overlay,
        "probability": probability,
    }
    folder = Path("predictions") if out is None else out
    if several:
        check_own_folder(folder, "--out", FOLDER_KIND)
    else:
        _check_files(files, images)
    paths = _picture_files(Path(images)) if Path(images).is_dir() else [Path(images)]
    if len(paths) == 1:
        # Refuse a picture that cannot be read before the checkpoint is loaded.
        read_pixels(read_picture(paths[0]), str(paths[0]), max_pixels)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    segmenter = Segmenter.load(checkpoint, device, precision)
    if several:
        _predict_several(segmenter, paths, sentences, folder, max_pixels)
    else:
        _predict_one(segmenter, paths[0], sentences[0], files, max_pixels)


def _check_files(files: Mapping[str, Path | None], image: Path) -> None:
    """Check that the pictures of one prediction can be written, each to a file of its own."""
    named: dict[Path, str] = {}
    for kind, file in files.items():
        if file is None:
            continue
        given_as = "--out" if kind == "mask" else f"--{kind}"
        check_file(file, given_as, inputs=[image])
        other = named.setdefault(Path(file).absolute(), given_as)
        if other != given_as:
            raise UserError(f"{given_as} {file} is {other}, too; give each a file of its own")


def predict(
    segmenter: Segmenter,
    image: np.ndarray,
    sentences: list[str],
    features: list[torch.Tensor] | None = None,
) -> list[Prediction]:
    """Return what each sentence names in a picture.

    Args:
        segmenter: The trained model.
        image: (H, W, 3) uint8, RGB.
        sentences: The expressions.
        features: The result of segmenter.encode_image(image), if it was computed before.
    """
    maps = segmenter.probabilities(image, sentences, features)
    return [
        Prediction(
            sentence, probability, probability >= segmenter.threshold, _note(segmenter, sentence)
        )
        for sentence, probability in zip(sentences, maps, strict=True)
    ]


def read_pixels(content: bytes, name: str, max_pixels: int) -> np.ndarray:
    """Decode a picture as it is seen, with its EXIF orientation applied.

    Args:
        content: The content of the picture's file.
        name: What a message calls the picture.
        max_pixels: Height times width at most.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        UserError: The picture cannot be read, or is larger.
    """
    return np.array(decode_as(open_picture(content, name, max_pixels), name, upright=True))


def to_grey(probability: np.ndarray) -> np.ndarray:
    """Return a probability map (H, W) in [0, 1] as uint8, where 255 is certainty."""
    return (probability * 255).round().astype(np.uint8)


def _predict_one(
    segmenter: Segmenter,
    path: Path,
    sentence: str,
    files: Mapping[str, Path | None],
    max_pixels: int,
) -> None:
    """Predict for one picture and one sentence, write the files and log the result."""
    image = read_pixels(read_picture(path), str(path), max_pixels)
    (prediction,), seconds = _timed_predict(segmenter, image, [sentence])
    _write_pictures(image, prediction, files)
    written = ", ".join(str(Path(file).absolute()) for file in files.values() if file)
    logger.info(f"{prediction.summary}, {1e3 * seconds:.0f} ms: {written}")
    if prediction.note:
        logger.info(prediction.note)


def _predict_several(
    segmenter: Segmenter, paths: list[Path], sentences: list[str], out: Path, max_pixels: int
) -> None:
    """Predict every sentence for every picture, and write the pictures and predictions.jsonl.

    A picture that cannot be read is left out, so that the others still get their predictions.
    """
    rows: list[dict] = []
    seconds_per_picture = []
    for path in paths:
        try:
            image = read_pixels(read_picture(path), str(path), max_pixels)
        except UserError as error:
            logger.info(f"left out: {error}")
            continue
        predictions, seconds = _timed_predict(segmenter, image, sentences)
        seconds_per_picture.append(seconds)
        if not rows:
            mark_folder(out, FOLDER_KIND)
        for number, prediction in enumerate(predictions, 1):
            files = {kind: out / f"{path.name}.{number}.{kind}.png" for kind in KINDS}
            _write_pictures(image, prediction, files)
            row = {
                "image": path.name,
                "sentence": prediction.sentence,
                "pixels": int(prediction.mask.sum()),
                "of": prediction.mask.size,
            }
            row |= {kind: file.name for kind, file in files.items()}
            text = f"{path.name}: {prediction.sentence!r} {prediction.summary}"
            if prediction.note:
                row["note"] = prediction.note
                text += f"; {prediction.note}"
            rows.append(row)
            logger.info(text)
    if not rows:
        raise UserError(
            f"none of the {len(paths)} pictures in {paths[0].parent} can be read; give JPEG or "
            "PNG files"
        )
    lines = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    atomic_write(out / "predictions.jsonl", lines)
    median_ms = 1e3 * statistics.median(seconds_per_picture)
    logger.info(
        f"{len(seconds_per_picture)} picture(s), {len(sentences)} sentence(s) each, "
        f"{median_ms:.0f} ms a picture (median): {out.absolute()}"
    )


def _note(segmenter: Segmenter, sentence: str) -> str:
    """Return a warning where the model knows none of the sentence's words, else nothing."""
    vocabulary = set(segmenter.model.vocabulary or ())
    if not vocabulary or vocabulary & set(split_words(sentence)):
        return ""
    return (
        f"no word of {sentence!r} is in the checkpoint's vocabulary of {len(vocabulary)} words: "
        "the mask says nothing about the sentence"
    )


def _picture_files(folder: Path) -> list[Path]:
    """Return the picture files of a folder by name. Raises UserError where there are none."""
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not found:
        raise UserError(
            f"{folder} holds no picture; give a folder with {', '.join(SUFFIXES[:3])} files, or "
            "one file"
        )
    return found


def _timed_predict(
    segmenter: Segmenter, image: np.ndarray, sentences: list[str]
) -> tuple[list[Prediction], float]:
    """Return the predictions and the seconds that they took."""
    start = time.perf_counter()
    return predict(segmenter, image, sentences), time.perf_counter() - start


def _write_pictures(
    image: np.ndarray, prediction: Prediction, files: Mapping[str, Path | None]
) -> None:
    """Write a prediction's pictures as PNG files.

    Args:
        image: (H, W, 3) uint8.
        prediction: What was found in the image.
        files: For each of KINDS the file to write, or None.
    """
    draw = {
        "mask": lambda: prediction.mask.astype(np.uint8) * 255,
        "overlay": lambda: draw_overlay(image, prediction.mask, PREDICTION_COLOUR),
        "probability": lambda: to_grey(prediction.probability),
    }
    for kind, file in files.items():
        if file:
            atomic_write(Path(file), encode_png(Image.fromarray(draw[kind]())))
