"""Generate a RefCOCO whose pictures are as large as COCO's."""

import json
import multiprocessing
from pathlib import Path

import numpy as np
from PIL import Image

from aml.reading import decode_as, open_picture, read_json, read_picture
from aml.synthetic import generate_dataset

SIDE = 640
"""Longer side of the pictures, pixels, as COCO's."""

ENLARGED = 4
"""Factor by which pictures are enlarged: drawing them at full size would take minutes."""

GRAIN = 14
"""Largest noise on a pixel, which gives a JPEG the size of COCO's."""


def make_pictures(root: Path, images: int, processes: int, side: int = SIDE) -> None:
    """Generate pictures, enlarge them with their polygons, and add grain.

    Args:
        root: Folder to write to, in REFER's layout.
        images: Number of pictures.
        processes: Number of processes that enlarge them.
        side: Their longer side, pixels.
    """
    generate_dataset(root, "refcoco", images=images, size=side // ENLARGED, seed=0)
    path = root / "refcoco" / "instances.json"
    instances = read_json(path)
    for record in instances["images"]:
        record |= {side: record[side] * ENLARGED for side in ("height", "width")}
    for annotation in instances["annotations"]:
        annotation["segmentation"] = [
            [x * ENLARGED for x in part] for part in annotation["segmentation"]
        ]
    path.write_text(json.dumps(instances), "utf-8")
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        pool.map(enlarge, sorted((root / "images" / "train2014").glob("*.jpg")), chunksize=16)


def enlarge(path: Path) -> None:
    """Enlarge a JPEG file in place and add grain."""
    picture = decode_as(open_picture(read_picture(path), path.name), path.name)
    shape = (picture.width * ENLARGED, picture.height * ENLARGED)
    large = np.asarray(picture.resize(shape, Image.Resampling.BICUBIC)).astype(np.int16)
    draws = np.random.default_rng(large[0].sum())
    large += draws.integers(-GRAIN, GRAIN + 1, (*large.shape[:2], 1), np.int16)
    Image.fromarray(large.clip(0, 255).astype(np.uint8)).save(path, "JPEG", quality=90)
