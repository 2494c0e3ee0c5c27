"""Compare two copies of a data set ref by ref.

Both are read in the order of their image_ids, one picture's annotations at a time: only what
differs is kept.
"""

import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any

from aml.data import referent
from orchestrator.data import shards
from orchestrator.storage import Filesystem

MISSING, ADDED, MOVED, SPLIT, MASK, SENTENCES = KINDS = (
    "missing",
    "added",
    "other picture",
    "other split",
    "other mask",
    "other sentences",
)
"""Kinds of differences of a ref, as seen from the first copy."""

Difference = dict[str, Any]
"""ref_id, image_id, kinds, split (in both copies, None where it is missing), and where they differ
mask_iou and sentences ({sent_id: texts in both copies}); unchanged counts the other sentences."""


def diff_shards(a: Filesystem, b: Filesystem) -> dict[str, Any]:
    """Return what differs between two copies of a data set.

    Args:
        a: Shards of the first copy.
        b: Shards of the second.

    Returns:
        a and b: dataset, split_by, fingerprint and the number of refs; counts: refs by kind of
        difference; refs: the Differences, by ref_id.

    Raises:
        UserError: Shards that are missing or damaged.
    """
    found: dict[int, Difference] = {}
    gone: dict[int, dict] = {}
    come: dict[int, dict] = {}
    totals: Counter[str] = Counter()
    for of_a, of_b in _pairs(_refs_of_images(a), _refs_of_images(b)):
        totals.update(a=len(of_a), b=len(of_b))
        for ref_id, ref in of_a.items():
            if ref_id not in of_b:
                gone[ref_id] = ref
            elif difference := _difference(ref, of_b[ref_id]):
                found[ref_id] = difference
        come |= {ref_id: ref for ref_id, ref in of_b.items() if ref_id not in of_a}
    for ref_id, ref in gone.items():
        if ref_id in come:
            difference = _difference(ref, come[ref_id]) or {}
            kinds = [MOVED, *difference.get("kinds", [])]
            found[ref_id] = _named(ref) | difference | {"kinds": kinds}
        else:
            found[ref_id] = _named(ref) | {"kinds": [MISSING], "split": [ref["split"], None]}
    for ref_id in come.keys() - gone.keys():
        ref = come[ref_id]
        found[ref_id] = _named(ref) | {
            "kinds": [ADDED],
            "split": [None, ref["split"]],
            "sentences": {str(key): [None, text] for key, text in ref["sentences"].items()},
        }
    counts = Counter(kind for difference in found.values() for kind in difference["kinds"])
    return {
        "a": _about(a) | {"refs": totals["a"]},
        "b": _about(b) | {"refs": totals["b"]},
        "counts": {kind: counts[kind] for kind in KINDS},
        "refs": [found[ref_id] for ref_id in sorted(found)],
    }


def diff_lines(found: dict[str, Any], shown: int = 20) -> list[str]:
    """Return what `diff_shards` found, as lines for a person.

    Args:
        found: The result of `diff_shards`.
        shown: Refs that are named at most.
    """
    lines = []
    if not found["refs"]:
        lines.append(f"no difference in {found['a']['refs']} refs")
    for kind, count in found["counts"].items():
        if count:
            of = found["b" if kind == ADDED else "a"]["refs"]
            lines.append(f"{kind:16} {count:7} of {of} refs")
    for ref in found["refs"][:shown]:
        parts = [", ".join(ref["kinds"])]
        if SPLIT in ref["kinds"]:
            parts.append("split {} -> {}".format(*ref["split"]))
        if "mask_iou" in ref:
            parts.append(f"IoU of the masks {ref['mask_iou']:.3f}")
        if ADDED not in ref["kinds"]:
            parts += [
                f"sentence {key}: {before!r} -> {after!r}"
                for key, (before, after) in ref.get("sentences", {}).items()
            ]
        lines.append(f"ref {ref['ref_id']} of picture {ref['image_id']}: {'; '.join(parts)}")
    if len(found["refs"]) > shown:
        lines.append(f"and {len(found['refs']) - shown} refs more (all with --json)")
    return lines


def _about(store: Filesystem) -> dict[str, Any]:
    manifest = shards.read_manifest(store)
    named = {key: manifest[key] for key in ("dataset", "split_by", "fingerprint")}
    return {"uri": store.uri} | named


def _refs_of_images(store: Filesystem) -> Iterator[tuple[int, dict[int, dict]]]:
    """Yield each image_id, in order, with what its refs say, by ref_id."""
    splits = shards.read_manifest(store)["splits"]
    for row in shards.read_rows(store, shards.picture_places(store, splits), jpeg=False):
        yield (
            row["image_id"],
            {
                ref["ref_id"]: {
                    "ref_id": ref["ref_id"],
                    "image_id": row["image_id"],
                    "split": ref["split"],
                    "sentences": {s["sent_id"]: s["sent"] for s in ref["sentences"]},
                    "size": [row["height"], row["width"]],
                    "mask": referent(row, ref),
                }
                for ref in row["refs"]
            },
        )


def _pairs(a: Iterator, b: Iterator) -> Iterator[tuple[dict, dict]]:
    """Yield the refs of both copies of each picture, none where one has it not."""
    end: tuple[int | None, dict] = (None, {})
    first, second = next(a, end), next(b, end)
    while first[0] is not None or second[0] is not None:
        if second[0] is None or (first[0] is not None and first[0] < second[0]):
            yield first[1], {}
            first = next(a, end)
        elif first[0] is None or second[0] < first[0]:
            yield {}, second[1]
            second = next(b, end)
        else:
            yield first[1], second[1]
            first, second = next(a, end), next(b, end)


def _named(ref: dict) -> Difference:
    return {"ref_id": ref["ref_id"], "image_id": ref["image_id"]}


def _difference(a: dict, b: dict) -> Difference | None:
    """Return what differs between two refs of one ref_id; None where nothing does."""
    found: Difference = {}
    kinds = []
    found["split"] = [a["split"], b["split"]]
    if a["split"] != b["split"]:
        kinds.append(SPLIT)
    if (a["size"], a["mask"]) != (b["size"], b["mask"]) and (iou := _iou(a, b)) < 1:
        kinds.append(MASK)
        found["mask_iou"] = iou
    keys = itertools.chain(a["sentences"], b["sentences"])
    texts = {key: [a["sentences"].get(key), b["sentences"].get(key)] for key in keys}
    if changed := {str(key): pair for key, pair in texts.items() if pair[0] != pair[1]}:
        kinds.append(SENTENCES)
        found["sentences"] = changed
    found["unchanged"] = len(texts) - len(changed)
    return _named(a) | {"kinds": kinds} | found if kinds else None


def _iou(a: dict, b: dict) -> float:
    """Return the IoU of two masks, 0 where their pictures have other sizes, 1 of two empty ones."""
    from pycocotools import mask

    if a["size"] != b["size"]:
        return 0.0
    rles = [{"size": ref["size"], "counts": ref["mask"].encode()} for ref in (a, b)]
    if not any(mask.area(rles)):
        return 1.0
    return float(mask.iou(rles[:1], rles[1:], [0])[0, 0])
