"""Choose the photographs and object cut-outs of a COCO file, and divide them among the splits.

A photograph, as the source of cut-outs and as background, belongs to one split.
"""

import hashlib
import os
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from aml.data import load_instances, rasterise
from aml.errors import UserError
from aml.reading import MAX_PIXELS, decode_as, open_picture, read_picture
from aml.synthetic.meaning import POSITION_WORDS

SPLITS = ("train", "val", "testA", "testB")

DEALT = (
    *("train", "val", "train", "testA", "train", "testB", "train", "train", "val", "train"),
    *("testA", "train", "testB", "train", "train", "val", "train", "train", "train", "train"),
)
"""Splits that photographs are dealt to in turn: 65, 15, 10 and 10 %."""

MOST_PHOTOGRAPHS = 10_000
"""Photographs that are used of a larger file, drawn by the seed."""

LEAST_AREA = 24 * 24
"""Pixels of a cut-out in its photograph at least."""

LEAST_SIDE = 18
"""Pixels of the shorter side of its box at least."""

LARGEST = 0.5
"""Share of its photograph that a cut-out covers at most."""

LEAST_COMPACT = 0.55
"""Share of its convex hull that a cut-out fills at least."""

MOST_TOUCHED = 0.45
"""Share of its outline at which a cut-out meets other annotated objects at most.

More of them hide parts of it, or it holds on to them.
"""

LEAST_CONNECTED = 0.9
"""Share of a cut-out that its largest connected part has at least."""

BORDER = 2
"""Pixels within which a cut-out touches the border of its photograph."""

LEAST_OF_CATEGORY = 2
"""Cut-outs of a category that a split must have for a scene to be about it."""

PERSON = "person"


class Thing(NamedTuple):
    """An annotated object of a photograph."""

    ann_id: int
    category: str
    """Its name as it is said, see `spoken`."""
    rle: str


@dataclass(frozen=True, eq=False)  # hashed by identity, since it is a key of caches
class Photograph:
    """A photograph and all its annotated objects."""

    image_id: int
    path: Path
    width: int
    height: int
    things: tuple[Thing, ...]


class Cutout(NamedTuple):
    """An object of a photograph that can be pasted elsewhere."""

    ann_id: int
    photograph: Photograph
    category: str
    rle: str
    box: tuple[int, int, int, int]
    """Left, top, right and bottom in pixels."""
    area: int
    """Pixels."""
    border: str
    """The border of the photograph that cuts the object off, as "left"; empty for a whole one."""


@dataclass(frozen=True)
class Pool:
    """Material of one split."""

    photographs: tuple[Photograph, ...]
    cutouts: dict[str, tuple[Cutout, ...]]
    """Category -> its cut-outs."""

    @property
    def subjects(self) -> list[str]:
        """Categories that a scene can be about, since there are several cut-outs of each."""
        return [name for name, found in self.cutouts.items() if len(found) >= LEAST_OF_CATEGORY]


@dataclass(frozen=True)
class Material:
    """Photographs and cut-outs of a COCO file, divided among the splits."""

    pools: dict[str, Pool]
    categories: tuple[str, ...]
    """Categories that are pasted, sorted."""
    people: str
    """The category of testA: person, or the most frequent one where there is no person."""
    left_out: Counter[str]
    """Reason -> number of the annotations that are not used."""

    def describe(self) -> list[str]:
        """Return lines for a person: what is used, and why the rest is not."""
        used = {split: sum(map(len, pool.cutouts.values())) for split, pool in self.pools.items()}
        lines = [
            f"{split:14} {used[split]:6} cut-outs of {len(pool.cutouts)} categories, "
            f"{len(pool.photographs)} photographs"
            for split, pool in self.pools.items()
        ]
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.left_out.most_common())
        total = sum(used.values())
        return [*lines, f"{total} annotations are used as cut-outs; not used: {reasons or 'none'}"]


