"""Write a generated RefCOCO look-alike in REFER's own file format.

The pictures of `generate_dataset` show coloured shapes, and each sentence fits one of them.
`write_refer_files` writes:

- ``OUT/<dataset>/refs(<split_by>).p``: pickled list of REFER's records;
- ``OUT/<dataset>/instances.json``: COCO's format, every object of every picture, with the
  additional key ``attributes``;
- ``OUT/images/train2014/COCO_train2014_000000000001.jpg`` and so on.

The sentences come from `aml.synthetic.expressions`. `check` reads them back and judges them again
from the annotation file alone.
"""

import io
import itertools
import json
import multiprocessing
import os
import pickle
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import cv2

from aml.errors import UserError
from aml.files import DRAFT, check_own_folder, mark_folder, removed_on_failure, writing
from aml.reading import read_json, read_pickle
from aml.synthetic.grammar import parse
from aml.synthetic.meaning import POSITION_WORDS, Fact, fact, judge
from aml.synthetic.pictures import IMAGES, SPLIT_BYS, SPLITS, Picture, generate_picture
from aml.synthetic.scenes import ROUND, SHAPES

KIND = "generated data"
"""What the marker of a folder says that was filled here."""

GOOGLE_VAL = 0.12
"""Share of the referents in the val split of refcocog (google)."""


def _start_worker(prepare: Callable[[], None] | None) -> None:
    """Keep OpenCV to one thread in a process of the pool, and prepare the process."""
    cv2.setNumThreads(1)
    if prepare is not None:
        prepare()


def run_pictures(
    job: Callable[[int], Picture],
    images: int,
    workers: int | None,
    prepare: Callable[[], None] | None = None,
    on_picture: Callable[[], object] | None = None,
) -> Iterator[Picture]:
    """Yield every picture in order, from `workers` processes or from this process for one.

    Args:
        job: makes the picture of a number.
        images: number of pictures.
        workers: number of processes; None is one for 200 pictures, at most one for each core.
        prepare: called once in each process before its first picture.
        on_picture: called in this process after each picture, to show progress.
    """
    for picture in _pictures(job, images, workers, prepare):
        if on_picture is not None:
            on_picture()
        yield picture


