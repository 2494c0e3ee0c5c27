"""Read and write predicted masks, a folder of PNG files or a file of JSON lines.

A folder holds REF_SENT.png for each sentence, or 0.png, 1.png ... in the order of one split; a PNG
has the picture's size and two values, 0 and one more for the referent. A line of a file is
{"ref_id": 12, "sent_id": 34, "mask": ...}, or {"mask": ...} in the order of one split. Its mask is
COCO's RLE, compressed or a list of run lengths, polygons, the name of a PNG beside the file, or
null for no pixel.

The order of a split is that of REFER: by ref_id, a ref's sentences as they are listed. Masks lie
on the pixels as they lie in the picture's file, whatever its EXIF orientation.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from aml.data import rasterise, read_predicted_mask
from aml.errors import Unreadable, UserError
from aml.files import MADE_BY, mark_folder
from aml.inference import encode_png
from aml.reading import ID, describe, is_id, json_lines
from orchestrator import data, storage
from orchestrator.utils import atomic_write

KIND = "masks"
"""What the marker of a folder of predicted masks says."""

WANTED = "a folder of PNG masks, or a .jsonl file of masks"

BY_IDS = re.compile(r"(\d{1,19})_(\d{1,19})\.png", re.ASCII)

BY_ORDER = re.compile(r"(\d{1,19})\.png", re.ASCII)

SHOWN = 3
"""Sentences that a message names."""

Key = tuple[int, int]
"""ref_id and sent_id."""


class Sentence(NamedTuple):
    """A sentence of some splits, with the size of its picture in pixels."""

    ref_id: int
    sent_id: int
    split: str
    image_id: int
    height: int
    width: int

    @property
    def key(self) -> Key:
        return self.ref_id, self.sent_id


@dataclass(frozen=True)
class PredictedMasks:
    """The masks of a split's sentences."""

    counts: dict[Key, str]
    """Compressed RLE counts of each sentence that has a mask."""
    missing: list[Key]
    """Sentences without one."""
    elsewhere: int = 0
    """Masks of other splits of the data, which are left out."""


class _Entry(NamedTuple):
    """One mask that was not read yet."""

    key: Key | None
    """None where its place says which sentence it is of."""
    image_id: int | None
    mask: Any
    """As `read_predicted_mask` takes it."""
    where: str
    """What a message calls it; empty for a PNG, whose message names the file."""


def split_sentences(
    shards: storage.Filesystem, splits: list[str], places: list | None = None
) -> list[Sentence]:
    """Return the sentences of some splits in REFER's order.

    Args:
        shards: The shards.
        splits: Names of splits.
        places: Positions of the splits' pictures, if they are known.
    """
    places = data.picture_places(shards, splits) if places is None else places
    found = [
        Sentence(
            ref["ref_id"],
            sentence["sent_id"],
            ref["split"],
            row["image_id"],
            row["height"],
            row["width"],
        )
        for row in data.read_rows(shards, places, jpeg=False)
        for ref in row["refs"]
        if ref["split"] in splits
        for sentence in ref["sentences"]
    ]
    return sorted(found, key=lambda sentence: sentence.ref_id)


def read_masks(
    path: Path, sentences: list[Sentence], shards: storage.Filesystem, *, empty: bool = False
) -> PredictedMasks:
    """Read the predicted masks of some sentences.

    Args:
        path: A folder or file as the module describes it.
        sentences: The sentences in REFER's order.
        shards: Where the sentences are from; says whether a mask is of another split.
        empty: Admit that sentences have no mask.

    Raises:
        UserError: A mask is missing, or one too many, twice there, damaged, not of two values or
            of another size than its picture.
    """
    by_folder = path.is_dir()
    entries = _folder_entries(path) if by_folder else _file_entries(path)
    known = {sentence.key: sentence for sentence in sentences}
    if len(known) < len(sentences):
        raise UserError(
            f"{shards.uri} has two sentences of one ref_id and sent_id, so that no mask can be "
            "told from the other; write the shards again"
        )
    folder = path if by_folder else path.parent
    counts: dict[Key, str] = {}
    foreign: list[Key] = []
    in_order = 0
    for number, entry in enumerate(entries):
        in_order += entry.key is None
        if 0 < in_order <= number:
            raise UserError(
                f"{path} holds masks with ids and masks without; name all by ref_id and sent_id, "
                "or none"
            )
        key = entry.key or _key_at(number, sentences, path)
        if (sentence := known.get(key)) is None:
            foreign.append(key)
            continue
        if key in counts:
            raise UserError(f"{path} holds two masks of {_shown([key])}; keep one of them")
        counts[key] = _counts(entry, folder, sentence)
    missing = [sentence.key for sentence in sentences if sentence.key not in counts]
    if in_order and missing:
        raise UserError(
            f"{path} holds {in_order} masks without ids, but the split has {len(sentences)} "
            "sentences, so their places say nothing; name them by ref_id and sent_id"
        )
    _refuse_unknown(path, foreign, shards)
    if missing and not empty:
        raise UserError(
            f"{path} has no mask for {len(missing)} of {len(sentences)} sentences "
            f"({_shown(missing)}); give all, or --missing-as-empty to count these as masks "
            "without a pixel"
        )
    return PredictedMasks(counts, missing, len(foreign))


