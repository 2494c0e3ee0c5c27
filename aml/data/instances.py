"""Read the image records and objects of COCO's instances.json."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from aml.data.refer_files.findings import Findings
from aml.data.rle import BadMask, to_rle
from aml.errors import UserError
from aml.reading import (
    ID,
    check_pixels,
    describe,
    elements,
    file_problem,
    is_id,
    read_json,
    text_problem,
)

WHAT = "COCO's instances, the annotations (masks) of the refs"

CATEGORY_LETTERS = 200
"""Letters of a category's name at most."""


def load_instances(
    path: Path, used: set[int] | None, max_pixels: int
) -> tuple[dict[int, dict], dict[int, list[dict]]]:
    """Read COCO's instances of the images in use.

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
    instances = Instances(used, max_pixels)
    instances.read([path])
    return instances.records, instances.objects


class Instances:
    """Image records and objects of one or several files of COCO's format.

    A file is read twice, since annotations may stand before the images they refer to. Ids of
    annotations must differ within an image alone, and those of categories within a file: the files
    of two splits may each begin with 1.
    """

    def __init__(
        self,
        used: set[int] | None,
        max_pixels: int,
        *,
        skip_unusable: bool = False,
        findings: Findings | None = None,
    ) -> None:
        """Begin without a file.

        Args:
            used: ids of the images in use; None for all.
            max_pixels: height times width of an image at most.
            skip_unusable: leave out annotations whose mask cannot be drawn.
            findings: to which is added what is left out.
        """
        self.records: dict[int, dict] = {}
        """{image_id: record}, with file_name as text."""
        self.categories: dict[int, str] = {}
        """{category_id: name}, the first one where files differ."""
        self._used = used
        self._max_pixels = max_pixels
        self._skip_unusable = skip_unusable
        self._left_out = (findings if findings is not None else Findings()).left_out
        self._others: set[int] = set()
        self._objects: dict[int, dict[int, dict]] = {}

    @property
    def objects(self) -> dict[int, list[dict]]:
        """{image_id: its objects as rows hold them, with the additional key `crowd`}."""
        return {i: list(of_image.values()) for i, of_image in self._objects.items()}

    def read_categories(self, path: Path) -> None:
        """Read a file that holds categories alone: a list of them, or an object with that list.

        Raises:
            UserError: the file is damaged, or names a category differently than another one.
        """
        found = read_json(path, "a list of categories")
        entries = found.get("categories") if isinstance(found, dict) else found
        if not isinstance(entries, list):
            raise UserError(f"{path} is no list of categories (id, name); get the file again")
        for entry in entries:
            _check_keys(entry, ("id",), path, "category")
        for category, name in _categories(entries, path).items():
            if self.categories.setdefault(category, name) != name:
                raise UserError(
                    f"{path} names category {category} {describe(name)}, and another file "
                    f"{describe(self.categories[category])}; keep one of the two"
                )

    def read(self, paths: Sequence[Path], *, masks_needed: bool = True) -> None:
        """Read files of COCO's format.

        Args:
            paths: the files.
            masks_needed: whether each file must have annotations.

        Raises:
            UserError: a file is missing, is not valid JSON or does not have COCO's format, or
                tells something else of an image than another file.
        """
        names = [self._read_images(path, masks_needed) for path in paths]
        for path, of_file in zip(paths, names, strict=True):
            self._read_annotations(path, self.categories | of_file)

    def _read_images(self, path: Path, masks_needed: bool) -> dict[int, str]:
        """Add the image records of a file, and return its categories' names."""
        found, others = _image_records(path, self._used, masks_needed)
        self._others |= others
        for image_id, record in _records(found["images"], path, self._max_pixels).items():
            held = self.records.setdefault(image_id, record)
            if any(held[key] != record[key] for key in ("file_name", "height", "width")):
                raise UserError(
                    f"{path}: image {image_id} is {describe(record['file_name'])}, and in another "
                    f"file {describe(held['file_name'])}; give each image an id of its own"
                )
        names = _categories(found.get("categories", []), path)
        self.categories = names | self.categories
        return names

    def _read_annotations(self, path: Path, categories: dict[int, str]) -> None:
        """Add the objects of a file."""
        here: set[tuple[int, int]] = set()
        for _, annotation in elements(path, {"annotations"}, WHAT):
            if annotation is None:
                continue
            _check_keys(annotation, ("id", "image_id", "category_id"), path, "annotation")
            ann_id, image_id = annotation["id"], annotation["image_id"]
            record = self.records.get(image_id)
            if record is None:
                unlisted = image_id not in self._others
                self._left_out["annotations whose image is not in the list"] += unlisted
                continue
            if (image_id, ann_id) in here:
                raise UserError(f"{path} has annotation {ann_id} twice; get the file again")
            here.add((image_id, ann_id))
            try:
                one = _object(annotation, record, categories, path)
            except UnusableMask:
                if not self._skip_unusable:
                    raise
                self._left_out["annotations whose mask cannot be drawn"] += 1
                continue
            held = self._objects.setdefault(image_id, {}).setdefault(ann_id, one)
            if held["rle"] != one["rle"]:
                raise UserError(
                    f"{path}: annotation {ann_id} of image {image_id} has another mask in another "
                    "file; keep one of the two files"
                )


class UnusableMask(UserError):
    """An annotation has a mask that cannot be drawn."""


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


def _image_records(
    path: Path, used: set[int] | None, masks_needed: bool
) -> tuple[dict[str, list[dict]], set[int]]:
    """Return the images in use and the categories of a file, and the ids of its other images.

    Args:
        path: instances.json.
        used: ids of the images in use; None for all.
        masks_needed: whether the file must have annotations.
    """
    wanted = {"images": "image", "annotations": "annotation", "categories": "category"}
    found: dict[str, list] = {}
    others = set()
    for key, element in elements(path, set(wanted), WHAT):
        known = found.setdefault(key, [])
        if element is None or key == "annotations":
            continue
        _check_keys(element, ("id",), path, wanted[key])
        if key == "categories" or used is None or element["id"] in used:
            known.append(element)
        else:
            others.add(element["id"])
    needed = ("images", "annotations") if masks_needed else ("images",)
    missing = [key for key in needed if key not in found]
    if missing:
        raise UserError(
            f"{path} lacks {', '.join(missing)} or has something other than lists there; it must "
            "be COCO's instances format"
        )
    return found, others


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
        if is_id(record.get("file_name")):
            record["file_name"] = str(record["file_name"])
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
        raise UnusableMask(f"{name} has a mask that cannot be drawn ({problem})") from None
    category = annotation["category_id"]
    return {
        "ann_id": annotation["id"],
        "category": categories.get(category, str(category)),
        "rle": rle,
        "crowd": bool(crowd),
    }
