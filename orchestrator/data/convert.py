"""Convert annotations and JPEGs into shards, one Ray task a file.

Each file is complete or absent, and the marker is written last. The same command continues a
conversion that was killed: a file's name holds a hash of what goes into it, and its footer tells
what came out, so finished files are used as they are. Rows lie in the order of their splits, then
of image_id, so a split is a sequence of row groups.
"""

import hashlib
import json
import logging
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aml.data import Findings, read_refer, split_counts, vocabulary
from aml.errors import UserError
from aml.files import DRAFT, MARKER, mark_folder, marker_bytes
from orchestrator import cluster, storage
from orchestrator.data.shard_file import (
    FileNote,
    PackedRow,
    read_note,
    splits_of_refs,
    write_file,
)
from orchestrator.data.shards import (
    COMPLETE_MARKER,
    FORMAT,
    content_fingerprint,
    describe_counts,
)
from orchestrator.storage import Filesystem
from orchestrator.utils import NON_RETRYABLE, Progress

if TYPE_CHECKING:
    from orchestrator.config import SynthConfig

logger = logging.getLogger(__name__)

ROWS_PER_FILE = 256
"""Images a file: about 40 MB, which a task holds in memory and a killed conversion loses."""

SMALL = 64
"""Images up to which a conversion starts no Ray: some seconds of one core."""

KIND = "shards"
"""What the marker of a folder says that fills it."""

OWN_NAME = re.compile(
    rf"(part-\d{{5,}}-[0-9a-f]{{12}}\.parquet|vocabulary\.json)({re.escape(DRAFT)})?"
    rf"|{re.escape(COMPLETE_MARKER + DRAFT)}"
)
"""Names of what an unfinished conversion leaves; nothing else is ever deleted."""


@dataclass(frozen=True)
class PackedRows:
    """Rows of one data set, small enough to stay in memory while they are converted."""

    named: dict[str, str]
    """dataset and split_by."""
    source: str
    """SHA-256 of json.dumps([FORMAT, rows without their path], sort_keys=True)."""
    files: dict[str, list[PackedRow]]
    """Rows by the name of the file that they go into."""
    findings: dict[str, Any]
    """aml.data.Findings.to_dict() of the reader; empty where nobody asked."""

    def rows(self, digests: dict[int, str]) -> Iterator[dict[str, Any]]:
        """Yield the rows of the images in `digests`, without their path."""
        for lines in self.files.values():
            for _, packed in lines:
                row = json.loads(zlib.decompress(packed))
                if row["image_id"] in digests:
                    yield row


def pack_rows(rows: list[dict[str, Any]], findings: Findings | None = None) -> PackedRows:
    """Pack rows of aml.data.read_refer or read_table for write_shards.

    Args:
        rows: Rows without their pictures.
        findings: What their reader found and left out, for the manifest.

    Raises:
        UserError: There are no rows.
    """
    if not rows:
        raise UserError(
            "nothing is to be written: the annotations name no image; give those of some referents"
        )
    named = {key: rows[0][key] for key in ("dataset", "split_by")}
    found = findings.to_dict() if findings else {}
    return PackedRows(named, _source_hash(rows), _assign_files(rows), found)


def write_shards(
    packed: PackedRows,
    out: Filesystem,
    *,
    skip_unreadable: bool = False,
    synth: dict[str, Any] | None = None,
    on_driver: bool = False,
) -> dict[str, Any]:
    """Convert one data set and return the manifest.

    A complete folder with the same content is left as it is.

    Args:
        packed: Rows of the data set.
        out: Folder of the shards.
        skip_unreadable: Leave out images that cannot be used.
        synth: Settings that generated the data, for the manifest.
        on_driver: Run the tasks on the driver's node, since no other node sees the images.

    Raises:
        UserError: An image cannot be decoded or has another size than its annotations (unless
            skip_unreadable), or see check_output.
        NotSaved: The disk takes no more.
    """
    present = check_output(out, packed)
    if present is not None:
        return present
    out.write(MARKER, marker_bytes(KIND))
    notes = _convert(packed.files, out, skip_unreadable, on_driver)
    errors = [error for name in packed.files for error in notes[name]["errors"]]
    if errors and not skip_unreadable:
        total = sum(map(len, packed.files.values()))
        raise UserError(
            f"{len(errors)} of {total} images cannot be used, the first: {errors[0]}; pass "
            "--skip-unreadable to leave such images out"
        )
    digests = {
        int(image_id): digest
        for note in notes.values()
        for image_id, digest in note["digests"].items()
    }
    kinds: Counter[str] = Counter()
    for note in notes.values():
        kinds.update(note["kinds"])
    out.write("vocabulary.json", json.dumps(vocabulary(packed.rows(digests))).encode())
    manifest = {
        "format": FORMAT,
        **packed.named,
        "splits": split_counts(packed.rows(digests)),
        "images": len(digests),
        "skipped": errors,
        "found": {**packed.findings, "pictures": dict(sorted(kinds.items()))},
        "fingerprint": content_fingerprint(packed.source, digests),
        "source": packed.source,
        "synth": synth,
        "files": [name for name in packed.files if notes[name]["digests"]],
    }
    out.write(COMPLETE_MARKER, json.dumps(manifest, indent=1).encode())
    return manifest