def _pictures(
    job: Callable[[int], Picture],
    images: int,
    workers: int | None,
    prepare: Callable[[], None] | None,
) -> Iterator[Picture]:
    workers = workers or max(1, min(os.cpu_count() or 1, images // 200))
    main = getattr(sys.modules["__main__"], "__file__", None)
    # spawned workers cannot run a main module that was read from stdin
    if workers == 1 or (main and not os.path.exists(main)):
        if prepare is not None:
            prepare()
        yield from map(job, range(images))
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, _start_worker, (prepare,)) as pool:
        yield from pool.map(job, range(images), chunksize=max(1, min(64, images // (4 * workers))))


def _split_of(number: int, split_by: str, draw: float) -> str:
    """Return the split of a referent of picture `number`."""
    if split_by == "google":
        return "val" if draw < GOOGLE_VAL else "train"
    split = SPLITS[number % len(SPLITS)]
    return "test" if split_by == "umd" and split.startswith("test") else split


def _refs(pictures: Sequence[Picture], dataset: str, split_by: str) -> list[dict]:
    """Return REFER's list of referents."""
    refs: list[dict] = []
    sent_id = 0
    for number, picture in enumerate(pictures):
        for index, said, draw in picture.referents:
            ann_id, category_id = picture.ids[index]
            ref_id = len(refs)
            ids = list(range(sent_id, sent_id + len(said)))
            sent_id += len(ids)
            suffix = ann_id if dataset == "refcocog" else ref_id
            refs.append(
                {
                    "sent_ids": ids,
                    "file_name": picture.record["file_name"].replace(".jpg", f"_{suffix}.jpg"),
                    "ann_id": ann_id,
                    "ref_id": ref_id,
                    "image_id": picture.record["id"],
                    "split": _split_of(number, split_by, draw),
                    "sentences": [
                        {"tokens": tokens, "raw": raw, "sent_id": n, "sent": sent}
                        for n, (sent, raw, tokens) in zip(ids, said, strict=True)
                    ],
                    "category_id": category_id,
                }
            )
    return refs


def _split_counts(refs: list[dict]) -> dict[str, dict[str, int]]:
    """Return {split: {"refs": n, "sentences": n, "images": n}} in the usual order of splits."""
    found = {ref["split"] for ref in refs}
    counts = {}
    for split in sorted(found, key=("train", "val", "testA", "testB", "test").index):
        mine = [ref for ref in refs if ref["split"] == split]
        counts[split] = {
            "refs": len(mine),
            "sentences": sum(len(ref["sent_ids"]) for ref in mine),
            "images": len({ref["image_id"] for ref in mine}),
        }
    return counts


def _write(path: Path, parts: Iterable[bytes]) -> None:
    """Write a file beside its place and move it there, so that a broken run leaves no half file."""
    part = path.with_name(path.name + DRAFT)
    with writing(path), removed_on_failure(part):
        with open(part, "wb") as file:
            file.writelines(parts)
        os.replace(part, path)


def _pickled(value: object) -> bytes:
    """Pickle by protocol 2 without the memo.

    The bytes then do not depend on which equal strings are one object.
    """
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, 2)
    pickler.fast = True
    pickler.dump(value)
    return buffer.getvalue()


def write_refer_files(
    out: Path,
    dataset: str,
    split_bys: Sequence[str],
    pictures: Sequence[Picture],
    head: dict,
    categories: list[dict],
) -> dict[str, dict[str, int]]:
    """Write the annotation files of pictures whose JPEGs are written already.

    Args:
        out: folder of the data set.
        dataset: refcoco, refcoco+ or refcocog.
        split_bys: the ways of splitting of which a refs file is written.
        pictures: the pictures in the order of their numbers.
        head: COCO's `info` and `licenses`.
        categories: COCO's categories.

    Returns:
        {split: {"refs": n, "sentences": n, "images": n}}, as `generate_dataset` does.
    """
    folder = out / dataset
    _write_instances(folder / "instances.json", pictures, head, categories)
    counts: dict[str, dict[str, int]] = {}
    for split_by in split_bys:
        refs = _refs(pictures, dataset, split_by)
        _write(folder / f"refs({split_by}).p", [_pickled(refs)])
        prefix = "google/" if split_by == "google" else ""
        counts |= {prefix + split: numbers for split, numbers in _split_counts(refs).items()}
    return counts


def _write_instances(
    path: Path, pictures: Sequence[Picture], head: dict, categories: list[dict]
) -> None:
    """Write instances.json in COCO's format, joining the annotations of the pictures as text."""
    before = json.dumps(head | {"images": [picture.record for picture in pictures]}).encode()
    after = json.dumps({"categories": categories}).encode()
    annotations = (
        (", " * (k > 0) + picture.annotations).encode() for k, picture in enumerate(pictures)
    )
    _write(
        path,
        itertools.chain([before[:-1], b', "annotations": ['], annotations, [b"], ", after[1:]]),
    )


def check_arguments(dataset: str, images: int, size: int, seed: int, workers: int | None) -> None:
    """Raise UserError for arguments by which no data set can be generated."""
    if dataset not in SPLIT_BYS:
        raise UserError(
            f"dataset {dataset!r} cannot be generated; choose one of {', '.join(SPLIT_BYS)}."
        )
    numbers = [("images", images, 8), ("size", size, 32), ("seed", seed, 0)]
    if workers is not None:
        numbers.append(("workers", workers, 1))
    for name, value, least in numbers:
        if not isinstance(value, int) or value < least:
            raise UserError(f"{name} is {value!r}; give a whole number of at least {least}.")


def make_folders(out: Path, dataset: str) -> None:
    """Make the folders of a data set, in a folder that is marked as generated data."""
    mark_folder(out, KIND)
    with writing(out):
        (out / IMAGES).mkdir(parents=True, exist_ok=True)
        (out / dataset).mkdir(parents=True, exist_ok=True)


def generate_dataset(
    out: str | os.PathLike,
    dataset: str = "refcoco",
    images: int = 2000,
    size: int = 128,
    seed: int = 0,
    workers: int | None = None,
    on_picture: Callable[[], object] | None = None,
) -> dict[str, dict[str, int]]:
    """Write generated pictures and the REFER files of a data set.

    A picture depends on (seed, its number, size) alone: any number of workers and any of the three
    data sets give the same bytes, so data sets may share a folder.

    Args:
        out: folder to write to.
        dataset: refcoco, refcoco+ or refcocog.
        images: number of pictures, 8 or more.
        size: longer side of a picture in pixels, 32 or more.
        seed: 0 or more.
        workers: number of processes; None is one for 200 pictures, at most one for each core.
            More than one are spawned, so a script that calls this function needs the usual
            ``if __name__ == "__main__"``.
        on_picture: called after each picture, to show progress.

    Returns:
        {split: {"refs": n, "sentences": n, "images": n}}. For refcocog, which has refs(umd).p and
        refs(google).p, the splits of the second are called "google/train" and "google/val".

    Raises:
        UserError: an unknown data set, a number out of range, or a folder with other pictures or
            files.
        NotSaved: the disk takes no more.
    """
    check_arguments(dataset, images, size, seed, workers)
    out = Path(out)
    check_own_folder(out, "OUT", KIND)
    make_folders(out, dataset)
    job = partial(generate_picture, out=str(out), dataset=dataset, size=size, seed=seed)
    head = {
        "info": {"description": f"generated {dataset} look-alike", "seed": seed, "size": size},
        "licenses": [{"id": 1, "name": "generated, no rights reserved", "url": ""}],
    }
    categories = [
        {"id": i + 1, "name": s, "supercategory": "round" if s in ROUND else "angular"}
        for i, s in enumerate(SHAPES)
    ]
    pictures = list(run_pictures(job, images, workers, on_picture=on_picture))
    return write_refer_files(out, dataset, SPLIT_BYS[dataset], pictures, head, categories)


def check(
    out: str | os.PathLike, dataset: str = "refcoco", split_by: str | None = None
) -> list[str]:
    """Read generated files back and judge every sentence from the annotations alone.

    Args:
        out: folder of the generated files.
        dataset: name of the data set.
        split_by: which refs file to read; None is the first of the data set.

    Returns:
        One line for each violation: a sentence that cannot be parsed, that is not clearly true of
        its referent, that may fit another object of the picture, or (refcoco+) has a position
        word.
    """
    folder = Path(out) / dataset
    refs = read_pickle(folder / f"refs({split_by or SPLIT_BYS[dataset][0]}).p")
    coco = read_json(folder / "instances.json")
    images = {i["id"]: i for i in coco["images"]}
    scenes = {
        image_id: {a["id"]: fact(a, images[image_id]) for a in group}
        for image_id, group in itertools.groupby(coco["annotations"], key=lambda a: a["image_id"])
    }
    wrong = []
    for ref in refs:
        for sentence in ref["sentences"]:
            label = f"ref {ref['ref_id']}, sentence {sentence['sent_id']} {sentence['sent']!r}"
            if dataset == "refcoco+" and POSITION_WORDS & set(sentence["tokens"]):
                wrong.append(f"{label}: a position word in refcoco+")
            problem = _misfit(sentence["sent"], scenes[ref["image_id"]], ref["ann_id"])
            if problem:
                wrong.append(f"{label}: {problem}")
    return wrong


def _misfit(sent: str, facts: dict[int, Fact], ann_id: int) -> str:
    """Return why a sentence does not fit annotation `ann_id` alone; empty where it does."""
    try:
        values = judge(parse(sent), list(facts.values()))
    except ValueError as error:
        return str(error)
    fitting = {i: value for i, value in zip(facts, values, strict=True) if value > 0}
    if fitting.get(ann_id) == 1.0 and len(fitting) == 1:
        return ""
    return f"fits {fitting or 'nothing'}, the referent is {ann_id}"
