"""Generate one picture with its annotations, referents and sentences."""

import json
import os
import random
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from aml.errors import UserError
from aml.files import DRAFT, removed_on_failure, writing
from aml.synthetic.expressions import TEMPLATES, Template, as_typed, sentences
from aml.synthetic.meaning import Fact, fact
from aml.synthetic.scenes import ROUND, SHAPES, Object, draw_scene, plan_scene, polygons

SPLIT_BYS = {"refcoco": ("unc",), "refcoco+": ("unc",), "refcocog": ("umd", "google")}

SPLITS = (
    *("train", "train", "val", "train", "train", "testA", "train", "testB"),
    *("train", "train", "train", "train", "val", "train", "train", "train"),
)
"""Split of picture n is entry n modulo the length; testA and testB together are umd's test."""

IMAGES = Path("images", "train2014")
"""Folder of the pictures in the folder of a data set."""

LEAST_VISIBLE = 0.72
"""Share of an object's full area that must be visible."""

REFERENT_AREA = (0.005, 0.10)
"""Smallest and largest area of a referent, as a share of the picture."""

LARGEST_LAST = 0.7
"""Chance that the largest object becomes a referent only if no other does."""

REFERENT_WEIGHTS = (14, 34, 36, 16)
"""Weights of 1, 2, 3 and 4 referents in a picture."""

SENTENCE_WEIGHTS = {
    "refcoco": (6, 4, 88, 2),
    "refcoco+": (6, 4, 88, 2),
    "refcocog": (20, 70, 10, 0),
}
"""Weights of 1, 2, 3 and 4 sentences for a referent."""


def _annotations(labels: np.ndarray, objects: list[Object], image_id: int) -> list[dict]:
    """Return COCO annotations of the visible masks.

    Args:
        labels: (H, W) uint8, k + 1 where object k is visible.
        objects: the objects of the picture.
        image_id: id of the picture.

    Returns:
        One annotation an object; segmentation on pixel edges, area in pixels.
    """
    return [
        {
            "id": image_id * 10 + index,
            "image_id": image_id,
            "category_id": SHAPES.index(o.shape) + 1,
            **traced(labels == index + 1),
            "attributes": {
                "shape": o.shape,
                "colour": o.colour,
                "size": o.size,
                "texture": o.texture,
            },
        }
        for index, o in enumerate(objects)
    ]


def traced(mask: np.ndarray) -> dict:
    """Return the entries of a COCO annotation that describe a mask.

    Args:
        mask: (H, W) bool with at least one pixel.

    Returns:
        `segmentation` on pixel edges, `area` in pixels, `bbox` and `iscrowd`.
    """
    rows = np.flatnonzero(mask.any(1))
    columns = np.flatnonzero(mask.any(0))
    x0 = int(columns[0])
    x1 = int(columns[-1]) + 1
    y0 = int(rows[0])
    y1 = int(rows[-1]) + 1
    parts = [[v + (x0, y0)[i % 2] for i, v in enumerate(p)] for p in polygons(mask[y0:y1, x0:x1])]
    return {
        "segmentation": parts,
        "area": int(mask.sum()),
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "iscrowd": 0,
    }


def scene(seed: int, index: int, size: int) -> tuple[np.ndarray, np.ndarray, list[Object]]:
    """Draw one picture.

    An object less visible than LEAST_VISIBLE is left out; a picture that keeps fewer than four
    objects is planned anew.

    Args:
        seed: seed of the data set.
        index: number of the picture.
        size: longer side in pixels.

    Returns:
        (H, W, 3) uint8 RGB, (H, W) uint8 labels and the objects.
    """
    noise = np.random.default_rng([seed, index])
    rng = random.Random(int(noise.integers(2**62)))
    while True:
        width, height, objects = plan_scene(rng, size)
        paint = int(noise.integers(2**62))
        while len(objects) >= 4:
            picture, labels = draw_scene(np.random.default_rng(paint), width, height, objects)
            seen = np.bincount(labels.ravel(), minlength=len(objects) + 1)[1:]
            kept = [o for o, n in zip(objects, seen, strict=True) if n >= LEAST_VISIBLE * o.side**2]
            if len(kept) == len(objects):
                return picture, labels, objects
            objects = kept


