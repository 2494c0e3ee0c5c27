"""Read data sets in REFER's format (RefCOCO, RefCOCO+, RefCOCOg, gRefCOCO, any other) into rows.

A row is one image with its objects as RLE and its refs with their sentences.

The format is that of refer (github.com/lichengunc/refer). The `file_name` of a ref is not a file:
only its image_id leads to the picture. gRefCOCO (as github.com/henghuiding/ReLA reads it) is JSON;
its refs name several annotations, or [-1] for nothing in the picture. Masks lie on the pixels of
the picture's file: EXIF's orientation is not applied.

A ref of a row has `ann_id`, its one object. Where expressions may name several objects or none, it
has `ann_ids` and `no_target` instead.
"""

from pathlib import Path

from aml.data.instances import Instances
from aml.data.refer_counts import targets_of
from aml.data.refer_files.findings import Findings
from aml.data.refer_files.places import DatasetFiles, Pictures, dataset_files
from aml.data.refer_files.refs import load_grefs, load_refs, own_mask
from aml.data.rle import BadMask, area, to_rle
from aml.errors import UserError
from aml.reading import MAX_PIXELS


def read_refer(
    refer_root: Path,
    images: Path,
    dataset: str,
    split_by: str,
    max_pixels: int = MAX_PIXELS,
    *,
    skip_unusable: bool = False,
    findings: Findings | None = None,
) -> list[dict]:
    """Read a data set into rows without their pictures.

    Args:
        refer_root: folder with <dataset>/refs(<split_by>).p (or grefs(<split_by>).json) and
            <dataset>/instances.json.
        images: folder of the pictures.
        dataset: name of the data set's folder.
        split_by: name of the splitting.
        max_pixels: height times width of a picture at most.
        skip_unusable: leave out sentences without a word, and refs without a sentence, a mask or a
            picture; they are refused otherwise.
        findings: to which is added what was found and what was left out.

    Returns:
        One row an image, in the order of image_id; `path` names its file.

    Raises:
        UserError: unknown dataset or split_by, a missing file, a ref whose annotation or image
            record is missing, or an image that is not on disk.
    """
    findings = findings if findings is not None else Findings()
    files = dataset_files(Path(refer_root), dataset, split_by)
    load = load_grefs if files.several else load_refs
    refs = load(files.refs, skip_unusable=skip_unusable, findings=findings)
    reader = _Reader(files, f"{dataset} ({split_by})", refs, max_pixels, skip_unusable, findings)
    paths = reader.find_pictures(Pictures(Path(images)))
    return [
        {"dataset": dataset, "split_by": split_by, **row, "path": str(paths[row["image_id"]])}
        for image_id in sorted(paths)
        if (row := reader.row(image_id))["refs"]
    ]


