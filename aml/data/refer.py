"""Read REFER files (RefCOCO, RefCOCO+, RefCOCOg, gRefCOCO) into rows.

A row is one image with its objects as RLE and its refs with their sentences.

The format is that of refer (github.com/lichengunc/refer). The `file_name` of a ref is not a file:
only its image_id leads to the JPEG. gRefCOCO (as github.com/henghuiding/ReLA reads it) is JSON; its
refs name several annotations, or [-1] for nothing in the picture.

A ref of a row has `ann_id`, its one object. Where expressions may name several objects or none, it
has `ann_ids` and `no_target` instead.
"""

import logging
import os
from pathlib import Path
from typing import Any

from aml.data.instances import load_instances
from aml.data.refer_counts import SENTENCE_LETTERS, sentence_problem, split_words, targets_of
from aml.data.rle import NOTHING, area
from aml.errors import UserError
from aml.reading import (
    ID,
    MAX_PIXELS,
    describe,
    is_id,
    read_json,
    read_pickle,
    split_problem,
    text_problem,
)

logger = logging.getLogger(__name__)

SPLITS_BY = {
    "refcoco": ("unc", "google"),
    "refcoco+": ("unc",),
    "refcocog": ("umd", "google"),
    "grefcoco": ("unc",),
}
"""Data set -> its ways of splitting."""


def load_refs(path: Path, *, skip_wordless: bool = False) -> list[dict]:
    """Return the entries of REFER's refs(split_by).p.

    Args:
        path: the file.
        skip_wordless: leave out sentences without a word, and refs without a sentence.

    Raises:
        UserError: the file is missing or damaged, or holds more than plain data.
    """
    refs = read_pickle(path, "a refs pickle of REFER's")
    return _checked(_with_words(refs, path) if skip_wordless else refs, path)


def load_grefs(path: Path, *, skip_wordless: bool = False) -> list[dict]:
    """Return the entries of gRefCOCO's grefs(split_by).json.

    Each entry has `ann_ids`, an empty list for an expression without a target.

    Args:
        path: the file.
        skip_wordless: leave out sentences without a word, and refs without a sentence.

    Raises:
        UserError: the file is missing or damaged.
    """
    refs = read_json(path, "gRefCOCO's list of referents")
    refs = _checked(_with_words(refs, path) if skip_wordless else refs, path, several=True)
    return [ref | {"ann_ids": _named(ref["ann_id"])} for ref in refs]


def _named(given: Any) -> list[int] | None:
    """Return the annotations that a gRefCOCO ref names, each once; None where it names none so."""
    named = given if isinstance(given, list) else [given]
    if len(named) == 1 and type(named[0]) is int and named[0] == NOTHING:
        return []
    return list(dict.fromkeys(named)) if named and all(map(is_id, named)) else None


def _with_words(refs: Any, path: Path) -> Any:
    """Return the refs without sentences that hold no word and refs without a sentence.

    How many are left out is logged. Anything else that is wrong stays, for `_checked` to refuse.
    """
    if not isinstance(refs, list):
        return refs
    kept, sentences = [], 0
    for ref in refs:
        given = ref.get("sentences") if isinstance(ref, dict) else None
        if not isinstance(given, list | tuple):
            kept.append(ref)
            continue
        worded = [s for s in given if not _is_wordless(s)]
        sentences += len(given) - len(worded)
        if worded:
            kept.append(ref | {"sentences": worded})
    if len(kept) < len(refs) or sentences:
        logger.info(
            f"{path}: left out {sentences} sentences without a word, and {len(refs) - len(kept)} "
            "refs without a sentence"
        )
    return kept


def _is_wordless(sentence: Any) -> bool:
    text = sentence.get("sent") if isinstance(sentence, dict) else None
    return isinstance(text, str) and len(text) <= SENTENCE_LETTERS and not split_words(text)