def _candidates(facts: list[Fact], pixels: int, split: str) -> list[int]:
    """Return indices of the possible referents of a split.

    A referent has an area in REFERENT_AREA, and another object of the picture shares its shape or
    colour.
    """
    least, most = REFERENT_AREA
    out = []
    for i, f in enumerate(facts):
        shared = any(
            j != i and (f.shape == g.shape or f.colour == g.colour) for j, g in enumerate(facts)
        )
        kind = split not in ("testA", "testB") or (f.shape in ROUND) == (split == "testA")
        if shared and kind and least * pixels <= f.area <= most * pixels:
            out.append(i)
    return out


class Referent(NamedTuple):
    """One object that sentences were found for."""

    number: int
    """Index among the objects of the picture."""
    sentences: list[tuple[str, str, list[str]]]
    """(clean text, text as typed, tokens) of each sentence."""
    draw: float
    """Number in 0..1 by which refcocog's google split is made."""


class Picture(NamedTuple):
    """One generated picture without its pixels."""

    record: dict
    """COCO's image record."""
    annotations: str
    """JSON of the annotations without the brackets of the list.

    The polygons of 20,000 large pictures would take gigabytes as objects.
    """
    ids: list[tuple[int, int]]
    """(id, category_id) of each annotation."""
    referents: list[Referent]


def generate_picture(index: int, out: str, dataset: str, size: int, seed: int) -> Picture:
    """Draw picture `index`, write its JPEG and find its sentences."""
    picture, labels, objects = scene(seed, index, size)
    record = image_record(index, picture.shape[1], picture.shape[0])
    jpeg = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()
    write_jpeg(Path(out) / IMAGES / record["file_name"], jpeg)
    annotations = _annotations(labels, objects, record["id"])
    rng = sentence_draws(seed, index, dataset)
    split = SPLITS[index % len(SPLITS)] if dataset != "refcocog" else "any"
    facts = [fact(a, record) for a in annotations]
    candidates = _candidates(facts, picture.shape[0] * picture.shape[1], split)
    return Picture(
        record,
        json.dumps(annotations)[1:-1],
        [(a["id"], a["category_id"]) for a in annotations],
        choose_referents(rng, facts, candidates, dataset, TEMPLATES[dataset]),
    )


def image_record(index: int, width: int, height: int) -> dict:
    """Return COCO's image record of picture `index`."""
    image_id = index + 1
    return {
        "id": image_id,
        "file_name": f"COCO_train2014_{image_id:012d}.jpg",
        "width": width,
        "height": height,
        "license": 1,
    }


def sentence_draws(seed: int, index: int, dataset: str) -> random.Random:
    """Return the source of the draws of the sentences of picture `index`."""
    stream = [seed, index, 1 + tuple(SPLIT_BYS).index(dataset)]
    return random.Random(int(np.random.default_rng(stream).integers(2**62)))


def write_jpeg(path: Path, jpeg: bytes) -> None:
    """Write a picture's file unless it is there already.

    Raises:
        UserError: another picture is there.
    """
    if not path.exists():
        part = path.with_name(f"{path.name}.{os.getpid()}{DRAFT}")
        with writing(path, len(jpeg)), removed_on_failure(part):
            part.write_bytes(jpeg)
            os.replace(part, path)
    elif path.read_bytes() != jpeg:
        raise UserError(
            f"{path} is another picture than the one to be written (other seed or size, or not "
            "generated); choose an empty folder."
        )


def choose_referents(
    rng: random.Random,
    facts: list[Fact],
    candidates: list[int],
    dataset: str,
    template: Template,
) -> list[Referent]:
    """Choose one to four of the candidates and find sentences for each.

    The largest object of a picture mostly comes last, so that a model cannot do without the
    sentence.

    Args:
        rng: source of the draws.
        facts: the objects of the scene.
        candidates: indices of the possible referents.
        dataset: name of the data set.
        template: kinds of sentences.
    """
    candidates = list(candidates)
    rng.shuffle(candidates)
    largest = max(range(len(facts)), key=lambda i: facts[i].area)
    if rng.random() < LARGEST_LAST:
        candidates.sort(key=lambda i: i == largest)
    wanted = rng.choices((1, 2, 3, 4), REFERENT_WEIGHTS)[0]
    referents: list[Referent] = []
    for i in candidates:
        if len(referents) == wanted:
            break
        many = rng.choices((1, 2, 3, 4), SENTENCE_WEIGHTS[dataset])[0]
        found = sentences(rng, facts, i, template, many)
        if found:
            texts = [(" ".join(tokens), tokens) for tokens in found]
            said = [(text, as_typed(rng, text), tokens) for text, tokens in texts]
            referents.append(Referent(i, said, rng.random()))
    return referents
