"""Compare this project's data path with the published way: python -m orchestrator bench data

The published way is `PublishedDataset` under torch's DataLoader with a worker for each core. Both
ways run one after the other on this machine, on the same generated JPEGs and over the same items:
every sentence of every training ref. Rates are samples a second and core. The published way and
streaming (through a window of blocks) are divided by all cores. Our way from Ray's object store is
divided by the cores that each part of the work has: all cores while Ray decodes, one core for a
trial's batches. The first epoch counts everything from the first block wanted to the last batch.
Start-up is reported apart: the DataLoader's before its first batch, Ray's (once a sweep) before
any work.
"""

import logging
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aml.data import Batch, Items, read_refer, train_batches
from aml.models import build_model
from orchestrator import cluster, storage
from orchestrator.benchmarks.generated_pictures import SIDE, make_pictures
from orchestrator.benchmarks.object_store import measure_object_store
from orchestrator.benchmarks.picture_profile import profile_pictures, time_shares
from orchestrator.benchmarks.published_loader import (
    BATCH,
    measure_published_loader,
    time_batches,
)
from orchestrator.data import (
    ShardSelection,
    StreamingBlocks,
    decode_shards,
    pack_rows,
    write_shards,
)
from orchestrator.utils import PeakMemory

logger = logging.getLogger(__name__)


def measure_data(*, images: int, size: int, samples: int) -> dict[str, Any]:
    """Measure both ways of reading data, and log the result.

    Args:
        images: Pictures to generate, in a temporary folder.
        size: Side of the network's image, pixels.
        samples: Samples over which the published way is timed.

    Returns:
        The measurements for JSON. Rates per core are samples a second and core.
    """
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        logger.info(f"generating {images} pictures of {SIDE} px")
        make_pictures(root, images, cores)
        rows = read_refer(root, root / "images", "refcoco", "unc")
        encoded = statistics.mean(Path(row["path"]).stat().st_size for row in rows) / 1e3
        model = _build_model()
        found: dict[str, Any] = {"cores": cores, "images": images, "image_kb": encoded}
        found["size"] = size
        found |= measure_published_loader(root, model, size, samples)
        per_core = found["peer_samples_s"] / cores
        logger.info(
            f"published way: {per_core:.1f} samples/s a core ({cores} workers), "
            f"first batch after {found['peer_first_batch_s']:.2f} s"
        )
        found["ray_start_s"] = start_ray(cores)
        logger.info(f"Ray starts in {found['ray_start_s']:.1f} s, once a sweep")
        store = storage.Filesystem(root / "shards")
        found |= _convert(rows, store)
        part = ShardSelection(store, frozenset({"train"}), {})
        found |= measure_shared_blocks(part, model, size, cores)
        found |= measure_streaming(part, size, cores)
        found |= measure_object_store(store)
        found["profile_ms"] = profile_pictures(rows, root, part, size)
        refs = statistics.mean(len(row["refs"]) for row in rows)
        found["profile_shares"] = time_shares(found["profile_ms"], refs)
    for name in ("first_epoch", "later_epochs", "window"):
        found[f"{name}_ratio"] = found[f"{name}_samples_s_core"] / per_core
    found = {
        key: round(value, 3) if isinstance(value, float) else value for key, value in found.items()
    }
    for text in _result_lines(found):
        logger.info(text)
    return found


def _build_model() -> Any:
    return build_model("small", vocabulary=["the"], width=32, stem=16)


def start_ray(cores: int) -> float:
    """Return the seconds until Ray runs and a Data task has run on every core.

    The tasks import what decoding needs.
    """
    start = time.perf_counter()
    cluster.init_ray()
    import ray

    ray.data.range(cores, override_num_blocks=cores).map_batches(_import_decoder).materialize()
    return time.perf_counter() - start


def _import_decoder(batch: dict) -> dict:
    """Import in a Ray Data worker what decoding needs; that is all the task is for."""
    from orchestrator.data import decode_shards  # noqa: F401 (only imported, to warm the worker)

    return batch


def _convert(rows: list[dict], store: storage.Filesystem) -> dict[str, float]:
    """Write shards; return images a second, and the most memory held, MiB."""
    with PeakMemory() as peak:
        start = time.perf_counter()
        write_shards(pack_rows(rows), store)
        rate = len(rows) / (time.perf_counter() - start)
    return {"conversion_images_s": rate, "conversion_mb": peak.mb}


