"""Score predicted masks that anybody made, as a checkpoint's are scored.

In the original protocol a mask is compared as it is. In the square one both the mask and the truth
are resized nearest to a network's size. A checkpoint is compared there before its prediction is
resized to the picture, so its square scores differ a little from those of the masks it wrote; its
original ones are the same integers.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aml.conditions import CLEAN
from aml.data import fit_mask, rasterise
from aml.errors import UserError
from aml.files import check_own_folder
from orchestrator import data, storage
from orchestrator.evaluation import command
from orchestrator.evaluation.masks.files import read_masks, source_of, split_sentences
from orchestrator.evaluation.samples import (
    SampleLoader,
    check_complete,
    check_protocol,
    chosen_splits,
    generalised_splits,
)
from orchestrator.evaluation.scoring import PartialScores, add_samples, overlap
from orchestrator.utils import Progress

logger = logging.getLogger(__name__)

FITS = ("square", "letterbox")

SIZES = (8, 8192)
"""Smallest and largest side of the square protocol, in pixels."""


@dataclass(frozen=True)
class MasksRequest:
    """Request to score predicted masks: files, data, splits, protocol."""

    predictions: Path
    """Folder or file, see `orchestrator.evaluation.masks.files`."""
    shards: storage.Filesystem
    splits: list[str]
    """`test` stands for testA, testB, ... where the shards have no split of that name."""
    out: Path
    """Folder for the results, as `evaluate_checkpoint` writes them."""
    protocol: str = "original"
    image_size: int | None = None
    """Side in pixels at which the square protocol compares."""
    fit: str = "square"
    """How the square protocol makes a picture square, "square" or "letterbox"."""
    missing_as_empty: bool = False
    """Count sentences without a mask as masks without a pixel; else they are refused."""
    name: str | None = None
    """What the results call the model; None takes the name of the folder or file."""


def evaluate_masks(request: MasksRequest) -> dict[str, dict]:
    """Score the masks of every sentence of the splits, and write the output files.

    Returns:
        What metrics.json holds.

    Raises:
        UserError: The masks, the data or the output folder cannot be used; see `read_masks`.
    """
    check_own_folder(request.out, "--out", command.KIND)
    _check_size(request)
    manifest = data.read_manifest(request.shards)
    splits = chosen_splits(request.splits, manifest, request.shards)
    places = data.picture_places(request.shards, splits)
    sentences = split_sentences(request.shards, splits, places)
    check_complete(len(sentences), request.shards, manifest, splits)
    logger.info(
        f"{len(sentences)} sentences of {', '.join(splits)} on {len(places)} pictures, masks of "
        f"{request.predictions}, protocol {request.protocol}"
    )
    predicted = read_masks(
        request.predictions, sentences, request.shards, empty=request.missing_as_empty
    )
    if predicted.missing:
        logger.info(
            f"note: {len(predicted.missing)} of {len(sentences)} sentences have no mask and count "
            "as masks without a pixel"
        )
    if predicted.elsewhere:
        logger.info(f"note: {predicted.elsewhere} masks of other splits were left out")
    loader = SampleLoader(splits, [CLEAN], request.protocol, request.image_size or 0, request.fit)
    generalised = generalised_splits(manifest, splits)
    scores = PartialScores()
    with Progress("scoring", len(places), "pictures") as progress:
        for row in data.read_rows(request.shards, places, jpeg=False):
            samples = loader.samples(row)
            overlaps = []
            for sample in samples:
                key = sample.identity["ref_id"], sample.identity["sent_id"]
                mask = _at_size(predicted.counts.get(key), row, loader)
                overlaps.append((0, 0) if mask is None else overlap(mask, sample))
            add_samples(scores, samples, np.array(overlaps, np.int64), generalised)
            progress.add()
    metrics = {split: scores.sums[split, *CLEAN].scores() for split in splits}
    about = _about(request, manifest, splits, len(predicted.missing))
    command.write_evaluation(request.out, scores, metrics, about)
    return metrics


def _check_size(request: MasksRequest) -> None:
    """Raise UserError where the protocol and its size do not belong together."""
    check_protocol(request.protocol)
    size = request.image_size
    if request.protocol == "original":
        if size is not None:
            raise UserError(
                f"--size {size} is for the square protocol; leave it out, or add --protocol square"
            )
        return
    if size is None:
        raise UserError(
            "the square protocol compares at a network's size, which masks do not tell; add "
            "--size, as 448, and --fit where it was letterbox, or take --protocol original"
        )
    if not SIZES[0] <= size <= SIZES[1]:
        raise UserError(f"--size is {size}; give {SIZES[0]} to {SIZES[1]} pixels")
    if request.fit not in FITS:
        raise UserError(f"--fit is {request.fit!r}; use {' or '.join(FITS)}")


def _at_size(counts: str | None, row: dict, loader: SampleLoader) -> np.ndarray | None:
    """Return a mask, bool, in the shape of the loader's truths; None for a mask without a pixel."""
    if counts is None:
        return None
    full = rasterise(counts, row["height"], row["width"])
    if loader.protocol == "original":
        return full.astype(bool)
    return fit_mask(full, loader.image_size, loader.fit)


def _about(request: MasksRequest, manifest: dict, splits: list[str], missing: int) -> dict:
    """Return the content of about.json."""
    square = request.protocol == "square"
    source = source_of(request.predictions)
    told = ("checkpoint", "arm", "seed", "epoch", "selected_by")
    known = {key: source[key] for key in told if key in source}
    return {
        "predictions": str(request.predictions.absolute()),
        **known,
        "model": request.name or source.get("model") or request.predictions.stem,
        "image_size": request.image_size if square else None,
        "fit": request.fit if square else None,
        "protocol": request.protocol,
        "splits": splits,
        "corruptions": [],
        "missing_as_empty": missing,
        "data": command.about_data(request.shards, manifest),
        "versions": command.about_versions(),
    }
