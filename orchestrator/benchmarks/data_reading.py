"""What the data path gives beside the published way: python -m orchestrator bench data

The published way is `Published` under torch's DataLoader with a worker a core. Both run here one after the other on the same generated JPEGs,
over the same items: every sentence of every training ref. Rates are samples a second and core: of the published way and of the window over all
cores; of ours over the cores each part of the work has, all for decoding in Ray and one for a trial's batches. The first epoch counts everything
from the first block wanted to the last batch. Start-up is said apart: the peer's before its first batch, Ray's (once a sweep) before any work.
"""

import json
import logging
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from aml.data import (
    Items,
    fit_image,
    fit_mask,
    load_refs,
    open_image,
    rasterise,
    read_refer,
    referent,
    train_batches,
)
from aml.models import build_model
from aml.synthetic import generate_dataset
from orchestrator import cluster, storage
from orchestrator.data import (
    COMPLETE_MARKER,
    RowGroupReader,
    ShardSelection,
    StreamingBlocks,
    decode_shards,
    pack_rows,
    read_manifest,
    write_shards,
)
from orchestrator.utils import PeakMemory

BATCH = 32

SIDE = 640

"""Longer side of the generated pictures, pixels, as COCO's."""

ENLARGED = 4

"""Pictures are drawn so many times smaller: drawing them at full size would take minutes."""

GRAIN = 14

"""Noise on them, so that a JPEG has the size of COCO's."""

S3_FILES = 2

"""Files of the shards that go through the S3 server, which keeps them in memory."""

SHOTS = 40

"""Pictures on which the parts of a sample are timed."""


class Published(torch.utils.data.Dataset):
    """REFER in memory and one sentence of one ref an item: open, convert, resize, rasterise the polygons, each time it is asked for.

    As in the loaders of LAVT, CRIS and CARIS; like ours it yields uint8 and leaves normalisation to the model.
    """

    def __init__(self, root: Path, model, size: int):
        instances = json.loads((root / "refcoco" / "instances.json").read_text("utf-8"))
        self.images = {i["id"]: i for i in instances["images"]}
        self.annotations = {a["id"]: a for a in instances["annotations"]}
        self.folder, self.size = root / "images" / "train2014", size
        refs = [
            ref for ref in load_refs(root / "refcoco" / "refs(unc).p") if ref["split"] == "train"
        ]
        self.items = [(ref, s["sent"]) for ref in refs for s in ref["sentences"]]
        self.tokens = model.tokenise([sentence for _, sentence in self.items])

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int):
        ref, _ = self.items[index]
        record = self.images[ref["image_id"]]
        picture = (
            Image.open(self.folder / record["file_name"])
            .convert("RGB")
            .resize((self.size, self.size), Image.Resampling.BILINEAR)
        )
        full = Image.fromarray(polygon_mask(self.annotations[ref["ann_id"]], record))
        mask = np.asarray(full.resize((self.size, self.size), Image.Resampling.NEAREST))
        image = torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()
        return (
            image,
            torch.from_numpy(mask.astype(bool)),
            self.tokens[0][index],
            self.tokens[1][index],
        )


def polygon_mask(annotation: dict, record: dict) -> np.ndarray:
    """REFER's getMask.   -> (H, W) uint8"""
    from pycocotools import mask

    parts = mask.frPyObjects(annotation["segmentation"], record["height"], record["width"])
    return (np.sum(mask.decode(parts), axis=2) > 0).astype(np.uint8)


def peer(root: Path, model, size: int, samples: int) -> dict:
    """The published way with a worker a core, timed from its first batch to about `samples` items."""
    start = time.perf_counter()
    data = Published(root, model, size)
    loader = torch.utils.data.DataLoader(
        data, batch_size=BATCH, shuffle=True, num_workers=os.cpu_count(), drop_last=True
    )
    first, n, rate = timed((len(image) for image, *_ in loader), start, samples)
    return {"peer_first_batch_s": first, "peer_samples_s": rate, "peer_samples": n}


