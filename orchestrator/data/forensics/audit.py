"""Find pictures of evaluation splits among training pictures, by image_id and by what they show.

Pictures are read twice at most and one at a time; of each evaluation picture a hash of 32 bytes
and its name are kept. The hash is the perceptual one of ImageHash (`phash`, 16 x 16 of the lowest
frequencies of a grey 64 x 64 copy): of five hashes the one that told copies and other photographs
furthest apart (docs/data_forensics.md has the figures).
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from aml.errors import UserError
from aml.reading import MOST_PIXELS, decode_as, open_picture
from orchestrator import utils
from orchestrator.data import shards
from orchestrator.data.mixture import EVALUATION_PREFIXES
from orchestrator.storage import Filesystem

if TYPE_CHECKING:
    from PIL import Image

SIDE = 16
"""Frequencies a side; a hash has the square of it in bits."""

MOST_BITS = 32
"""Bits in which the hashes of two copies of a picture differ at most."""


def audit_shards(
    stores: Iterable[Filesystem], train_split: str = "train", most_bits: int = MOST_BITS
) -> dict[str, Any]:
    """Return which training pictures of some shards are evaluation pictures of any of them.

    Args:
        stores: Shards, each of one data set; evaluation splits are known by their names.
        train_split: Name of the training split.
        most_bits: Bits in which the hashes of copies differ at most.

    Returns:
        train, evaluation: numbers of pictures; by_id, by_picture: training pictures found so;
        by_picture_alone: those that have another image_id; found: one entry a training picture.

    Raises:
        UserError: No training or no evaluation pictures, or shards that are damaged.
    """
    stores = list(stores)
    if not 0 <= most_bits < SIDE * SIDE // 2:
        raise UserError(
            f"--bits is {most_bits}; give 0 to {SIDE * SIDE // 2 - 1} of the {SIDE * SIDE} bits in "
            "which the hashes of two copies may differ"
        )
    known, hashes = [], []
    for place, bits in _pictures(stores, train_split, evaluation=True):
        known.append(place)
        hashes.append(bits)
    if not known:
        raise UserError(
            f"none of {', '.join(store.uri for store in stores)} has a split whose name begins "
            f"with {', '.join(EVALUATION_PREFIXES)}; name shards with evaluation splits, too"
        )
    table = np.stack(hashes)
    of_id: dict[int, int] = {}
    for number, place in enumerate(known):
        of_id.setdefault(place["image_id"], number)
    found, count = [], 0
    for place, bits in _pictures(stores, train_split, evaluation=False):
        count += 1
        distances = np.bitwise_count(table ^ bits).sum(1)
        near = int(distances.argmin())
        by_id = of_id.get(place["image_id"])
        by_picture = near if distances[near] <= most_bits else None
        if by_id is None and by_picture is None:
            continue
        found.append(
            {
                "train": place,
                "by_id": None if by_id is None else known[by_id],
                "by_picture": None if by_picture is None else known[near],
                "bits": int(distances[near]),
            }
        )
    if not count:
        raise UserError(
            f"none of {', '.join(store.uri for store in stores)} has the split {train_split!r}; "
            "name the training split with --train-split"
        )
    return {
        "train": count,
        "evaluation": len(known),
        "by_id": sum(one["by_id"] is not None for one in found),
        "by_picture": sum(one["by_picture"] is not None for one in found),
        "by_picture_alone": sum(one["by_id"] is None for one in found),
        "found": found,
    }


def audit_lines(audit: dict[str, Any], shown: int = 20) -> list[str]:
    """Return what `audit_shards` found, as lines for a person.

    Args:
        audit: The result of `audit_shards`.
        shown: Pictures that are named at most; those with another image_id come first.
    """
    lines = [
        f"of {audit['train']} training pictures {audit['by_id']} have the image_id of an "
        f"evaluation picture and {audit['by_picture']} look like one "
        f"({audit['evaluation']} evaluation pictures); {audit['by_picture_alone']} look like one "
        "under another image_id"
    ]
    for one in sorted(audit["found"], key=lambda one: one["by_id"] is not None)[:shown]:
        other = one["by_picture"] or one["by_id"]
        how = f"{one['bits']} of {SIDE * SIDE} bits differ"
        if one["by_picture"] is None:
            how = f"the same image_id, but another picture ({how})"
        lines.append(f"{_name(one['train'])} is {_name(other)}: {how}")
    if len(audit["found"]) > shown:
        lines.append(f"and {len(audit['found']) - shown} pictures more (all with --json)")
    if audit["by_picture_alone"]:
        lines.append(
            "a mixture leaves out training pictures by image_id alone: give copies the image_id of "
            "their original, or leave them out before `shard`"
        )
    return lines


def picture_bits(picture: "Image.Image") -> np.ndarray:
    """Return the perceptual hash of a picture, (4,) uint64."""
    import imagehash

    return np.packbits(imagehash.phash(picture, hash_size=SIDE).hash).view(np.uint64)


def _name(place: dict[str, Any]) -> str:
    return (
        f"{place['file_name']} (image_id {place['image_id']}, {', '.join(place['splits'])} of "
        f"{place['uri']})"
    )


def _pictures(
    stores: list[Filesystem], train_split: str, *, evaluation: bool
) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """Yield name and hash of the pictures of evaluation splits, or of the training split."""
    for store in stores:
        splits = set(shards.read_manifest(store)["splits"])
        wanted = splits & {train_split}
        if evaluation:
            wanted = {s for s in splits if s.lower().startswith(EVALUATION_PREFIXES)} - wanted
        places = shards.picture_places(store, wanted)
        with utils.Progress(f"reading {store.uri}", len(places), "pictures") as progress:
            for row in shards.read_rows(store, places):
                held = sorted({ref["split"] for ref in row["refs"]} & wanted)
                name = f"{store.uri}, {row['file_name']}"
                picture = decode_as(open_picture(row["jpeg"], name, MOST_PIXELS), name)
                place = {key: row[key] for key in ("image_id", "file_name")}
                yield place | {"splits": held, "uri": store.uri}, picture_bits(picture)
                progress.add()
