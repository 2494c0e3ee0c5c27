"""Time the parts of the work that makes a sample from its files."""

import functools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from aml.data import decode_image, fit_image, fit_mask, rasterise, referent
from aml.reading import read_json
from orchestrator.benchmarks.published_loader import polygon_mask
from orchestrator.data import RowGroupReader, ShardSelection

T = TypeVar("T")

PICTURES = 40
"""Pictures on which the parts are timed."""


class _PartTimes:
    """Milliseconds of each part of the work, by its name."""

    def __init__(self) -> None:
        self.milliseconds: dict[str, list[float]] = {}

    def time(self, name: str, call: Callable[[], T]) -> T:
        """Call a function, note its time, and return its result."""
        start = time.perf_counter()
        value = call()
        elapsed = 1e3 * (time.perf_counter() - start)
        self.milliseconds.setdefault(name, []).append(elapsed)
        return value

    def medians(self) -> dict[str, float]:
        """Return the median of each part."""
        return {name: round(statistics.median(v), 3) for name, v in self.milliseconds.items()}


def profile_pictures(
    rows: list[dict], root: Path, part: ShardSelection, size: int
) -> dict[str, float]:
    """Time the parts of a sample in one thread.

    Args:
        rows: Rows of the data set, as aml.data.read_refer returns them.
        root: Folder of the data set in REFER's layout.
        part: The same data set in shards.
        size: Side of the network's image, pixels.

    Returns:
        Median milliseconds of each part.
    """
    instances = read_json(root / "refcoco" / "instances.json")
    annotations = {a["id"]: a for a in instances["annotations"]}
    some = [row for row in rows if any(ref["split"] == "train" for ref in row["refs"])][:PICTURES]
    pictures = RowGroupReader((part,), size, "square")
    block = pictures.read(0)
    times = _PartTimes()
    for k, row in enumerate(some):
        _profile_picture(row, annotations[row["refs"][0]["ann_id"]], size, times)
        decode = functools.partial(pictures.decode, block, 0, k % len(block))
        times.time("whole picture, all its refs (ours)", decode)
    return times.medians()


def _profile_picture(row: dict, annotation: dict, size: int, times: _PartTimes) -> None:
    """Time the parts of the first ref of one picture."""
    image = times.time(
        "decode JPEG", lambda: decode_image(Path(row["path"]).read_bytes(), row["file_name"])
    )
    times.time("resize picture", lambda: fit_image(image, size, "square"))
    mask = times.time(
        "mask from RLE",
        lambda: rasterise(referent(row, row["refs"][0]), row["height"], row["width"]),
    )
    times.time("resize mask", lambda: fit_mask(mask, size, "square"))
    times.time("mask from polygons (published)", lambda: polygon_mask(annotation, row))


def time_shares(row_ms: dict[str, float], refs: float) -> dict[str, float]:
    """Return the shares of JPEG, resizing and masks in the time of a picture; they add up to 1.

    Args:
        row_ms: Milliseconds of each part, as `profile_pictures` returns them.
        refs: Refs of a picture, in the mean.
    """
    parts = {
        "JPEG": row_ms["decode JPEG"],
        "resize": row_ms["resize picture"],
        "masks": refs * (row_ms["mask from RLE"] + row_ms["resize mask"]),
    }
    return {name: round(value / sum(parts.values()), 3) for name, value in parts.items()}
