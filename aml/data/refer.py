"""Read REFER files (RefCOCO, RefCOCO+, RefCOCOg, gRefCOCO) into rows.

A row is one image with its objects as RLE and its refs with their sentences.

The format is that of refer (github.com/lichengunc/refer). The `file_name` of a ref is not a file:
only its image_id leads to the JPEG. gRefCOCO (as github.com/henghuiding/ReLA reads it) is JSON; its
refs name several annotations, or [-1] for nothing in the picture.

A ref of a row has `ann_id`, its one object. Where expressions may name several objects or none, it
has `ann_ids` and `no_target` instead.
"""

import json
import pickle
from pathlib import Path
from typing import Any, NoReturn

from aml.data.json_stream import elements
from aml.data.refer_counts import targets_of
from aml.data.rle import NOTHING, check_segmentation, leads_out, to_rle
from aml.errors import UserError

SPLITS_BY = {
    "refcoco": ("unc", "google"),
    "refcoco+": ("unc",),
    "refcocog": ("umd", "google"),
    "grefcoco": ("unc",),
}
"""Data set -> its ways of splitting."""


class _PlainUnpickler(pickle.Unpickler):
    """Admit containers and scalars, which need no import.

    Any named class or function is refused before it is looked up.
    """

    def find_class(self, module: str, name: str) -> NoReturn:
        """Refuse the class or function that the pickle names."""
        raise UserError(
            f"the pickle names {module}.{name}, which a refs file never holds; nothing of it was "
            "run, get the file from its source again"
        )


def load_refs(path: Path) -> list[dict]:
    """Return the entries of REFER's refs(split_by).p.

    Raises:
        UserError: the file is missing or damaged, or holds more than plain data.
    """
    try:
        with open(path, "rb") as file:
            refs = _PlainUnpickler(file, encoding="utf-8", errors="replace").load()
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing; it is REFER's list of referents for one dataset and split_by, put "
            "it there"
        ) from None
    except Exception as error:  # a damaged pickle may raise almost anything
        raise UserError(
            f"{path} cannot be read as a refs pickle ({type(error).__name__}: {error}); get the "
            "file again"
        ) from None
    return _checked(refs, path)


def load_grefs(path: Path) -> list[dict]:
    """Return the entries of gRefCOCO's grefs(split_by).json.

    Each entry has `ann_ids`, an empty list for an expression without a target.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        refs = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing; it is gRefCOCO's list of referents, put it there"
        ) from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); get the file again") from None
    return [ref | {"ann_ids": _named(ref, path)} for ref in _checked(refs, path)]


def _named(ref: dict, path: Path) -> list[int]:
    """Return the annotations that a gRefCOCO ref names, each once."""
    given = ref["ann_id"] if isinstance(ref["ann_id"], list) else [ref["ann_id"]]
    if given == [NOTHING]:
        return []
    if not given or not all(isinstance(i, int) and i >= 0 for i in given):
        raise UserError(
            f"{path}: ref {ref['ref_id']} names annotations {given}; it must be some annotation "
            "ids, or [-1] for no target"
        )
    return list(dict.fromkeys(given))


def _checked(refs: Any, path: Path) -> list[dict]:
    """Return the refs; raise UserError where they are not as REFER writes them."""
    needed = {"ref_id", "ann_id", "image_id", "split", "sentences"}
    if not isinstance(refs, list) or not all(
        isinstance(r, dict) and needed <= r.keys() for r in refs
    ):
        raise UserError(
            f"{path} is not REFER's list of refs (dicts with {', '.join(sorted(needed))}); get the "
            "file again"
        )
    seen: set[tuple[int, int]] = set()
    wrong = [f"ref {ref['ref_id']!r} {problem}" for ref in refs if (problem := _wrong(ref, seen))]
    if wrong:
        raise UserError(f"{path}: {wrong[0]} ({len(wrong)} such refs in all); get the file again")
    return refs


def _wrong(ref: dict, seen: set[tuple[int, int]]) -> str:
    """Return what is wrong with a ref; empty where it is as REFER writes it.

    Args:
        ref: the ref.
        seen: (ref_id, sent_id) of the sentences of earlier refs, to which those of this ref are
            added. The pair names an item.
    """
    if type(ref["ref_id"]) is not int or type(ref["image_id"]) is not int:
        return f"has image_id {ref['image_id']!r}, and its ids must be whole numbers"
    if not isinstance(ref["split"], str) or not ref["split"].strip() or "," in ref["split"]:
        return f"has split {ref['split']!r}, and it must be one name without a comma"
    sentences = ref["sentences"]
    if not sentences:
        return "has no sentence, and each needs one"
    if not all(
        isinstance(s, dict) and type(s.get("sent_id")) is int and isinstance(s.get("sent"), str)
        for s in sentences
    ):
        return "has a sentence without sent_id (a whole number) or sent (text)"
    for key in ((ref["ref_id"], s["sent_id"]) for s in sentences):
        if key in seen:
            return f"has sentence {key[1]} twice, and ids must be unique"
        seen.add(key)
    return ""


def read_refer(refer_root: Path, images: Path, dataset: str, split_by: str) -> list[dict]:
    """Read a data set into rows without their JPEG.

    Args:
        refer_root: folder with <dataset>/refs(<split_by>).p (or grefcoco/grefs(unc).json) and
            <dataset>/instances.json.
        images: folder of the JPEGs.
        dataset: a key of SPLITS_BY.
        split_by: one of its values.

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
    refs = load_grefs(folder / name) if dataset == "grefcoco" else load_refs(folder / name)
    by_image: dict[int, list[dict]] = {}
    for ref in refs:
        by_image.setdefault(ref["image_id"], []).append(ref)
    records, objects = _load_instances(folder / "instances.json", set(by_image))
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