def timed(
    counts: Iterable[int], start: float, samples: int | None = None
) -> tuple[float, int, float]:
    """Seconds to the first batch from `start`, samples taken, and samples a second after the first batch."""
    first, n = None, 0
    for count in counts:
        if first is None:
            first = time.perf_counter()
            continue
        n += count
        if samples and n >= samples:
            break
    return first - start, n, n / (time.perf_counter() - first)


def measure_data(*, images: int, size: int, samples: int, say=print) -> dict:
    """Everything, on generated pictures in a folder that is removed again. Rates are samples a second and core."""
    cores = os.cpu_count()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        say(f"generating {images} pictures of {SIDE} px")
        make_pictures(root, images, cores)
        rows = read_refer(root, root / "images", "refcoco", "unc")
        encoded = statistics.mean(Path(row["path"]).stat().st_size for row in rows) / 1e3
        model = build_model("small", vocabulary=["the"], width=32, stem=16)
        found = {"cores": cores, "images": images, "image_kb": encoded, "size": size} | peer(
            root, model, size, samples
        )
        per_core = found["peer_samples_s"] / cores
        say(
            f"published way: {per_core:.1f} samples/s a core ({cores} workers), first batch after {found['peer_first_batch_s']:.2f} s"
        )
        found["ray_start_s"] = start_ray(cores)
        say(f"Ray starts in {found['ray_start_s']:.1f} s, once a sweep")
        store = storage.Filesystem(root / "shards")
        with PeakMemory() as peak:
            start = time.perf_counter()
            write_shards(pack_rows(rows), store, say=lambda _: None)
            found["conversion_images_s"] = len(rows) / (time.perf_counter() - start)
        found["conversion_mb"] = peak.mb
        part = ShardSelection(store, frozenset({"train"}), {})
        found |= cached(part, model, size, cores)
        found |= through_window(part, size, cores)
        found |= object_store(store)
        found["profile_ms"] = profile(rows, root, part, size)
        found["profile_shares"] = shares(
            found["profile_ms"], statistics.mean(len(row["refs"]) for row in rows)
        )
    for name in ("first_epoch", "later_epochs", "window"):
        found[f"{name}_ratio"] = found[f"{name}_samples_s_core"] / per_core
    found = {
        key: round(value, 3) if isinstance(value, float) else value for key, value in found.items()
    }
    for text in lines(found):
        say(text)
    return found


