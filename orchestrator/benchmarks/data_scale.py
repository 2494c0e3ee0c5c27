"""Measure how the cost of reading grows: python -m orchestrator bench readers

Each cell of the table is a number of images, a side of the network's image and a number of readers.
A reader is a process of its own, as a trial is, that streams batches from the shards through a
window of blocks with one thread of torch. Its time is CPU time, which other work on the machine
changes little. Its memory is told in two parts: the annotations, which grow with the data, and
what is added while it reads, which must not.

The pictures are generated, DISTINCT of them at most; larger data repeat them under other ids, so
that their shards have every byte that as many pictures have.
"""

import itertools
import json
import logging
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from aml.data import Items, read_refer, train_batches
from aml.errors import UserError
from aml.models import build_model
from orchestrator import storage
from orchestrator.benchmarks.data_reading import start_ray
from orchestrator.benchmarks.generated_pictures import ENLARGED, SIDE, make_pictures
from orchestrator.benchmarks.published_loader import BATCH, time_batches
from orchestrator.data import ShardSelection, StreamingBlocks, pack_rows, write_shards

logger = logging.getLogger(__name__)

DISTINCT = 400
"""Different pictures at most."""

SMALLEST = 32 * ENLARGED
"""Shortest longer side of the generated pictures, pixels."""


def measure_readers(
    images: list[int], sizes: list[int], readers: list[int], *, side: int = SIDE, samples: int
) -> dict[str, Any]:
    """Measure every combination, and log a line for each and the table.

    Args:
        images: Numbers of images.
        sizes: Sides of the network's image, pixels.
        readers: Numbers of processes that read at the same time.
        side: Longer side of the generated pictures, pixels.
        samples: Samples that each reader takes after its first batch, at most an epoch.

    Returns:
        The settings, and under "rows" a dict for each cell: images, size, readers;
        cpu_ms: CPU milliseconds of a sample, the mean over readers;
        samples_s: samples a second of all readers together, by the clock;
        first_batch_s: seconds to a reader's first batch, the median;
        annotations_mb: MiB that a reader's annotations take, the largest;
        reading_mb: MiB that are added while it reads, the largest.

    Raises:
        UserError: A number is too small.
    """
    if min(*images, *sizes, *readers, samples) < 1 or min(images) < 8 or side < SMALLEST:
        raise UserError(
            f"bench readers was asked for {images} images of {side} px, sizes {sizes}, "
            f"{readers} readers and {samples} samples; give 8 images of {SMALLEST} px or more, "
            "and 1 or more of the others"
        )
    rows = []
    encoded = 0.0
    start_ray(os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_pictures(root, min(max(images), DISTINCT), os.cpu_count() or 1, side)
        pictures = read_refer(root, root / "images", "refcoco", "unc")
        encoded = statistics.mean(Path(row["path"]).stat().st_size for row in pictures) / 1e3
        for count in images:
            store = storage.Filesystem(root / f"shards{count}")
            write_shards(pack_rows(repeated(pictures, count)), store)
            part = ShardSelection(store, frozenset({"train"}), {})
            for size, number in itertools.product(sizes, readers):
                cell = {"images": count, "size": size, "readers": number}
                rows.append(cell | _measure_cell(part, size, number, samples))
                logger.info(json.dumps(rows[-1]))
            for name in store.names():
                store.delete(name)
    for text in table(rows):
        logger.info(text)
    return {"side": side, "image_kb": round(encoded, 1), "samples": samples, "rows": rows}


def repeated(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Return `count` rows: those given, again and again under other ids.

    Args:
        rows: Rows as read_refer returns them.
        count: Number of rows to return.
    """
    step = 1 + max(
        max([row["image_id"], *(s["sent_id"] for r in row["refs"] for s in r["sentences"])])
        + max(ref["ref_id"] for ref in row["refs"])
        for row in rows
    )
    found = []
    for k in range(count):
        turn, row = divmod(k, len(rows))
        shift = turn * step
        refs = [
            ref
            | {
                "ref_id": ref["ref_id"] + shift,
                "sentences": [s | {"sent_id": s["sent_id"] + shift} for s in ref["sentences"]],
            }
            for ref in rows[row]["refs"]
        ]
        found.append(rows[row] | {"image_id": rows[row]["image_id"] + shift, "refs": refs})
    return found


def _measure_cell(part: ShardSelection, size: int, number: int, samples: int) -> dict[str, float]:
    """Return the measurements of a cell, as `measure_readers` tells them."""
    with multiprocessing.get_context("spawn").Pool(number) as pool:
        asked = [(part, size, samples, seed) for seed in range(number)]
        found = pool.starmap(_read, asked, chunksize=1)
    end = max(one["end"] for one in found)
    start = min(one["start"] for one in found)
    return {
        "cpu_ms": round(statistics.mean(one["cpu_ms"] for one in found), 2),
        "samples_s": round(sum(one["samples"] for one in found) / (end - start), 1),
        "first_batch_s": round(statistics.median(one["first_s"] for one in found), 2),
        "annotations_mb": round(max(one["annotations_mb"] for one in found), 1),
        "reading_mb": round(max(one["reading_mb"] for one in found), 1),
    }


def _read(part: ShardSelection, size: int, samples: int, seed: int) -> dict[str, float]:
    """Stream batches of an epoch in this process, and return what that took."""
    torch.set_num_threads(1)
    model = build_model("small", vocabulary=["the"], width=32, stem=16)
    before = _status_mb("VmRSS")
    start = time.perf_counter()
    window = StreamingBlocks((part,), size, "square").open()
    items = Items(window, "train", size=size, unit="sentence")
    opened = _status_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", "ascii")  # VmHWM counts from here
    batches = train_batches(items, model, batch=BATCH, seed=seed, epoch=0)
    cpu = time.process_time()
    first, taken, _ = time_batches((len(batch.image) for batch in batches), start, samples)
    return {
        "start": start,
        "end": time.perf_counter(),
        "samples": taken + BATCH,
        "cpu_ms": 1000 * (time.process_time() - cpu) / (taken + BATCH),
        "first_s": first,
        "annotations_mb": opened - before,
        "reading_mb": _status_mb("VmHWM") - opened,
    }


def _status_mb(name: str) -> float:
    """Return a size of this process from its status, MiB."""
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Return the cells as the lines of a Markdown table."""
    return [
        "| images | size, px | readers | CPU ms a sample | samples/s, all readers "
        "| first batch, s | annotations, MiB a reader | added while reading, MiB a reader |",
        "|---|---|---|---|---|---|---|---|",
        *(
            f"| {row['images']:,} | {row['size']} | {row['readers']} | {row['cpu_ms']:.2f} "
            f"| {row['samples_s']:.0f} | {row['first_batch_s']:.1f} "
            f"| {row['annotations_mb']:.0f} | {row['reading_mb']:.0f} |"
            for row in rows
        ),
    ]