def read_material(instances: Path, folder: Path, seed: int) -> Material:
    """Read a COCO file and its photographs, and divide what is usable among the splits.

    Args:
        instances: COCO's instances.json.
        folder: holds the photographs by their file names.
        seed: decides which photographs go to which split.

    Raises:
        UserError: a file is missing or damaged, a photograph has another size than its
            annotations, or a split has no usable cut-outs.
    """
    photographs: list[Photograph] = []
    usable: dict[int, list[Cutout]] = {}
    left_out = Counter[str]()
    for photograph, objects in _read_photographs(instances, folder, seed):
        photographs.append(photograph)
        found = usable[photograph.image_id] = []
        masks = [rasterise(given["rle"], photograph.height, photograph.width) for given in objects]
        covered = np.zeros((photograph.height, photograph.width), np.uint16)
        for mask in masks:
            covered += mask
        for given, mask in zip(objects, masks, strict=True):
            cutout = _cutout(given, photograph, mask, covered)
            if isinstance(cutout, Cutout):
                found.append(cutout)
            else:
                left_out[cutout] += 1
    cutouts = [cutout for found in usable.values() for cutout in found]
    if not cutouts:
        raise UserError(
            f"none of the {left_out.total()} annotations of {instances} can be cut out "
            f"({', '.join(left_out) or 'it has none'}); give a file with larger whole objects"
        )
    counts = Counter(cutout.category for cutout in cutouts)
    people = PERSON if PERSON in counts else counts.most_common(1)[0][0]
    pools = {}
    for split, mine in _deal(photographs, usable, people, seed).items():
        pools[split] = _pool(mine, usable)
        _check_pool(split, pools[split], people, instances)
    categories = sorted({category for pool in pools.values() for category in pool.cutouts})
    return Material(pools, tuple(categories), people, left_out)