def _load_instances(path: Path, used: set[int]) -> tuple[dict[int, dict], dict[int, list[dict]]]:
    """Read COCO's instances of the images in use.

    Args:
        path: instances.json.
        used: ids of the images in use.

    Returns:
        {image_id: record} and {image_id: its objects}.

    Raises:
        UserError: the file is missing, is not valid JSON or does not have COCO's format.
    """
    try:
        return _read_instances(path, used)
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing; it holds the annotations (masks) of the refs, put it there"
        ) from None
    except UserError:  # UserError is a ValueError, too
        raise
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path} has an entry that is not COCO's ({type(error).__name__}: {error}); it must be "
            "COCO's instances format"
        ) from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); get the file again") from None


def _read_instances(path: Path, used: set[int]) -> tuple[dict[int, dict], dict[int, list[dict]]]:
    """Read instances.json twice, since annotations may stand before the images they refer to."""
    found = _image_records(path, used)
    records = _records(found["images"], path)
    categories = {c["id"]: c["name"] for c in found["categories"]}
    objects: dict[int, dict[int, dict]] = {}
    for _, annotation in elements(path, {"annotations"}):
        if annotation is None or annotation["image_id"] not in records:
            continue
        of_image = objects.setdefault(annotation["image_id"], {})
        if annotation["id"] in of_image:
            raise UserError(f"{path} has annotation {annotation['id']} twice; get the file again")
        record = records[annotation["image_id"]]
        of_image[annotation["id"]] = _object(annotation, record, categories, path)
    return records, {i: list(of_image.values()) for i, of_image in objects.items()}


def _image_records(path: Path, used: set[int]) -> dict[str, list[dict]]:
    """Return the entries of instances.json except annotations and the images not in use."""
    wanted = ("images", "annotations", "categories")
    found: dict[str, list] = {}
    for key, element in elements(path, set(wanted)):
        known = found.setdefault(key, [])
        if element is None or key == "annotations":
            continue
        if key == "categories" or element["id"] in used:
            known.append(element)
    missing = [key for key in wanted if key not in found]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}; it must be COCO's instances format")
    return found


def _records(images: list[dict], path: Path) -> dict[int, dict]:
    """Return {image_id: record}.

    Raises:
        UserError: an id comes twice, a size is missing, or a file is not under the images folder.
    """
    records: dict[int, dict] = {}
    for record in images:
        name = record["file_name"]
        sides = (record["height"], record["width"])
        if records.setdefault(record["id"], record) is not record:
            raise UserError(f"{path} has image {record['id']} twice; get the file again")
        if not all(type(side) is int and side > 0 for side in sides):
            raise UserError(
                f"{path}: image {record['id']} is {sides[0]!r} x {sides[1]!r}, and height and "
                "width must be pixels; get the file again"
            )
        if leads_out(name):
            raise UserError(
                f"{path}: image {record['id']} is called {name!r}, which leads out of the images "
                "folder; give a name inside of it"
            )
    return records


def _object(annotation: dict, record: dict, categories: dict[int, str], path: Path) -> dict:
    """Return an annotation as a row holds it, with the additional key `crowd`.

    The mask becomes an RLE, since polygons take many times its memory.
    """
    category = annotation["category_id"]
    height = record["height"]
    width = record["width"]
    try:
        check_segmentation(annotation["segmentation"], height, width)
        rle = to_rle(annotation["segmentation"], height, width)
    except Exception as error:  # pycocotools raises errors of any class on wrong values
        why = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise UserError(
            f"{path}: the mask of annotation {annotation['id']} cannot be drawn ({why}); get the "
            "file again"
        ) from None
    return {
        "ann_id": annotation["id"],
        "category": categories.get(category, str(category)),
        "rle": rle,
        "crowd": bool(annotation.get("iscrowd")),
    }


def _find_image(folder: Path, file_name: str) -> Path | None:
    """Return the path of an image, or None.

    The images folder may be train2014 itself or lie one or two levels above it.
    """
    for place in (folder, folder / "train2014", folder / "images" / "train2014"):
        if (place / file_name).is_file():
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
        UserError: a ref names an annotation that is not among the objects.
    """
    crowd = {o["ann_id"]: o["crowd"] for o in objects}
    for ref in refs:
        lost = [i for i in targets_of(ref) if i not in crowd]
        if lost:
            raise UserError(
                f"ref {ref['ref_id']} of {dataset} ({split_by}) names annotation {lost[0]}, which "
                "instances.json lacks; use matching files"
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