def check_output(out: Filesystem, packed: PackedRows | None) -> dict[str, Any] | None:
    """Check that shards can be written to a folder, before anything is written or started.

    Args:
        out: Folder of the shards.
        packed: Rows of the data set; None while they are not read.

    Returns:
        The manifest, where the folder holds the shards of the same rows already.

    Raises:
        UserError: The folder holds other data or other files, or it may not be written.
        NotSaved: There is no room.
    """
    out.check_kind("--out")
    present = out.read(COMPLETE_MARKER)
    if present is not None:
        try:
            manifest = dict(json.loads(present))
        except (ValueError, TypeError):
            manifest = {}
        if packed is None or manifest.get("source") == packed.source:
            return manifest
        held = f"{manifest.get('dataset')}, {manifest.get('split_by')}"
        raise UserError(
            f"{out.uri} holds other data ({held}); choose another --out or delete that folder"
        )
    held_names = check_own_store(out)
    files = packed.files if packed else {}
    jpegs = [Path(path) for name in set(files) - held_names for path, _ in files[name]]
    out.check_writable("--out", sum(path.stat().st_size for path in jpegs if path.is_file()))
    return None


def check_own_store(out: Filesystem) -> set[str]:
    """Return the names of the files of an unfinished conversion; hidden files do not count.

    Raises:
        UserError: The folder holds files that no conversion wrote.
    """
    names = {name for name in out.names() if not name.startswith(".")}
    foreign = sorted(name for name in names if not OWN_NAME.fullmatch(name))
    if foreign or (names and out.read(MARKER) != marker_bytes(KIND)):
        first = (foreign or sorted(names))[0]
        raise UserError(
            f"{out.uri} holds {first} ({len(names)} files and folders in all), which no conversion "
            "of this program wrote; give shards a new or an empty folder"
        )
    return names


def make_synthetic(synth: "SynthConfig", store: Filesystem, root: Path) -> None:
    """Generate a data set and write its shards.

    Args:
        synth: Settings of the generator.
        store: Folder of the shards.
        root: Storage root, which keeps the generated pictures under generated/.
    """
    from aml.synthetic import KIND as GENERATED, compose_dataset, generate_dataset

    note = synthetic_note(synth)
    name = "-".join(str(part) for part in note.values())
    source = root / "generated" / name
    mark_folder(source, GENERATED)  # what lies in the storage root is this program's own
    logger.info(
        f"generating {synth.images} pictures of {synth.size} px for {synth.dataset} into {source}"
    )
    with Progress("generating", synth.images, "pictures") as progress:
        generate = generate_dataset
        if synth.cutouts and synth.photographs:
            generate = partial(
                compose_dataset, cutouts=synth.cutouts, photographs=synth.photographs
            )
        generate(
            source,
            dataset=synth.dataset,
            images=synth.images,
            size=synth.size,
            seed=synth.seed,
            on_picture=progress.add,
        )
    split_by = "umd" if synth.dataset == "refcocog" else "unc"
    packed = pack_rows(read_refer(source, source / "images", synth.dataset, split_by))
    in_bucket = storage.bucket_of(root) is not None
    manifest = write_shards(packed, store, synth=note, on_driver=in_bucket)
    logger.info(f"wrote shards to {store.uri}: {describe_counts(manifest)}")