def _checked(refs: Any, path: Path, several: bool = False) -> list[dict]:
    """Return the refs; raise UserError where they are not as REFER writes them.

    Args:
        refs: content of the file.
        path: the file.
        several: whether refs name several annotations or none, as gRefCOCO's do.
    """
    needed = {"ref_id", "ann_id", "image_id", "split", "sentences"}
    if not isinstance(refs, list) or not all(
        isinstance(r, dict) and needed <= r.keys() for r in refs
    ):
        raise UserError(
            f"{path} is not REFER's list of refs (dicts with {', '.join(sorted(needed))}); get the "
            "file again"
        )
    seen: set[tuple[int, int]] = set()
    first = ""
    count = 0
    for ref in refs:
        if problem := _wrong(ref, several) or _repeated(ref, seen):
            first = first or f"ref {describe(ref['ref_id'])} {problem}"
            count += 1
    if count:
        advice = "get the file again"
        if "holds no word" in first or "has no sentence" in first:
            advice += ", or pass --skip-unreadable to leave such sentences out"
        raise UserError(f"{path}: {first} ({count} such refs in all); {advice}")
    return refs


def _wrong(ref: dict, several: bool) -> str:
    """Return what is wrong with a ref; empty where it is as REFER writes it."""
    for key in ("ref_id", "image_id") if several else ("ref_id", "image_id", "ann_id"):
        if not is_id(ref[key]):
            return f"has {key} {describe(ref[key])}, and it must be {ID}"
    if several and _named(ref["ann_id"]) is None:
        return (
            f"names annotations {describe(ref['ann_id'])}; it must be some annotation ids, or [-1] "
            "for no target"
        )
    if problem := split_problem(ref["split"]):
        return f"has a split that {problem}"
    sentences = ref["sentences"]
    if not isinstance(sentences, list | tuple) or not sentences:
        return f"has no sentence, but {describe(sentences)}; each ref needs a list of one or more"
    return next((problem for s in sentences if (problem := _wrong_sentence(s))), "")


def _wrong_sentence(sentence: Any) -> str:
    """Return what is wrong with a sentence of a ref; empty where it is as REFER writes it."""
    if not isinstance(sentence, dict) or not is_id(sentence.get("sent_id")):
        return f"has a sentence without sent_id ({ID}) or sent (text): {describe(sentence)}"
    if problem := sentence_problem(sentence.get("sent")):
        return f"has a sentence without sent_id or sent (text): sent {problem}"
    if problem := text_problem(sentence.get("raw", ""), SENTENCE_LETTERS):
        return f"has a sentence whose raw {problem}"
    return ""


def _repeated(ref: dict, seen: set[tuple[int, int]]) -> str:
    """Return which sentence of a ref comes twice; empty where none does.

    Args:
        ref: the ref, after `_wrong` found nothing.
        seen: (ref_id, sent_id) of the sentences of earlier refs, to which those of this ref are
            added. The pair names an item.
    """
    for key in ((ref["ref_id"], s["sent_id"]) for s in ref["sentences"]):
        if key in seen:
            return f"has sentence {key[1]} twice, and ids must be unique"
        seen.add(key)
    return ""


