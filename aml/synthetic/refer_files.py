"""A generated RefCOCO look-alike in REFER's own file format: coloured shapes, and sentences that fit one of them.

What is written (``generate``)::

    OUT/<dataset>/refs(<split_by>).p      pickled list of REFER's records
    OUT/<dataset>/instances.json          COCO: every object of every picture, with ``attributes`` as a side-car
    OUT/images/train2014/COCO_train2014_000000000001.jpg ...

The sentences are `aml.language`'s.  `check` reads them back and judges them again from the annotation file alone.
"""

import io
import itertools
import json
import multiprocessing
import os
import pickle
import random
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from aml.errors import UserError
from aml.synthetic.expressions import as_typed, parse, sentences
from aml.synthetic.meaning import POSITION_WORDS, fact, judge
from aml.synthetic.scenes import ROUND, SHAPES, draw_scene, plan_scene, polygons

SPLIT_BYS = {"refcoco": ("unc",), "refcoco+": ("unc",), "refcocog": ("umd", "google")}

SPLITS = (
    *("train", "train", "val", "train", "train", "testA", "train", "testB"),
    *("train", "train", "train", "train", "val", "train", "train", "train"),
)


def _annotations(labels, objects, image_id):
    """COCO annotations of the visible masks; segmentation on pixel edges, area in pixels."""
    out = []
    for index, o in enumerate(objects):
        mask = labels == index + 1
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        x0, y0, x1, y1 = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
        parts = [
            [v + (x0, y0)[i % 2] for i, v in enumerate(p)] for p in polygons(mask[y0:y1, x0:x1])
        ]
        out.append(
            {
                "id": image_id * 10 + index,
                "image_id": image_id,
                "category_id": SHAPES.index(o.shape) + 1,
                "segmentation": parts,
                "area": int(mask.sum()),
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "iscrowd": 0,
                "attributes": {
                    "shape": o.shape,
                    "colour": o.colour,
                    "size": o.size,
                    "texture": o.texture,
                },
            }
        )
    return out


def _scene(seed, index, size):
    """((H, W, 3) RGB, (H, W) labels, [Object]) of one picture; an object hidden by more than 28 % is left out."""
    noise = np.random.default_rng([seed, index])
    rng = random.Random(int(noise.integers(2**62)))
    while True:
        width, height, objects = plan_scene(rng, size)
        paint = int(noise.integers(2**62))
        while len(objects) >= 4:
            picture, labels = draw_scene(np.random.default_rng(paint), width, height, objects)
            seen = np.bincount(labels.ravel(), minlength=len(objects) + 1)[1:]
            kept = [o for o, n in zip(objects, seen, strict=True) if n >= 0.72 * o.side**2]
            if len(kept) == len(objects):
                return picture, labels, objects
            objects = kept


def _candidates(facts, pixels, split):
    """Indices of a split's possible referents: 0.5 to 10 % of the picture, another object has the shape or colour."""
    out = []
    for i, f in enumerate(facts):
        shared = any(
            j != i and (f.shape == g.shape or f.colour == g.colour) for j, g in enumerate(facts)
        )
        kind = split not in ("testA", "testB") or (f.shape in ROUND) == (split == "testA")
        if shared and kind and 0.005 * pixels <= f.area <= 0.10 * pixels:
            out.append(i)
    return out