def content_key(instances: Path, folder: Path) -> str:
    """Return what names the content of a COCO file and the files beside it, 12 hex digits.

    Of the photographs, names and sizes count.

    Raises:
        UserError: the file or the folder is missing.
    """
    _check_there(instances, folder)
    with open(instances, "rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    files = [(entry.name, entry.stat().st_size) for entry in os.scandir(folder) if entry.is_file()]
    digest.update(repr(sorted(files)).encode())
    return digest.hexdigest()[:12]


def _check_there(instances: Path, folder: Path) -> None:
    """Raise UserError where the file or the folder is missing."""
    if not instances.is_file():
        raise UserError(
            f"{instances} is no file; name COCO's instances JSON of the objects to cut out"
        )
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; name the folder of the photographs")


def _read_photographs(
    instances: Path, folder: Path, seed: int
) -> Iterator[tuple[Photograph, list[dict]]]:
    """Yield each photograph in use with its annotations, in the order of image_id."""
    _check_there(instances, folder)
    records, objects = load_instances(instances, None, MAX_PIXELS)
    ids = sorted(records)
    if len(ids) > MOST_PHOTOGRAPHS:
        ids = sorted(random.Random(seed).sample(ids, MOST_PHOTOGRAPHS))
    names = [records[i]["file_name"] for i in ids]
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise UserError(
            f"{len(absent)} of {len(ids)} photographs of {instances} are not in {folder}, the "
            f"first is {absent[0]}; put them there or name their folder"
        )
    for image_id in ids:
        record = records[image_id]
        path = folder / record["file_name"]
        width, height = read_pixels(path).size
        if (width, height) != (record["width"], record["height"]):
            raise UserError(
                f"{path} is {width} x {height}, but its annotations are for {record['width']} x "
                f"{record['height']}; get the original photograph"
            )
        mine = objects.get(image_id, [])
        for given in mine:
            given["category"] = spoken(given["category"])
        things = tuple(Thing(given["ann_id"], given["category"], given["rle"]) for given in mine)
        yield Photograph(image_id, path, width, height, things), mine


def spoken(category: str) -> str:
    """Return a category's name as words of lower case; empty for a name that cannot be said.

    These are names without a letter, and names with a word of place, as "left arm".
    """
    words = re.findall(r"[^\W_]+", category.lower())
    sayable = any(map(str.isalpha, words)) and POSITION_WORDS.isdisjoint(words)
    return " ".join(words) if sayable else ""


def read_pixels(path: Path) -> Image.Image:
    """Return a photograph as RGB, as it lies in the file."""
    return decode_as(open_picture(read_picture(path), str(path)), str(path))


def _cutout(
    given: dict, photograph: Photograph, mask: np.ndarray, covered: np.ndarray
) -> Cutout | str:
    """Return the cut-out of an annotation, or why it cannot be used.

    Args:
        given: the annotation.
        photograph: its photograph.
        mask: (H, W) uint8, its pixels.
        covered: (H, W) uint16, the number of annotated objects at each pixel.
    """
    if given["crowd"]:
        return "are crowds"
    if not given["category"]:
        return "are of a category whose name cannot be said"
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return "are small"
    left, right = int(columns[0]), int(columns[-1]) + 1
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    mask = np.ascontiguousarray(mask[top:bottom, left:right])
    area = int(mask.sum())
    if area < LEAST_AREA or min(mask.shape) < LEAST_SIDE:
        return "are small"
    if area > LARGEST * photograph.width * photograph.height:
        return "fill their photograph"
    borders = [
        name
        for name, distance in (
            ("left", left),
            ("top", top),
            ("right", photograph.width - right),
            ("bottom", photograph.height - bottom),
        )
        if distance <= BORDER
    ]
    if len(borders) > 1:
        return "are cut off at two borders"
    parts = cv2.connectedComponentsWithStats(mask)[2][1:, cv2.CC_STAT_AREA]
    if parts.max() < LEAST_CONNECTED * area:
        return "are in pieces"
    if area < LEAST_COMPACT * _hull_area(mask):
        return "are of a scattered form"
    box = (left, top, right, bottom)
    if _touched(mask, box, covered) > MOST_TOUCHED:
        return "are covered by others in part"
    border = borders[0] if borders else ""
    return Cutout(given["ann_id"], photograph, given["category"], given["rle"], box, area, border)


def _hull_area(mask: np.ndarray) -> int:
    """Return the pixels of the convex hull of a mask."""
    rows = np.flatnonzero(mask.any(1))
    first = mask[rows].argmax(1)
    last = mask.shape[1] - 1 - mask[rows, ::-1].argmax(1)
    ends = np.concatenate([np.stack([first, rows], 1), np.stack([last, rows], 1)])
    hull = cv2.convexHull(ends.astype(np.int32))
    return int(cv2.fillConvexPoly(np.zeros(mask.shape, np.uint8), hull, 1).sum())


def _touched(mask: np.ndarray, box: tuple[int, int, int, int], covered: np.ndarray) -> float:
    """Return the share of an object's outline at which other objects of its photograph lie.

    Args:
        mask: (H, W) uint8, the object in its box.
        box: left, top, right and bottom in pixels.
        covered: see `_cutout`.
    """
    reach = 3
    left, top, right, bottom = box
    own = np.pad(mask, reach)
    outline = cv2.dilate(own, np.ones((2 * reach - 1, 2 * reach - 1), np.uint8)) > own
    there = np.pad(covered, reach)[top : bottom + 2 * reach, left : right + 2 * reach]
    return float((there[outline] > 0).mean())


def _deal(
    photographs: Iterable[Photograph],
    usable: dict[int, list[Cutout]],
    people: str,
    seed: int,
) -> dict[str, list[Photograph]]:
    """Return the photographs of each split.

    Photographs with people, with other cut-outs and with none are dealt one kind after the other,
    so that each split has its share of each.
    """

    def kind(photograph: Photograph) -> int:
        categories = {cutout.category for cutout in usable[photograph.image_id]}
        return 0 if people in categories else 1 if categories else 2

    ordered = sorted(photographs, key=lambda photograph: photograph.image_id)
    random.Random(seed).shuffle(ordered)
    ordered.sort(key=kind)
    dealt: dict[str, list[Photograph]] = {split: [] for split in SPLITS}
    for number, photograph in enumerate(ordered):
        dealt[DEALT[number % len(DEALT)]].append(photograph)
    return dealt


def _pool(photographs: list[Photograph], usable: dict[int, list[Cutout]]) -> Pool:
    """Return the pool of a split."""
    mine: dict[str, list[Cutout]] = {}
    for photograph in photographs:
        for cutout in usable[photograph.image_id]:
            mine.setdefault(cutout.category, []).append(cutout)
    cutouts = {category: tuple(mine[category]) for category in sorted(mine)}
    return Pool(tuple(photographs), cutouts)


def _check_pool(split: str, pool: Pool, people: str, instances: Path) -> None:
    """Raise UserError where a split cannot have scenes."""
    lacking = ""
    if split == "testA" and people not in pool.subjects:
        lacking = people
    elif split != "testA" and not set(pool.subjects) - {people}:
        lacking = f"a category beside {people}"
    if lacking:
        raise UserError(
            f"the photographs of {instances} are too few: split {split} would get "
            f"{len(pool.photographs)} of them with fewer than {LEAST_OF_CATEGORY} cut-outs of "
            f"{lacking}; give more photographs or another seed"
        )