def read_refer(
    refer_root: Path,
    images: Path,
    dataset: str,
    split_by: str,
    max_pixels: int = MAX_PIXELS,
    *,
    skip_wordless: bool = False,
) -> list[dict]:
    """Read a data set into rows without their JPEG.

    Args:
        refer_root: folder with <dataset>/refs(<split_by>).p (or grefcoco/grefs(unc).json) and
            <dataset>/instances.json.
        images: folder of the JPEGs.
        dataset: a key of SPLITS_BY.
        split_by: one of its values.
        max_pixels: height times width of a picture at most.
        skip_wordless: leave out sentences without a word, and refs without a sentence.

    Returns:
        One row an image, in the order of image_id; `path` names its file.

    Raises:
        UserError: unknown dataset or split_by, a missing file, a ref whose annotation or image
            record is missing, or an image that is not on disk.
    """
    if dataset not in SPLITS_BY:
        raise UserError(f"dataset {dataset!r} is not known; use one of {', '.join(SPLITS_BY)}")
    if split_by not in SPLITS_BY[dataset]:
        raise UserError(
            f"{dataset} has no split_by {split_by!r}; it has {', '.join(SPLITS_BY[dataset])}"
        )
    folder = Path(refer_root) / dataset
    name = f"grefs({split_by}).json" if dataset == "grefcoco" else f"refs({split_by}).p"
    load = load_grefs if dataset == "grefcoco" else load_refs
    refs = load(folder / name, skip_wordless=skip_wordless)
    by_image: dict[int, list[dict]] = {}
    for ref in refs:
        by_image.setdefault(ref["image_id"], []).append(ref)
    records, objects = load_instances(folder / "instances.json", set(by_image), max_pixels)
    unknown = sorted(set(by_image) - set(records))
    if unknown:
        raise UserError(
            f"{folder}/instances.json lacks image {unknown[0]} ({len(unknown)} in all) that {name} "
            "names; use matching files"
        )
    paths = {i: _find_image(Path(images).absolute(), records[i]["file_name"]) for i in by_image}
    absent = sorted(records[i]["file_name"] for i, path in paths.items() if path is None)
    if absent:
        raise UserError(
            f"{len(absent)} of {len(paths)} images are not under {images}, the first is "
            f"{absent[0]}; put COCO's train2014 JPEGs there"
        )
    return [
        _row(dataset, split_by, records[i], by_image[i], objects.get(i, []))
        | {"path": str(paths[i])}
        for i in sorted(by_image)
    ]


def _find_image(folder: Path, file_name: str) -> Path | None:
    """Return the path of an image, or None.

    The images folder may be train2014 itself or lie one or two levels above it.
    """
    for place in (folder, folder / "train2014", folder / "images" / "train2014"):
        if os.path.isfile(place / file_name):  # False for a name that no file can have
            return place / file_name
    return None


def _row(dataset: str, split_by: str, record: dict, refs: list[dict], objects: list[dict]) -> dict:
    """Return the row of an image.

    Args:
        dataset: name of the data set.
        split_by: name of its splitting.
        record: COCO's image record.
        refs: the refs of the image.
        objects: the objects of the image, see `_object`.

    Raises:
        UserError: a ref names an annotation that is not among the objects, or covers no pixel.
    """
    crowd = {o["ann_id"]: o["crowd"] for o in objects}
    pixels = {o["ann_id"]: area(o["rle"], record["height"], record["width"]) for o in objects}
    for ref in refs:
        lost = [i for i in targets_of(ref) if i not in crowd]
        if lost:
            raise UserError(
                f"ref {ref['ref_id']} of {dataset} ({split_by}) names annotation {lost[0]}, which "
                "instances.json lacks; use matching files"
            )
        blank = [i for i in targets_of(ref) if not pixels[i]]
        if blank:
            raise UserError(
                f"ref {ref['ref_id']} of {dataset} ({split_by}) names annotation {blank[0]}, whose "
                "mask covers no pixel; correct instances.json"
            )
    return {
        "dataset": dataset,
        "split_by": split_by,
        "image_id": record["id"],
        "file_name": record["file_name"],
        "height": record["height"],
        "width": record["width"],
        "objects": [{key: o[key] for key in ("ann_id", "category", "rle")} for o in objects],
        "refs": [
            {
                "ref_id": ref["ref_id"],
                **_target(ref, crowd),
                "split": ref["split"],
                "sentences": [
                    {"sent_id": s["sent_id"], "sent": s["sent"], "raw": s.get("raw", s["sent"])}
                    for s in ref["sentences"]
                ],
            }
            for ref in refs
        ],
    }


def _target(ref: dict, crowd: dict[int, bool]) -> dict:
    """Return the keys of a row's ref that name its target.

    Crowd regions among several objects are left out, as ReLA does it.
    """
    if "ann_ids" not in ref:
        return {"ann_id": ref["ann_id"]}
    return {
        "ann_ids": [i for i in ref["ann_ids"] if not crowd[i]] or ref["ann_ids"],
        "no_target": not ref["ann_ids"],
    }
