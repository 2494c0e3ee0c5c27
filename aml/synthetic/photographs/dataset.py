"""Write a data set of composed scenes in REFER's own file format."""

import io
import json
import logging
import os
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from aml.files import check_own_folder
from aml.synthetic.expressions import Template
from aml.synthetic.meaning import Fact
from aml.synthetic.photographs.colours import measure_colour
from aml.synthetic.photographs.material import Material, read_material
from aml.synthetic.photographs.scenes import Scene, compose
from aml.synthetic.photographs.words import SKIN, fact, template
from aml.synthetic.pictures import (
    IMAGES,
    SPLIT_BYS,
    SPLITS,
    Picture,
    choose_referents,
    image_record,
    sentence_draws,
    traced,
    write_jpeg,
)
from aml.synthetic.refer_files import (
    KIND,
    check_arguments,
    make_folders,
    run_pictures,
    write_refer_files,
)

logger = logging.getLogger(__name__)

QUALITY = 93
"""Quality of the JPEGs."""

REFERENT_AREA = (0.004, 0.25)
"""Smallest and largest visible area of a referent, as a share of the picture."""

SINGLE = 0.5
"""Chance that the only object of its category may be a referent."""


def compose_dataset(
    out: str | os.PathLike,
    cutouts: str | os.PathLike,
    photographs: str | os.PathLike,
    dataset: str = "refcoco",
    images: int = 2000,
    size: int = 128,
    seed: int = 0,
    workers: int | None = None,
    on_picture: Callable[[], object] | None = None,
) -> dict[str, dict[str, int]]:
    """Write scenes of cut-outs on photographs, and the REFER files of a data set.

    A picture depends on (material, seed, its number, size) alone: any number of workers and any of
    the three data sets give the same bytes. What is used of the material is logged.

    Args:
        out: folder to write to.
        cutouts: COCO's instances.json, whose objects are cut out.
        photographs: folder of its photographs.
        dataset: refcoco, refcoco+ or refcocog (split by umd).
        images: number of pictures, 8 or more.
        size: longer side of a picture in pixels, 32 or more.
        seed: 0 or more.
        workers: number of processes, as `generate_dataset` takes it.
        on_picture: called after each picture, to show progress.

    Returns:
        {split: {"refs": n, "sentences": n, "images": n}}.

    Raises:
        UserError: as `generate_dataset`, or a file is missing or damaged, or what it holds is not
            enough.
    """
    check_arguments(dataset, images, size, seed, workers)
    out = Path(out)
    check_own_folder(out, "OUT", KIND)
    material = read_material(Path(cutouts), Path(photographs), seed)
    for index in map(SPLITS.index, sorted(set(SPLITS))):
        _scene(material, seed, index, size)  # what cannot be composed is refused before writing
    for line in material.describe():
        logger.info(line)
    make_folders(out, dataset)
    job = partial(_compose_picture, out=str(out), dataset=dataset, size=size, seed=seed)
    prepare = partial(_prepare, material)
    pictures = list(run_pictures(job, images, workers, prepare, on_picture))
    head = {
        "info": {"description": f"composed {dataset} look-alike", "seed": seed, "size": size},
        "licenses": [{"id": 1, "name": "those of the photographs that an image names", "url": ""}],
    }
    categories = [
        {"id": number + 1, "name": name, "supercategory": ""}
        for number, name in enumerate(material.categories)
    ]
    split_by = SPLIT_BYS[dataset][:1]  # the google split of refcocog would divide photographs
    return write_refer_files(out, dataset, split_by, pictures, head, categories)


_material: list[Material] = []
"""The material of this process, sent once to each process of a pool."""


def _prepare(material: Material) -> None:
    """Keep the material for the pictures of this process."""
    _material[:] = [material]


def _scene(material: Material, seed: int, index: int, size: int) -> Scene:
    """Compose picture `index`."""
    rng = random.Random(int(np.random.default_rng([seed, index]).integers(2**62)))
    return compose(rng, material, SPLITS[index % len(SPLITS)], size)


def _compose_picture(index: int, out: str, dataset: str, size: int, seed: int) -> Picture:
    """Compose picture `index`, write its JPEG and find its sentences."""
    (material,) = _material
    scene = _scene(material, seed, index, size)
    record = image_record(index, *scene.picture.size)
    sources = {pasted.cutout.photograph.image_id for pasted in scene.objects}
    record["photographs"] = sorted({scene.background.image_id, *sources})
    jpeg = io.BytesIO()
    scene.picture.save(jpeg, "JPEG", quality=QUALITY)
    write_jpeg(Path(out) / IMAGES / record["file_name"], jpeg.getvalue())
    annotations = _annotations(scene, material, record["id"])
    categories = [pasted.cutout.category for pasted in scene.objects]
    facts = [
        fact(annotation, record, category)
        for annotation, category in zip(annotations, categories, strict=True)
    ]
    rng = sentence_draws(seed, index, dataset)
    pixels = record["width"] * record["height"]
    split = SPLITS[index % len(SPLITS)] if dataset != "refcocog" else "any"
    candidates = _candidates(rng, facts, pixels, split, material.people)
    return Picture(
        record,
        json.dumps(annotations)[1:-1],
        [(annotation["id"], annotation["category_id"]) for annotation in annotations],
        choose_referents(rng, facts, candidates, dataset, _template(dataset, material)),
    )


def _template(dataset: str, material: Material) -> Template:
    return template(dataset, material.categories, material.people)


def _annotations(scene: Scene, material: Material, image_id: int) -> list[dict]:
    """Return COCO annotations of the visible parts of a scene's objects.

    `attributes` has the colour of an object, null where none is certain, other colours that
    somebody might name, and where the cut-out is from.
    """
    found = []
    for number, pasted in enumerate(scene.objects):
        mask = scene.labels == number + 1
        pixels = np.asarray(pasted.pixels)[..., :3][mask[pasted.box]]
        colour, maybe = measure_colour(pixels)
        if pasted.cutout.category == material.people and colour in SKIN:
            maybe = [*maybe, colour]
            colour = None
        found.append(
            {
                "id": image_id * 10 + number,
                "image_id": image_id,
                "category_id": material.categories.index(pasted.cutout.category) + 1,
                **traced(mask),
                "attributes": {
                    "colour": colour,
                    "maybe": maybe,
                    "photograph": pasted.cutout.photograph.image_id,
                    "annotation": pasted.cutout.ann_id,
                },
            }
        )
    return found


def _candidates(
    rng: random.Random, facts: list[Fact], pixels: int, split: str, people: str
) -> list[int]:
    """Return indices of the possible referents of a split.

    They are objects of a category that the scene has several of, and a few of the others.
    """
    least, most = REFERENT_AREA
    categories = [fact.shape for fact in facts]
    found = []
    for index, one in enumerate(facts):
        wanted = split not in ("testA", "testB") or (one.shape == people) == (split == "testA")
        several = categories.count(one.shape) > 1 or rng.random() < SINGLE
        if wanted and several and least * pixels <= one.area <= most * pixels:
            found.append(index)
    return found