def source_of(path: Path) -> dict:
    """Return what masks that `predict` wrote say of their checkpoint; nothing for others."""
    file = path / "about.json" if path.is_dir() else path
    if not file.is_file():
        return {}
    _, first = next(iter(json_lines(file, WANTED)), (0, None))
    about = first.get("about") if isinstance(first, dict) else None
    return about if isinstance(about, dict) else {}


def write_masks(out: Path, lines: Iterable[bytes], about: dict) -> None:
    """Write the masks of some sentences.

    Args:
        out: A file where its name ends in .jsonl, else a folder.
        lines: Lines of JSON with ref_id, sent_id and the mask as an RLE.
        about: What the masks are of.
    """
    head = json.dumps({"about": {"software": MADE_BY} | about}).encode() + b"\n"
    if is_file(out):
        atomic_write(out, head + b"".join(lines))
        return
    mark_folder(out, KIND)
    for line in lines:
        entry = json.loads(line)
        height, width = entry["mask"]["size"]
        pixels = rasterise(entry["mask"]["counts"], height, width)
        name = f"{entry['ref_id']}_{entry['sent_id']}.png"
        atomic_write(out / name, encode_png(Image.fromarray(pixels * np.uint8(255))))
    atomic_write(out / "about.json", head)


def is_file(out: Path) -> bool:
    """Return whether masks go into a file of this name, not into a folder."""
    return out.suffix == ".jsonl"


def _folder_entries(folder: Path) -> Iterator[_Entry]:
    """Yield the PNG files of a folder, those that are named by a number in its order."""
    names = sorted(
        one.name for one in folder.iterdir() if one.suffix == ".png" and one.name[0] != "."
    )
    if not names:
        raise UserError(f"{folder} holds no PNG file; give {WANTED}")
    placed: list[tuple[int, str]] = []
    for name in names:
        if found := BY_IDS.fullmatch(name):
            key = int(found[1]), int(found[2])
            yield _Entry(key, None, name, "")
        elif found := BY_ORDER.fullmatch(name):
            placed.append((int(found[1]), name))
        else:
            raise UserError(
                f"{folder} holds {describe(name)}; name masks REF_SENT.png, or 0.png, 1.png ... "
                "in the order of one split"
            )
    for _, name in sorted(placed):
        yield _Entry(None, None, name, "")


def _file_entries(path: Path) -> Iterator[_Entry]:
    """Yield the lines of a file, without the line that says what the masks are of."""
    found = False
    for number, line in json_lines(path, WANTED):
        where = f"{path}, line {number}"
        if not isinstance(line, Mapping) or ("about" not in line and "mask" not in line):
            raise UserError(f'{where} is {describe(line)}; give {{"ref_id", "sent_id", "mask"}}')
        if "mask" not in line:
            continue
        ids = line.get("ref_id"), line.get("sent_id"), line.get("image_id")
        if bad := [one for one in ids if one is not None and not is_id(one)]:
            raise UserError(f"{where} has the id {describe(bad[0])}; give {ID}")
        if (ids[0] is None) != (ids[1] is None):
            raise UserError(f"{where} has one of ref_id and sent_id; give both, or none")
        found = True
        key = None if ids[0] is None or ids[1] is None else (ids[0], ids[1])
        yield _Entry(key, ids[2], line["mask"], where)
    if not found:
        raise UserError(f"{path} holds no mask; give {WANTED}")


def _key_at(number: int, sentences: list[Sentence], path: Path) -> Key:
    """Return the sentence that the mask at a place is of, in the order of one split."""
    splits = dict.fromkeys(sentence.split for sentence in sentences)
    if len(splits) > 1:
        raise UserError(
            f"{path} holds masks without ids, and {', '.join(splits)} are several splits; give "
            "one split, or name the masks by ref_id and sent_id"
        )
    if number >= len(sentences):
        raise UserError(
            f"{path} holds more masks without ids than the {len(sentences)} sentences of "
            f"{', '.join(splits)}; give one for each, or name them by ref_id and sent_id"
        )
    return sentences[number].key


def _counts(entry: _Entry, folder: Path, sentence: Sentence) -> str:
    """Return the RLE counts of an entry's mask, checked for the sentence's picture."""
    where = f"{entry.where}: " if entry.where else ""
    if entry.image_id not in (None, sentence.image_id):
        raise UserError(
            f"{where}image_id is {entry.image_id}, but {_shown([sentence.key])} is of image "
            f"{sentence.image_id}; give predictions of the same data"
        )
    try:
        return read_predicted_mask(entry.mask, folder, sentence.height, sentence.width)
    except Unreadable as error:
        raise UserError(f"{where}{error}") from None


def _refuse_unknown(path: Path, keys: list[Key], shards: storage.Filesystem) -> None:
    """Raise UserError where masks are of no sentence of any split."""
    if not keys:
        return
    everywhere = split_sentences(shards, list(data.read_manifest(shards)["splits"]))
    known = {sentence.key for sentence in everywhere}
    if unknown := [key for key in keys if key not in known]:
        raise UserError(
            f"{path} has {len(unknown)} masks of sentences that {shards.uri} does not hold "
            f"({_shown(unknown)}); give predictions of the same data"
        )


def _shown(keys: list[Key]) -> str:
    """Return some sentences for a message."""
    named = ", ".join(f"ref_id {ref} sent_id {sent}" for ref, sent in keys[:SHOWN])
    return f"{named}, ..." if len(keys) > SHOWN else named
