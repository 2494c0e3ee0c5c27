"""Read the image records and objects of COCO's instances.json."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from aml.data.rle import BadMask, to_rle
from aml.errors import UserError
from aml.reading import ID, check_pixels, describe, elements, file_problem, is_id, text_problem

WHAT = "COCO's instances, the annotations (masks) of the refs"

CATEGORY_LETTERS = 200
"""Letters of a category's name at most."""


def load_instances(
    path: Path, used: set[int] | None, max_pixels: int
) -> tuple[dict[int, dict], dict[int, list[dict]]]:
    """Read COCO's instances of the images in use.

    The file is read twice, since annotations may stand before the images they refer to.

    Args:
        path: instances.json.
        used: ids of the images in use; None for all.
        max_pixels: height times width of an image at most.

    Returns:
        {image_id: record} and {image_id: its objects as rows hold them, with the additional key
        `crowd`}.

    Raises:
        UserError: the file is missing, is not valid JSON or does not have COCO's format.
    """
    found = _image_records(path, used)
    records = _records(found["images"], path, max_pixels)
    categories = _categories(found["categories"], path)
    objects: dict[int, dict[int, dict]] = {}
    for _, annotation in elements(path, {"annotations"}, WHAT):
        if annotation is None:
            continue
        _check_keys(annotation, ("id", "image_id", "category_id"), path, "annotation")
        record = records.get(annotation["image_id"])
        if record is None:
            continue
        of_image = objects.setdefault(record["id"], {})
        if annotation["id"] in of_image:
            raise UserError(f"{path} has annotation {annotation['id']} twice; get the file again")
        of_image[annotation["id"]] = _object(annotation, record, categories, path)
    return records, {i: list(of_image.values()) for i, of_image in objects.items()}


def _check_keys(entry: Any, ids: Iterable[str], path: Path, kind: str) -> None:
    """Raise UserError where an entry of an array is no object or lacks some of its ids.

    Args:
        entry: the entry.
        ids: keys whose values must be ids.
        path: instances.json.
        kind: what the entry is, for the message.
    """
    if not isinstance(entry, dict):
        raise UserError(
            f"{path} has {describe(entry)} as {kind}, which is not COCO's; get the file again"
        )
    for key in ids:
        if not is_id(entry.get(key)):
            raise UserError(
                f"{path}: {kind} {describe(entry.get('id'))} has {key} {describe(entry.get(key))}, "
                f"and COCO's is {ID}; get the file again"
            )


def _image_records(path: Path, used: set[int] | None) -> dict[str, list[dict]]:
    """Return the entries of instances.json except annotations and the images not in use."""
    wanted = {"images": "image", "annotations": "annotation", "categories": "category"}
    found: dict[str, list] = {}
    for key, element in elements(path, set(wanted), WHAT):
        known = found.setdefault(key, [])
        if element is None or key == "annotations":
            continue
        _check_keys(element, ("id",), path, wanted[key])
        if key == "categories" or used is None or element["id"] in used:
            known.append(element)
    missing = [key for key in wanted if key not in found]
    if missing:
        raise UserError(
            f"{path} lacks {', '.join(missing)} or has something other than lists there; it must "
            "be COCO's instances format"
        )
    return found


def _records(images: list[dict], path: Path, max_pixels: int) -> dict[int, dict]:
    """Return {image_id: record}.

    Args:
        images: the records of the images in use.
        path: instances.json.
        max_pixels: height times width of an image at most.

    Raises:
        UserError: an id comes twice, a size is missing or too large, or a file is not under the
            images folder.
    """
    records: dict[int, dict] = {}
    for record in images:
        height, width = record.get("height"), record.get("width")
        name = f"{path}: image {record['id']}"
        if records.setdefault(record["id"], record) is not record:
            raise UserError(f"{path} has image {record['id']} twice; get the file again")
        if not (is_id(height) and is_id(width) and height and width):
            raise UserError(
                f"{name} is {describe(height)} x {describe(width)}, and height and width must be "
                "pixels; get the file again"
            )
        check_pixels(width, height, name, max_pixels)
        if problem := file_problem(record.get("file_name"), "the images folder"):
            raise UserError(f"{name} has a file_name that {problem}; give a name inside of it")
    return records


def _categories(entries: list[dict], path: Path) -> dict[int, str]:
    """Return {category id: name}."""
    for entry in entries:
        if problem := text_problem(entry.get("name"), CATEGORY_LETTERS):
            raise UserError(
                f"{path}: category {entry['id']} has a name that {problem}; get the file again"
            )
    return {entry["id"]: entry["name"] for entry in entries}


def _object(annotation: dict, record: dict, categories: dict[int, str], path: Path) -> dict:
    """Return an annotation as a row holds it, with the additional key `crowd`.

    The mask becomes an RLE, since polygons take many times its memory.
    """
    name = f"{path}: annotation {annotation['id']}"
    crowd = annotation.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise UserError(f"{name} has iscrowd {describe(crowd)}, and it is 0 or 1; correct the file")
    try:
        rle = to_rle(annotation.get("segmentation"), record["height"], record["width"])
    except BadMask as problem:
        raise UserError(f"{name} has a mask that cannot be drawn ({problem})") from None
    category = annotation["category_id"]
    return {
        "ann_id": annotation["id"],
        "category": categories.get(category, str(category)),
        "rle": rle,
        "crowd": bool(crowd),
    }