def _one(index, out, dataset, size, seed):
    """Draws and writes picture `index`.

    Returns (image record, annotations as JSON without the brackets, their (id, category_id), [(object index, [(sent, raw, tokens)],
    a number in 0..1 for the google split)]).  As objects the polygons of 20,000 large pictures would take gigabytes.
    """
    picture, labels, objects = _scene(seed, index, size)
    image_id = index + 1
    image = {
        "id": image_id,
        "file_name": f"COCO_train2014_{image_id:012d}.jpg",
        "width": picture.shape[1],
        "height": picture.shape[0],
        "license": 1,
    }
    path = Path(out) / "images" / "train2014" / image["file_name"]
    jpeg = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()
    if not path.exists():
        part = path.with_suffix(f".{os.getpid()}.part")
        part.write_bytes(jpeg)
        os.replace(part, path)
    elif path.read_bytes() != jpeg:
        raise UserError(
            f"{path} is another picture than the one to be written (other seed or size, or not generated); choose an empty folder."
        )
    annotations = _annotations(labels, objects, image_id)
    facts = [fact(a, image) for a in annotations]
    rng = random.Random(
        int(
            np.random.default_rng([seed, index, 1 + tuple(SPLIT_BYS).index(dataset)]).integers(
                2**62
            )
        )
    )
    split = SPLITS[index % len(SPLITS)] if dataset != "refcocog" else "any"
    order = _candidates(facts, picture.shape[0] * picture.shape[1], split)
    rng.shuffle(order)
    largest = max(range(len(facts)), key=lambda i: facts[i].area)
    if rng.random() < 0.7:
        order.sort(key=lambda i: i == largest)
    refs, wanted = [], rng.choices((1, 2, 3, 4), (14, 34, 36, 16))[0]
    for i in order:
        if len(refs) == wanted:
            break
        many = rng.choices(
            (1, 2, 3, 4), (20, 70, 10, 0) if dataset == "refcocog" else (6, 4, 88, 2)
        )[0]
        tokens = sentences(rng, facts, i, dataset, many)
        if tokens:
            refs.append(
                (i, [(" ".join(t), as_typed(rng, " ".join(t)), t) for t in tokens], rng.random())
            )
    return (
        image,
        json.dumps(annotations)[1:-1],
        [(a["id"], a["category_id"]) for a in annotations],
        refs,
    )


def _quiet_worker():
    cv2.setNumThreads(1)