class _Reader:
    """Makes rows of a data set's refs and instances."""

    def __init__(
        self,
        files: DatasetFiles,
        name: str,
        refs: list[dict],
        max_pixels: int,
        skip_unusable: bool,
        findings: Findings,
    ) -> None:
        """Read the instances.

        Args:
            files: the data set's files.
            name: the data set and its splitting, for messages.
            refs: the refs, checked.
            max_pixels: height times width of a picture at most.
            skip_unusable: leave out what cannot be used.
            findings: to which is added what was found and left out.
        """
        self._files = files
        self._name = name
        self._skip = skip_unusable
        self._findings = findings
        self._refs: dict[int, list[dict]] = {}
        for ref in refs:
            self._refs.setdefault(ref["image_id"], []).append(ref)
        self._instances = Instances(
            set(self._refs), max_pixels, skip_unusable=skip_unusable, findings=findings
        )
        for path in files.categories:
            self._instances.read_categories(path)
        masks_needed = all(own_mask(ref) is None for ref in refs)
        self._instances.read(files.instances, masks_needed=masks_needed)
        self._objects = self._instances.objects
        every = (files.refs, *files.instances, *files.categories)
        findings.files += [path.name for path in every]

    def find_pictures(self, pictures: Pictures) -> dict[int, Path]:
        """Return {image_id: path} of the pictures that have refs.

        Raises:
            UserError: an image is not in the list, or its picture is not on disk.
        """
        records = self._instances.records
        unknown = sorted(set(self._refs) - set(records))
        if unknown and not self._skip:
            raise UserError(
                f"{self._files.refs.parent}/{self._files.masks} lacks image {unknown[0]} "
                f"({len(unknown)} in all) that {self._files.refs.name} names; use matching files, "
                "or pass --skip-unreadable to leave such refs out"
            )
        found: dict[int, Path] = {}
        absent: list[int] = []
        for image_id, refs in self._refs.items():
            if image_id not in records:
                self._leave_out("refs whose image is not in the list", len(refs))
                continue
            splits = {ref["split"] for ref in refs}
            path = pictures.find(records[image_id]["file_name"], splits)
            if path is None:
                absent.append(image_id)
                self._leave_out("refs whose picture is not there", len(refs))
            else:
                found[image_id] = path
        if absent and (not self._skip or not found):
            first = min(records[i]["file_name"] for i in absent)
            raise UserError(
                f"{len(absent)} of {len(found) + len(absent)} images are not under "
                f"{pictures.folder}, the first is {first}; name the folder of the pictures "
                "(COCO's train2014 for RefCOCO), or pass --skip-unreadable to leave such refs out"
            )
        return found

    def row(self, image_id: int) -> dict:
        """Return the row of an image without its data set and path.

        Raises:
            UserError: a ref names an annotation that is not among the objects, or covers no pixel.
        """
        record = self._instances.records[image_id]
        objects = {o["ann_id"]: o for o in self._objects.get(image_id, [])}
        listed = set(objects)
        named = [(ref, self._with_object(ref, record, objects)) for ref in self._refs[image_id]]
        pixels = {i: area(o["rle"], record["height"], record["width"]) for i, o in objects.items()}
        kept = []
        for given, ref in named:
            if ref is None or not self._is_usable(ref, pixels):
                continue
            kept.append(ref)
            if targets_of(ref):
                from_refs = own_mask(given) is not None and not listed.issuperset(targets_of(ref))
                self._findings.masks["refs" if from_refs else "instances"] += 1
        crowd = {i: o["crowd"] for i, o in objects.items()}
        return {
            "image_id": record["id"],
            "file_name": record["file_name"],
            "height": record["height"],
            "width": record["width"],
            "objects": [
                {key: o[key] for key in ("ann_id", "category", "rle")} for o in objects.values()
            ],
            "refs": [_row_ref(ref, crowd) for ref in kept],
        }

    def _with_object(self, ref: dict, record: dict, objects: dict[int, dict]) -> dict | None:
        """Return a ref that names an object; its own mask becomes one where instances have none.

        Args:
            ref: the ref.
            record: COCO's image record.
            objects: {ann_id: object} of the image, to which the mask is added. A ref without an
                ann_id names the object of the same mask, or a new one.

        Returns:
            The ref; None where its mask cannot be drawn and such refs are left out.
        """
        mask = own_mask(ref)
        if mask is None or "ann_ids" in ref or ref.get("ann_id") in objects:
            return ref
        try:
            rle = to_rle(mask, record["height"], record["width"])
        except BadMask as problem:
            if self._skip:
                self._leave_out("refs whose mask cannot be drawn")
                return None
            raise UserError(
                f"ref {ref['ref_id']} of {self._name} has a mask that cannot be drawn ({problem})"
            ) from None
        ann_id = ref.get("ann_id")
        if ann_id is None:
            same = [i for i, o in objects.items() if o["rle"] == rle]
            ann_id = same[0] if same else max(objects, default=0) + 1
        category = self._instances.categories.get(ref.get("category_id", -1))
        one = {"ann_id": ann_id, "category": category, "rle": rle, "crowd": False}
        objects.setdefault(ann_id, one)
        return ref | {"ann_id": ann_id}

    def _is_usable(self, ref: dict, pixels: dict[int, int]) -> bool:
        """Return whether a ref names objects that are there; raise where it must.

        Args:
            ref: the ref.
            pixels: {ann_id: pixels of its mask} of the image.
        """
        name = f"ref {ref['ref_id']} of {self._name} names annotation"
        lost = [i for i in targets_of(ref) if i not in pixels]
        blank = [i for i in targets_of(ref) if not pixels.get(i, 1)]
        if not lost and not blank:
            return True
        if self._skip:
            self._leave_out(
                "refs whose annotation is missing" if lost else "refs whose mask covers no pixel"
            )
            return False
        advice = "or pass --skip-unreadable to leave such refs out"
        if lost:
            raise UserError(
                f"{name} {lost[0]}, which {self._files.masks} lacks; use matching files, {advice}"
            )
        raise UserError(
            f"{name} {blank[0]}, whose mask covers no pixel; correct {self._files.masks}, {advice}"
        )

    def _leave_out(self, reason: str, n: int = 1) -> None:
        self._findings.left_out[reason] += n


def _row_ref(ref: dict, crowd: dict[int, bool]) -> dict:
    """Return a ref as rows hold it.

    Crowd regions among several objects are left out, as ReLA does it.

    Args:
        ref: the ref.
        crowd: {ann_id: whether it is a crowd region} of the image.
    """
    target = {"ann_id": ref["ann_id"]}
    if "ann_ids" in ref:
        named = [i for i in ref["ann_ids"] if not crowd[i]] or ref["ann_ids"]
        target = {"ann_ids": named, "no_target": not ref["ann_ids"]}
    return {
        "ref_id": ref["ref_id"],
        **target,
        "split": ref["split"],
        "sentences": [
            {"sent_id": s["sent_id"], "sent": s["sent"], "raw": s.get("raw", s["sent"])}
            for s in ref["sentences"]
        ],
    }