def synthetic_note(synth: "SynthConfig", held: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return what decides the content of generated data, as a manifest keeps it.

    Cut-outs count by their content, wherever they lie.

    Args:
        synth: Settings of the generator.
        held: Note of data that are generated already: their photographs may be gone.

    Raises:
        UserError: The files of the cut-outs are missing, and nothing is generated yet.
    """
    from aml.synthetic import content_key

    note = synth.to_dict()
    cutouts, photographs = note.pop("cutouts"), note.pop("photographs")
    if cutouts and photographs:
        gone = held is not None and not Path(cutouts).exists()
        note["cutouts"] = (
            held.get("cutouts") if held and gone else content_key(Path(cutouts), Path(photographs))
        )
    return note


def _meta(row: dict[str, Any], *, sort_keys: bool = False) -> str:
    return json.dumps({k: v for k, v in row.items() if k != "path"}, sort_keys=sort_keys)


def _source_hash(rows: list[dict[str, Any]]) -> str:
    """Return PackedRows.source, computed one row at a time to save memory."""
    digest = hashlib.sha256(f"[{FORMAT}, [".encode())
    for k, row in enumerate(rows):
        digest.update(((", " if k else "") + _meta(row, sort_keys=True)).encode())
    digest.update(b"]]")
    return digest.hexdigest()


def _assign_files(rows: list[dict[str, Any]]) -> dict[str, list[PackedRow]]:
    """Return the packed rows of each file; the same rows give the same names."""
    ordered = sorted(rows, key=lambda row: (splits_of_refs(row), row["image_id"]))
    files = {}
    for number, start in enumerate(range(0, len(ordered), ROWS_PER_FILE)):
        chunk = ordered[start : start + ROWS_PER_FILE]
        metas = [_meta(row) for row in chunk]
        digest = hashlib.sha256(json.dumps([FORMAT, metas]).encode()).hexdigest()[:12]
        files[f"part-{number:05d}-{digest}.parquet"] = [
            (row["path"], zlib.compress(meta.encode()))
            for row, meta in zip(chunk, metas, strict=True)
        ]
    return files


def _convert(
    files: dict[str, list[PackedRow]], out: Filesystem, skip_unreadable: bool, on_driver: bool
) -> dict[str, FileNote]:
    """Write the files that are missing and return every file's note.

    A few images are converted in this process, since Ray takes longer to start.
    """
    present = check_own_store(out)
    for name in present - set(files):
        out.delete(name)
    notes: dict[str, FileNote] = {}
    for name in sorted(present & set(files)):
        note = read_note(out, name)
        # A file with errors is written again: its images may have been repaired.
        if note and not note["errors"]:
            notes[name] = note
    if notes:
        logger.info(f"{len(notes)} of {len(files)} files are there already")
    total = sum(map(len, files.values()))
    done = sum(len(files[name]) for name in notes)
    waiting = [name for name in files if name not in notes]
    with Progress(f"converting into {out.uri}", total, "images", done) as progress:
        if total - done <= SMALL:
            for name in waiting:
                notes[name] = write_file(out, name, files[name], skip_unreadable)
                progress.add(len(files[name]))
        else:
            _convert_on_ray(files, waiting, notes, out, skip_unreadable, on_driver, progress)
    return notes


def _convert_on_ray(
    files: dict[str, list[PackedRow]],
    waiting: list[str],
    notes: dict[str, FileNote],
    out: Filesystem,
    skip_unreadable: bool,
    on_driver: bool,
    progress: Progress,
) -> None:
    """Write files in Ray tasks, a few at a time, and add their notes.

    Args:
        files: Rows by file.
        waiting: The files to write.
        notes: Notes by file; those of the files written are added.
        out: Folder of the shards.
        skip_unreadable: Leave out images that cannot be used.
        on_driver: Run the tasks on the driver's node.
        progress: Told of the images done.
    """
    import ray

    cluster.init_ray()  # changes nothing where it runs already
    options = cluster.driver_node_options() if on_driver else cluster.data_task_options()
    task = ray.remote(write_file).options(**options)
    running: dict[ray.ObjectRef, str] = {}
    while waiting or running:
        while waiting and len(running) < 2 * max(1, int(ray.cluster_resources().get("CPU", 1))):
            name = waiting.pop(0)
            running[task.remote(out, name, files[name], skip_unreadable)] = name
        for ref in ray.wait(list(running))[0]:
            name = running.pop(ref)
            try:
                notes[name] = ray.get(ref)
            except ray.exceptions.RayTaskError as error:
                raise (error.cause if isinstance(error.cause, NON_RETRYABLE) else error) from None
            progress.add(len(files[name]))
