"""Annotations and JPEGs to shards: one Ray task a file, each file complete or absent, the marker last.

A conversion that was killed is gone on with by the same command: a file's name holds a hash of what goes into it, and its footer what came
out, so finished files are taken as they are. Rows lie in the order of their splits, then of image_id: a split is a run of row groups.
"""

import hashlib
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from aml.data import UnreadableImage, decode_image, read_refer, split_counts, vocabulary
from aml.errors import UserError
from orchestrator import cluster, storage
from orchestrator.data.shards import (
    COMPLETE_MARKER,
    FORMAT,
    SAID_EVERY_S,
    Progress,
    describe_counts,
)
from orchestrator.storage import Filesystem

if TYPE_CHECKING:
    from orchestrator.config import SynthConfig


if TYPE_CHECKING:  # it imports torch, for which tasks that only decode need not wait
    pass

ROWS_PER_GROUP = 64

"""Images a row group: about 10 MB of COCO JPEGs, the unit of random access."""

ROWS_PER_FILE = 256

"""Images a file: about 40 MB, what a task holds in memory and a killed conversion loses."""

NOTE = b"amlris"

"""Key of a file's footer: digests of its images, and what could not be used."""

Line = tuple[str, bytes]

"""Path of a JPEG and the rest of its row, packed."""


@dataclass(frozen=True)
class Packed:
    """The rows of one data set, small enough to lie in memory while they are converted."""

    named: dict[str, str]
    """dataset, split_by"""
    source: str
    """Hash of json.dumps([FORMAT, rows without their path], sort_keys=True)."""
    files: dict[str, list[Line]]
    """What goes into each file."""

    def rows(self, digests: dict[int, str]) -> Iterator[dict]:
        """Those of the images in digests."""
        for lines in self.files.values():
            for _, packed in lines:
                row = json.loads(zlib.decompress(packed))
                if row["image_id"] in digests:
                    yield row


def pack_rows(rows: list[dict]) -> Packed:
    """Rows of aml.refer or aml.table for `write`. UserError: no row at all."""
    if not rows:
        raise UserError(
            "nothing is to be written: the annotations name no image; give those of some referents"
        )
    return Packed(
        {key: rows[0][key] for key in ("dataset", "split_by")}, _source(rows), _files(rows)
    )


def write_shards(
    packed: Packed,
    out: Filesystem,
    *,
    skip_unreadable: bool = False,
    synth: dict | None = None,
    here: bool = False,
    say: Callable = print,
) -> dict:
    """Convert one data set; returns the manifest. A complete folder with the same content is left as it is.

    synth notes how generated data were made. here: the images lie on this machine alone. UserError: an image that cannot be decoded or has another size than its annotations (unless
    skip_unreadable), a folder with other data or files.
    """
    source, files = packed.source, packed.files
    present = out.read(COMPLETE_MARKER)
    if present is not None:
        manifest = json.loads(present)
        if manifest.get("source") == source:
            return manifest
        held = f"{manifest.get('dataset')}, {manifest.get('split_by')}"
        raise UserError(
            f"{out.uri} holds other data ({held}); choose another --out or delete that folder"
        )
    notes = _convert(files, out, skip_unreadable, here, say)
    bad = [error for name in files for error in notes[name]["errors"]]
    if bad and not skip_unreadable:
        total = sum(map(len, files.values()))
        raise UserError(
            f"{len(bad)} of {total} images cannot be used, the first: {bad[0]}".replace(
                "skip_unreadable", "--skip-unreadable"
            )
        )
    digests = {int(i): digest for note in notes.values() for i, digest in note["digests"].items()}
    out.write("vocabulary.json", json.dumps(vocabulary(packed.rows(digests))).encode())
    content = "".join(digests[i] for i in sorted(digests))
    manifest = {
        "format": FORMAT,
        **packed.named,
        "splits": split_counts(packed.rows(digests)),
        "images": len(digests),
        "skipped": bad,
        "fingerprint": hashlib.sha256((source + content).encode()).hexdigest()[:16],
        "source": source,
        "synth": synth,
        "files": [name for name in files if notes[name]["digests"]],
    }
    out.write(COMPLETE_MARKER, json.dumps(manifest, indent=1).encode())
    return manifest


def make_synthetic(synth: "SynthConfig", store: Filesystem, root: Path, say=print) -> None:
    from aml.synthetic import generate_dataset

    source = root / "generated" / f"{synth.dataset}-{synth.images}-{synth.size}-{synth.seed}"
    say(f"generating {synth.images} pictures of {synth.size} px for {synth.dataset} into {source}")
    generate_dataset(source, synth.dataset, images=synth.images, size=synth.size, seed=synth.seed)
    split_by = "umd" if synth.dataset == "refcocog" else "unc"
    packed = pack_rows(read_refer(source, source / "images", synth.dataset, split_by))
    made = write_shards(
        packed, store, synth=asdict(synth), here=storage.root_of(root) is not None, say=say
    )
    say(f"wrote shards to {store.uri}: {describe_counts(made)}")