def make_pictures(root: Path, images: int, cores: int) -> None:
    """Generated RefCOCO of SIDE px: drawn smaller, enlarged with their polygons, and given grain."""
    generate_dataset(root, "refcoco", images=images, size=SIDE // ENLARGED, seed=0)
    path = root / "refcoco" / "instances.json"
    instances = json.loads(path.read_text("utf-8"))
    for record in instances["images"]:
        record |= {side: record[side] * ENLARGED for side in ("height", "width")}
    for annotation in instances["annotations"]:
        annotation["segmentation"] = [
            [x * ENLARGED for x in part] for part in annotation["segmentation"]
        ]
    path.write_text(json.dumps(instances), "utf-8")
    with multiprocessing.get_context("spawn").Pool(cores) as pool:
        pool.map(enlarge, sorted((root / "images" / "train2014").glob("*.jpg")), chunksize=16)


def enlarge(path: Path) -> None:
    picture = open_image(path.read_bytes(), path.name)
    large = np.asarray(
        picture.resize(
            (picture.width * ENLARGED, picture.height * ENLARGED), Image.Resampling.BICUBIC
        )
    ).astype(np.int16)
    large += np.random.default_rng(large[0].sum()).integers(
        -GRAIN, GRAIN + 1, (*large.shape[:2], 1), np.int16
    )
    Image.fromarray(large.clip(0, 255).astype(np.uint8)).save(path, "JPEG", quality=90)


def start_ray(cores: int) -> float:
    """Seconds until Ray runs here and a first Data task has run on every core, with what decoding imports."""
    start = time.perf_counter()
    cluster.init_ray()
    import ray

    ray.data.range(cores, override_num_blocks=cores).map_batches(_first).materialize()
    return time.perf_counter() - start


def _first(batch: dict) -> dict:
    pass  # noqa: F401 (that is the point)

    return batch


def cached(part: ShardSelection, model, size: int, cores: int) -> dict:
    """Decoded once in Ray on all cores, then gathered in this process by one thread, as each trial of a sweep does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    start = time.perf_counter()
    shared = decode_shards(part, size, "square")
    decoded = time.perf_counter() - start
    items = Items(shared.open(), "train", size=size, unit="sentence")
    first, n, _ = timed((len(b.image) for b in epoch(items, model, 0)), start)
    gathered = time.perf_counter() - start - decoded
    again = time.perf_counter()
    later = Items(shared.open(), "train", size=size, unit="sentence")
    next_first, m, rate = timed(
        (len(b.image) for k in (1, 2) for b in epoch(later, model, k)), again
    )
    torch.set_num_threads(threads)
    return {
        "items": len(items),
        "decoded_images_s": sum(map(len, items.meta)) / decoded,
        "decoded_mb": part.decoded_bytes(size) / 2**20,
        "first_epoch_samples_s_core": (n + BATCH) / (decoded * cores + gathered),
        "first_batch_s": first,
        "later_epochs_samples_s_core": rate,
        "later_first_batch_s": next_first,
        "later_samples": m,
    }


def through_window(part: ShardSelection, size: int, cores: int) -> dict:
    """The same epoch where nothing is in the object store, in a fresh process with a thread a core."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_through_window, (part, size, cores))


def _through_window(part: ShardSelection, size: int, cores: int) -> dict:
    torch.set_num_threads(cores)
    model = build_model("small", vocabulary=["the"], width=32, stem=16)
    before, start = peak_mb(), time.perf_counter()
    items = Items(
        StreamingBlocks((part,), size, "square").open(), "train", size=size, unit="sentence"
    )
    first, n, _ = timed((len(b.image) for b in epoch(items, model, 0)), start)
    whole = time.perf_counter() - start
    blocks = np.array([choice[0].block for choice in items.choices])
    return {
        "window_samples_s_core": (n + BATCH) / whole / cores,
        "window_first_batch_s": first,
        "window_held_mb": peak_mb() - before,
        "window_decoded_mb": sum(len(meta) for meta in items.blocks.pictures.meta)
        * size
        * size
        * 3
        / 2**20,
        "windows_an_epoch": -(-len(np.unique(blocks)) // items.blocks.span(np.unique(blocks))),
    }


def epoch(items: Items, model, number: int):
    return train_batches(items, model, batch=BATCH, seed=0, epoch=number)


def peak_mb() -> float:
    """Largest resident size of this process so far, MiB."""
    line = next(
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )
    return int(line.split()[1]) / 1024


def object_store(store: storage.Filesystem) -> dict:
    """MB/s to and from an S3 server of this process: what the code around the network allows, not a network."""
    from concurrent.futures import ThreadPoolExecutor

    from aml.data import READERS

    noted = read_manifest(store)
    some = noted | {"files": noted["files"][-S3_FILES:]}
    files = {name: store.read(name) for name in some["files"]} | {
        COMPLETE_MARKER: json.dumps(some).encode()
    }
    size = sum(map(len, files.values())) / 1e6
    with s3_server() as query:
        there, start = storage.Filesystem(f"s3://bench/shards{query}"), time.perf_counter()
        for name, data in files.items():
            there.write(name, data)
        written = time.perf_counter() - start
        splits = frozenset(read_manifest(there)["splits"])
        groups, start = (
            RowGroupReader((ShardSelection(there, splits, {}),), 8, "square"),
            time.perf_counter(),
        )
        with ThreadPoolExecutor(READERS) as pool:
            read = (
                sum(
                    len(jpeg)
                    for jpegs in pool.map(groups.read, range(len(groups.meta)))
                    for jpeg in jpegs
                )
                / 1e6
            )
        return {
            "s3_write_mb_s": size / written,
            "s3_read_mb_s": read / (time.perf_counter() - start),
        }


@contextmanager
def s3_server():
    """A local S3 server with the bucket `bench`.   -> the words that lead an address to it"""
    import boto3
    import moto.server

    keys = {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in keys}
    os.environ.update(keys)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto.server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        address = "127.0.0.1:{1}".format(*server.get_host_and_port())
        boto3.client("s3", endpoint_url=f"http://{address}").create_bucket(Bucket="bench")
        yield f"?scheme=http&endpoint_override={address}"
    finally:
        server.stop()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


def profile(rows: list[dict], root: Path, part: ShardSelection, size: int) -> dict[str, float]:
    """Median milliseconds of the parts of a sample, in one thread."""
    instances = json.loads((root / "refcoco" / "instances.json").read_text("utf-8"))
    annotations = {a["id"]: a for a in instances["annotations"]}
    some = [row for row in rows if any(ref["split"] == "train" for ref in row["refs"])][:SHOTS]
    pictures = RowGroupReader((part,), size, "square")
    block = pictures.read(0)
    shots: dict[str, list[float]] = {}

    def shot(name: str, call):
        start = time.perf_counter()
        value = call()
        shots.setdefault(name, []).append(1e3 * (time.perf_counter() - start))
        return value

    for k, row in enumerate(some):
        image = shot(
            "decode JPEG",
            lambda row=row: open_image(Path(row["path"]).read_bytes(), row["file_name"]),
        )
        shot("resize picture", lambda image=image: fit_image(image, size, "square"))
        full = shot(
            "mask from RLE",
            lambda row=row: rasterise(referent(row, row["refs"][0]), row["height"], row["width"]),
        )
        shot("resize mask", lambda full=full: fit_mask(full, size, "square"))
        shot(
            "mask from polygons (published)",
            lambda row=row: polygon_mask(annotations[row["refs"][0]["ann_id"]], row),
        )
        shot(
            "whole picture, all its refs (ours)",
            lambda k=k: pictures.decode(block, 0, k % len(block)),
        )
    return {name: round(statistics.median(values), 3) for name, values in shots.items()}


def shares(row_ms: dict[str, float], refs: float) -> dict[str, float]:
    """Of the time a picture with so many refs takes until it is ready: JPEG, resize, masks; they add up to 1."""
    parts = {
        "JPEG": row_ms["decode JPEG"],
        "resize": row_ms["resize picture"],
        "masks": refs * (row_ms["mask from RLE"] + row_ms["resize mask"]),
    }
    return {name: round(value / sum(parts.values()), 3) for name, value in parts.items()}


def lines(found: dict) -> list[str]:
    return [
        f"converted {found['conversion_images_s']:.0f} images/s of {found['image_kb']:.0f} kB; at most {found['conversion_mb']:.0f} MiB held by this "
        "process, with all it holds besides, and its Ray workers",
        f"first epoch, decoding included: {found['first_epoch_samples_s_core']:.1f} samples/s a core, x{found['first_epoch_ratio']:.2f} the published way; "
        f"{found['decoded_images_s']:.0f} images/s decoded, first batch after {found['first_batch_s']:.2f} s",
        f"later epochs from the shared pictures: {found['later_epochs_samples_s_core']:.1f} samples/s a core, x{found['later_epochs_ratio']:.1f}; "
        f"a trial's first batch after {found['later_first_batch_s']:.2f} s; {found['decoded_mb']:.0f} MiB in the object store for all trials",
        f"through a window: {found['window_samples_s_core']:.1f} samples/s a core, x{found['window_ratio']:.2f}; first batch after "
        f"{found['window_first_batch_s']:.2f} s; {found['window_held_mb']:.0f} MiB held, {found['window_decoded_mb']:.0f} MiB decoded in all, "
        f"{found['windows_an_epoch']} windows an epoch",
        f"S3 server of this process: {found['s3_write_mb_s']:.0f} MB/s written, {found['s3_read_mb_s']:.0f} MB/s read",
        "milliseconds of one thread: "
        + ", ".join(f"{name} {value:.2f}" for name, value in found["profile_ms"].items()),
        "a picture, decoded once for all its sentences: "
        + ", ".join(f"{name} {share:.0%}" for name, share in found["profile_shares"].items()),
    ]