def measure_shared_blocks(
    part: ShardSelection, model: Any, size: int, cores: int
) -> dict[str, float]:
    """Time epochs over blocks in Ray's object store.

    Ray decodes once on all cores; then one thread of this process gathers the batches, as each
    trial of a sweep does.

    Args:
        part: Shards to read.
        model: Model whose tokens are gathered.
        size: Side of the network's image, pixels.
        cores: Cores that Ray decodes on.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    start = time.perf_counter()
    shared = decode_shards(part, size, "square")
    decode_s = time.perf_counter() - start
    items = Items(shared.open(), "train", size=size, unit="sentence")
    first, n, _ = time_batches((len(b.image) for b in _epoch(items, model, 0)), start)
    gather_s = time.perf_counter() - start - decode_s
    start = time.perf_counter()
    later = Items(shared.open(), "train", size=size, unit="sentence")
    batches = (len(b.image) for number in (1, 2) for b in _epoch(later, model, number))
    later_first, later_samples, rate = time_batches(batches, start)
    torch.set_num_threads(threads)
    return {
        "items": len(items),
        "decoded_images_s": sum(len(block["meta"]) for block in items.blocks) / decode_s,
        "decoded_mb": part.decoded_bytes(size) / 2**20,
        "first_epoch_samples_s_core": (n + BATCH) / (decode_s * cores + gather_s),
        "first_batch_s": first,
        "later_epochs_samples_s_core": rate,
        "later_first_batch_s": later_first,
        "later_samples": later_samples,
    }


def measure_streaming(part: ShardSelection, size: int, cores: int) -> dict[str, float]:
    """Time an epoch of streaming, where nothing is in the object store, in a fresh process.

    Args:
        part: Shards to read.
        size: Side of the network's image, pixels.
        cores: Threads of torch.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure_streaming, (part, size, cores))


def _measure_streaming(part: ShardSelection, size: int, cores: int) -> dict[str, float]:
    torch.set_num_threads(cores)
    model = _build_model()
    before = _peak_mb()
    start = time.perf_counter()
    window = StreamingBlocks((part,), size, "square").open()
    items = Items(window, "train", size=size, unit="sentence")
    first, n, _ = time_batches((len(b.image) for b in _epoch(items, model, 0)), start)
    epoch_s = time.perf_counter() - start
    blocks = np.unique(items.places()[:, 0])
    pictures = sum(map(len, window.pictures.meta))
    return {
        "window_samples_s_core": (n + BATCH) / epoch_s / cores,
        "window_first_batch_s": first,
        "window_held_mb": _peak_mb() - before,
        "window_decoded_mb": pictures * size * size * 3 / 2**20,
        "windows_an_epoch": -(-len(blocks) // window.span(blocks)),
    }


def _epoch(items: Items, model: Any, number: int) -> Iterator[Batch]:
    return train_batches(items, model, batch=BATCH, seed=0, epoch=number)


def _peak_mb() -> float:
    """Return the largest resident size of this process so far, MiB."""
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(line for line in status if line.startswith("VmHWM"))
    return int(peak.split()[1]) / 1024


def _result_lines(found: dict[str, Any]) -> list[str]:
    """Return the measurements of our way in words."""
    profile = ", ".join(f"{name} {value:.2f}" for name, value in found["profile_ms"].items())
    shares = ", ".join(f"{name} {share:.0%}" for name, share in found["profile_shares"].items())
    return [
        f"converted {found['conversion_images_s']:.0f} images/s of {found['image_kb']:.0f} kB; "
        f"at most {found['conversion_mb']:.0f} MiB held by this process, with all it holds "
        "besides, and its Ray workers",
        f"first epoch, decoding included: {found['first_epoch_samples_s_core']:.1f} samples/s "
        f"a core, x{found['first_epoch_ratio']:.2f} the published way; "
        f"{found['decoded_images_s']:.0f} images/s decoded, "
        f"first batch after {found['first_batch_s']:.2f} s",
        "later epochs from the object store: "
        f"{found['later_epochs_samples_s_core']:.1f} samples/s a core, "
        f"x{found['later_epochs_ratio']:.1f}; "
        f"a trial's first batch after {found['later_first_batch_s']:.2f} s; "
        f"{found['decoded_mb']:.0f} MiB in the object store for all trials",
        f"streaming through a window: {found['window_samples_s_core']:.1f} samples/s a core, "
        f"x{found['window_ratio']:.2f}; first batch after {found['window_first_batch_s']:.2f} s; "
        f"{found['window_held_mb']:.0f} MiB held, "
        f"{found['window_decoded_mb']:.0f} MiB decoded in all, "
        f"{found['windows_an_epoch']} windows an epoch",
        f"S3 server of this process: {found['s3_write_mb_s']:.0f} MB/s written, "
        f"{found['s3_read_mb_s']:.0f} MB/s read",
        f"milliseconds of one thread: {profile}",
        f"a picture, decoded once for all its sentences: {shares}",
    ]