def _meta(row: dict) -> dict:
    return {key: value for key, value in row.items() if key != "path"}


def _source(rows: list[dict]) -> str:
    """See Packed; a row at a time."""
    found = hashlib.sha256(f"[{FORMAT}, [".encode())
    for k, row in enumerate(rows):
        found.update(((", " if k else "") + json.dumps(_meta(row), sort_keys=True)).encode())
    found.update(b"]]")
    return found.hexdigest()


def _splits(meta: dict) -> str:
    return ",".join(sorted({ref["split"] for ref in meta["refs"]}))


def _files(rows: list[dict]) -> dict[str, list[Line]]:
    """{name: its lines}, the same for the same rows."""
    order = sorted(rows, key=lambda row: (_splits(row), row["image_id"]))
    found = {}
    for number, start in enumerate(range(0, len(order), ROWS_PER_FILE)):
        some = [
            (row["path"], json.dumps(_meta(row))) for row in order[start : start + ROWS_PER_FILE]
        ]
        digest = hashlib.sha256(
            json.dumps([FORMAT, [meta for _, meta in some]]).encode()
        ).hexdigest()[:12]
        found[f"part-{number:05d}-{digest}.parquet"] = [
            (path, zlib.compress(meta.encode())) for path, meta in some
        ]
    return found


def _convert(
    files: dict[str, list[Line]], out: Filesystem, skip_unreadable: bool, here: bool, say: Callable
) -> dict[str, dict]:
    """Write what is not there yet, a few files at a time.   -> {name: its note}"""
    import ray

    out.clear_unfinished(keep=set(files))
    found = {name: _note(out, name) for name in sorted(set(out.names()) & set(files))}
    notes = {
        name: note for name, note in found.items() if note and not note["errors"]
    }  # what was wrong may have been put right
    if notes:
        say(f"{len(notes)} of {len(files)} files are there already")
    progress = Progress(sum(map(len, files.values())), sum(len(files[name]) for name in notes), say)
    task = ray.remote(_write_file).options(
        **(cluster.driver_node_options() if here else cluster.data_task_options())
    )
    waiting, running = [name for name in files if name not in notes], {}
    while waiting or running:
        while waiting and len(running) < 2 * max(1, int(ray.cluster_resources().get("CPU", 1))):
            name = waiting.pop(0)
            running[task.remote(out, name, files[name], skip_unreadable)] = name
        for ref in ray.wait(list(running), timeout=SAID_EVERY_S)[0]:
            name = running.pop(ref)
            notes[name] = ray.get(ref)
            progress.add(len(files[name]))
        progress.say()
    return notes


def _note(out: Filesystem, name: str) -> dict | None:
    """The footer's note of a finished file; None where it is none of ours or cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        held = pq.read_schema(out.join(name), filesystem=out.fs).metadata or {}
    except (OSError, pa.ArrowInvalid):
        return None
    return json.loads(held[NOTE]) if NOTE in held else None


def _write_file(out: Filesystem, name: str, lines: list[Line], skip_unreadable: bool) -> dict:
    """Runs in a Ray task. Nothing is written where an image cannot be used and that is not allowed.   -> note"""
    import pyarrow as pa
    import pyarrow.parquet as pq

    note = {"digests": {}, "errors": []}
    rows = []
    for path, packed in lines:
        text = zlib.decompress(packed).decode()
        meta, jpeg = json.loads(text), Path(path).read_bytes()
        if error := _wrong(meta, jpeg):
            note["errors"].append(error)
            continue
        note["digests"][meta["image_id"]] = hashlib.sha256(jpeg).hexdigest()
        rows.append(
            {"image_id": meta["image_id"], "splits": _splits(meta), "jpeg": jpeg, "meta": text}
        )
    if not rows or (note["errors"] and not skip_unreadable):
        return note
    types = {
        "image_id": pa.int64(),
        "splits": pa.string(),
        "jpeg": pa.binary(),
        "meta": pa.string(),
    }
    table = pa.Table.from_pylist(rows, pa.schema(types, metadata={NOTE: json.dumps(note)}))
    del rows
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        row_group_size=ROWS_PER_GROUP,
        compression={
            key: "none" if key == "jpeg" else "zstd" for key in types
        },  # JPEGs do not get smaller
        use_dictionary=["splits"],
        write_statistics=["image_id", "splits"],
    )
    out.write(name, sink.getvalue())
    return note


def _wrong(meta: dict, jpeg: bytes) -> str:
    """Why an image cannot be used; nothing where it can."""
    try:
        found = decode_image(jpeg, meta["file_name"]).shape[:2]
    except UnreadableImage as problem:
        return str(problem)
    if found == (meta["height"], meta["width"]):
        return ""
    return f"{meta['file_name']} is {found[1]} x {found[0]}, but its annotations are for {meta['width']} x {meta['height']}; get the original image"