def _all(job, images, workers):
    main = getattr(sys.modules["__main__"], "__file__", None)
    if workers == 1 or (
        main and not os.path.exists(main)
    ):  # spawned workers cannot run a main module read from stdin
        yield from map(job, range(images))
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _quiet_worker) as pool:
        yield from pool.map(job, range(images), chunksize=max(1, min(64, images // (4 * workers))))


def _records(results, dataset, split_by):
    """REFER's list of referents and {split: {"refs", "sentences", "images"}}."""
    refs, images, sent_id = [], {}, 0
    for number, (image, _, annotations, found) in enumerate(results):
        for i, said, draw in found:
            split = SPLITS[number % len(SPLITS)]
            if split_by == "umd":
                split = split[:4] if split.startswith("test") else split
            elif split_by == "google":
                split = "val" if draw < 0.12 else "train"
            (ann_id, category_id), ref_id = annotations[i], len(refs)
            ids = list(range(sent_id, sent_id + len(said)))
            sent_id += len(ids)
            suffix = ann_id if dataset == "refcocog" else ref_id
            refs.append(
                {
                    "sent_ids": ids,
                    "file_name": image["file_name"].replace(".jpg", f"_{suffix}.jpg"),
                    "ann_id": ann_id,
                    "ref_id": ref_id,
                    "image_id": image["id"],
                    "split": split,
                    "sentences": [
                        {"tokens": t, "raw": raw, "sent_id": n, "sent": sent}
                        for n, (sent, raw, t) in zip(ids, said, strict=True)
                    ],
                    "category_id": category_id,
                }
            )
            images.setdefault(split, set()).add(image["id"])
    order = sorted(images, key=lambda s: ("train", "val", "testA", "testB", "test").index(s))
    return refs, {
        s: {
            "refs": sum(r["split"] == s for r in refs),
            "sentences": sum(len(r["sent_ids"]) for r in refs if r["split"] == s),
            "images": len(images[s]),
        }
        for s in order
    }


def _write(path, parts):
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as file:
        file.writelines(parts)
    os.replace(part, path)


def _pickled(value):
    """Protocol 2 without the memo, so that the bytes do not depend on which equal strings are one object."""
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, 2)
    pickler.fast = True
    pickler.dump(value)
    return buffer.getvalue()


def generate_dataset(out, dataset="refcoco", images=2000, size=128, seed=0, workers=None):
    """Writes `images` pictures (longer side `size` pixels) and the files of `dataset` under `out`.

    Every picture depends on (seed, its number, size) alone: any number of workers and any of the three data sets give
    the same bytes, so data sets may share a folder.  Returns {split: {"refs", "sentences", "images"}}; a refcocog call
    writes refs(umd).p and refs(google).p, the second counted under "google/train" and "google/val".  `workers` None is
    one process for 200 pictures, at most one for each core; more than one are spawned, so a script that calls this
    needs the usual ``if __name__ == "__main__"``.  Raises UserError for an unknown data set, fewer than 8 pictures, a
    size under 32, a negative seed, or a folder with other pictures.
    """
    if dataset not in SPLIT_BYS:
        raise UserError(
            f"dataset {dataset!r} cannot be generated; choose one of {', '.join(SPLIT_BYS)}."
        )
    for name, value, least in (
        ("images", images, 8),
        ("size", size, 32),
        ("seed", seed, 0),
        ("workers", workers, 1),
    ):
        if not (name == "workers" and value is None) and (
            not isinstance(value, int) or value < least
        ):
            raise UserError(f"{name} is {value!r}; give a whole number of at least {least}.")
    out = Path(out)
    (out / "images" / "train2014").mkdir(parents=True, exist_ok=True)
    (out / dataset).mkdir(parents=True, exist_ok=True)
    workers = workers or max(1, min(os.cpu_count() or 1, images // 200))
    job = partial(_one, out=str(out), dataset=dataset, size=size, seed=seed)
    results = list(_all(job, images, workers))
    before = {
        "info": {"description": f"generated {dataset} look-alike", "seed": seed, "size": size},
        "licenses": [{"id": 1, "name": "generated, no rights reserved", "url": ""}],
        "images": [r[0] for r in results],
    }
    after = {
        "categories": [
            {"id": i + 1, "name": s, "supercategory": "round" if s in ROUND else "angular"}
            for i, s in enumerate(SHAPES)
        ]
    }
    annotations = ((", " * (k > 0) + r[1]).encode() for k, r in enumerate(results))
    head, tail = (json.dumps(part).encode() for part in (before, after))
    _write(
        out / dataset / "instances.json",
        itertools.chain([head[:-1], b', "annotations": ['], annotations, [b"], ", tail[1:]]),
    )
    counts = {}
    for split_by in SPLIT_BYS[dataset]:
        refs, numbers = _records(results, dataset, split_by)
        _write(out / dataset / f"refs({split_by}).p", [_pickled(refs)])
        counts |= {s if split_by != "google" else f"google/{s}": n for s, n in numbers.items()}
    return counts


def check(out, dataset="refcoco", split_by=None):
    """Reads generated files back and returns a list of violations, as text: a sentence that cannot be parsed, that is
    not clearly true of its referent, that may fit another object of the picture, or (refcoco+) has a position word."""
    folder = Path(out) / dataset
    refs = pickle.loads((folder / f"refs({split_by or SPLIT_BYS[dataset][0]}).p").read_bytes())
    coco = json.loads((folder / "instances.json").read_text())
    images = {i["id"]: i for i in coco["images"]}
    scenes = {
        k: list(g) for k, g in itertools.groupby(coco["annotations"], key=lambda a: a["image_id"])
    }
    facts = {k: [fact(a, images[k]) for a in group] for k, group in scenes.items()}
    wrong = []
    for ref in refs:
        group = scenes[ref["image_id"]]
        for sentence in ref["sentences"]:
            label = f"ref {ref['ref_id']}, sentence {sentence['sent_id']} {sentence['sent']!r}"
            if dataset == "refcoco+" and POSITION_WORDS & set(sentence["tokens"]):
                wrong.append(f"{label}: a position word in refcoco+")
            try:
                values = judge(parse(sentence["sent"]), facts[ref["image_id"]])
            except ValueError as error:
                wrong.append(f"{label}: {error}")
                continue
            fitting = {a["id"]: v for a, v in zip(group, values, strict=True) if v > 0}
            if fitting.get(ref["ann_id"]) != 1.0 or len(fitting) != 1:
                wrong.append(
                    f"{label}: fits {fitting or 'nothing'}, the referent is {ref['ann_id']}"
                )
    return wrong
