"""Read and verify shards: Parquet files that hold each image's JPEG once, and a marker.

Files under the address of a data set:
    part-*.parquet: columns image_id, splits, jpeg and meta (the row of aml.data.read_refer as
        JSON). The rows of a split lie together.
    vocabulary.json: words of the train split, the most frequent first.
    _COMPLETE.json: the marker, which is written last and looked for first. It holds dataset,
        split_by, counts by split, the fingerprint of the content, and the names of the files.

orchestrator.data.convert writes shards.
"""

import contextlib
import functools
import hashlib
import logging
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from aml.data import row_picture, split_counts, targets_of
from aml.errors import UserError
from aml.reading import describe, is_id, parse_json
from orchestrator.storage import Filesystem
from orchestrator.utils import Progress

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

logger = logging.getLogger(__name__)

COMPLETE_MARKER = "_COMPLETE.json"
"""Name of the file that makes a folder of shards complete."""

FORMAT = 1
"""Version of the layout of shards."""

COLUMNS = {"image_id": "int64", "splits": "string", "jpeg": "binary", "meta": "string"}
"""Columns of a file and their Arrow types; splits are comma-separated."""

AGAIN = "copy it again or write the shards again"
"""What to do about damaged shards."""

PicturePlace = tuple[int, str, int, int]
"""image_id, file, row group, row in the group."""


def read_manifest(store: Filesystem) -> dict[str, Any]:
    """Return the content of the marker.

    Raises:
        UserError: There are no shards, unfinished ones, or a file of them is missing.
    """
    data = store.read(COMPLETE_MARKER)
    if data is None:
        raise UserError(
            f"{store.uri} has no {COMPLETE_MARKER}, so there are no complete shards there; make "
            f"them with: python -m orchestrator shard --out {store.uri} ..."
        )
    manifest = parse_json(data, f"{store.uri}/{COMPLETE_MARKER}", advice=AGAIN)
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, list) or not all(isinstance(name, str) for name in files):
        raise UserError(f"{store.uri}/{COMPLETE_MARKER} is damaged (it names no files); {AGAIN}")
    version = manifest.get("format")
    if version != FORMAT:
        raise UserError(
            f"{store.uri} is of format {describe(version)}, and this version reads format "
            f"{FORMAT}; write the shards again"
        )
    missing = sorted(set(files) - set(store.names()))
    if missing:
        raise UserError(
            f"{store.uri} lacks {len(missing)} of its {len(files)} files, the first is "
            f"{missing[0]}; {AGAIN}"
        )
    return manifest


def verify_shards(store: Filesystem) -> dict[str, Any]:
    """Read all shards again, one row group in memory at a time, and return the manifest.

    Files must be whole, every JPEG must decode, counts and fingerprint must be as noted.

    Raises:
        UserError: Something is damaged; the message says what.
    """
    manifest = read_manifest(store)
    digests: dict[int, str] = {}
    progress = Progress(f"reading {store.uri}", manifest.get("images", 0), "images")

    def rows() -> Iterator[dict]:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for name in manifest["files"]:
                check = functools.partial(_check_row, store, name)
                for table in _row_groups(store, name, ["jpeg", "meta"]):
                    jpegs = table["jpeg"].to_pylist()
                    for row, digest in pool.map(check, jpegs, table["meta"].to_pylist()):
                        digests[row["image_id"]] = digest
                        yield row
                    progress.add(table.num_rows)

    with progress:
        counts = split_counts(rows())
    fingerprint = content_fingerprint(manifest["source"], digests)
    if counts != manifest["splits"] or fingerprint != manifest["fingerprint"]:
        raise UserError(
            f"{store.uri} does not hold what its marker says (content {fingerprint}, noted "
            f"{manifest['fingerprint']}); write the shards again"
        )
    return manifest


def content_fingerprint(source: str, digests: Mapping[int, str]) -> str:
    """Return the fingerprint of a data set: 16 hex digits.

    Args:
        source: Hash of the annotations.
        digests: SHA-256 of the JPEG by image_id.
    """
    content = source + "".join(digests[image_id] for image_id in sorted(digests))
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _check_row(store: Filesystem, name: str, jpeg: bytes, meta: str) -> tuple[dict, str]:
    """Decode a row and its JPEG; return the row and the SHA-256 of the JPEG."""
    with _name_damage(store, name):
        row = parse_row(meta, f"a row of {store.uri}/{name}")
        row_picture(row | {"jpeg": jpeg})
    return row, hashlib.sha256(jpeg).hexdigest()


def parse_row(meta: str, where: str) -> dict[str, Any]:
    """Return the row that the column `meta` holds as JSON, without its JPEG.

    Args:
        meta: The JSON.
        where: What the row is called in a message.

    Raises:
        UserError: It is not as aml.data.read_refer makes rows.
    """
    row = parse_json(meta, where, advice=AGAIN)
    try:
        objects = {o["ann_id"] for o in row["objects"] if isinstance(o["rle"], str)}
        ids = [row["image_id"], row["height"], row["width"]]
        texts = [row["file_name"], row["dataset"], row["split_by"]]
        for ref in row["refs"]:
            ids += [ref["ref_id"], *targets_of(ref), *(s["sent_id"] for s in ref["sentences"])]
            texts += [ref["split"], *(s["sent"] for s in ref["sentences"])]
            whole = objects.issuperset(targets_of(ref)) and bool(ref["sentences"])
            if not whole:
                raise TypeError(f"ref {describe(ref['ref_id'])}")
        if not all(map(is_id, ids)) or not all(isinstance(text, str) for text in texts):
            raise TypeError("an id or a text")
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{where} is no row of shards ({type(error).__name__}: {error}); {AGAIN}"
        ) from None
    return row


def files_with(store: Filesystem, splits: Collection[str]) -> dict[str, "pq.FileMetaData"]:
    """Return the footers of the files that may hold a picture with a ref in one of the splits.

    The footer of every file is read, which tells where everything in the file is.

    Raises:
        UserError: A file is truncated or is not a Parquet file; the message names it.
    """
    with ThreadPoolExecutor(Filesystem.READERS) as pool:
        names = read_manifest(store)["files"]
        footers = dict(zip(names, pool.map(functools.partial(_footer, store), names), strict=True))
    return {
        name: footer
        for name, footer in footers.items()
        if any(may_hold(footer, group, splits) for group in range(footer.num_row_groups))
    }


def _footer(store: Filesystem, name: str) -> "pq.FileMetaData":
    with open_file(store, name) as file:
        return file.metadata


def may_hold(footer: "pq.FileMetaData", group: int, splits: Collection[str]) -> bool:
    """Check by a file's footer if a row group may hold a picture with a ref in one of the splits.

    Args:
        footer: Footer of the file.
        group: Number of the row group.
        splits: Names of splits.
    """
    statistics = footer.row_group(group).column(footer.schema.names.index("splits")).statistics
    if not (statistics and statistics.has_min_max and statistics.min == statistics.max):
        return True  # the rows of the group differ, or nothing is known of them
    return not set(splits).isdisjoint(statistics.min.split(","))


@contextmanager
def open_file(
    store: Filesystem, name: str, footer: "pq.FileMetaData | None" = None
) -> "Iterator[pq.ParquetFile]":
    """Open a file of the shards and check its columns.

    Args:
        store: Folder of the shards.
        name: Name of the file.
        footer: Its footer, where it was read before.

    Raises:
        UserError: The file is truncated, altered or something else.
    """
    import pyarrow.parquet as pq

    with contextlib.ExitStack() as stack:
        stack.enter_context(_name_damage(store, name))
        with store.answering():
            file = pq.ParquetFile(store.join(name), filesystem=store.fs, metadata=footer)
        stack.enter_context(file)
        types = {field.name: str(field.type) for field in file.schema_arrow}
        wrong = [
            f"{column} ({kind})" for column, kind in COLUMNS.items() if types.get(column) != kind
        ]
        if wrong:
            raise UserError(
                f"{store.uri}/{name} lacks {', '.join(wrong)}, so it is no file of these shards; "
                "copy it again or write the shards again"
            )
        yield file


def _row_groups(store: Filesystem, name: str, columns: list[str]) -> "Iterator[pa.Table]":
    """Yield the row groups of a file, one in memory at a time."""
    with open_file(store, name) as file:
        for group in range(file.num_row_groups):
            with store.answering():
                rows = file.read_row_group(group, columns=columns)
            yield rows


@contextmanager
def _name_damage(store: Filesystem, name: str) -> Iterator[None]:
    """Turn errors of reading a file into a UserError that names the file.

    Raises:
        UserError: The file is damaged.
        Unreachable: The bucket does not answer; its content may be whole.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # pyarrow raises several kinds on truncated or altered files
        if store.is_silent(error):
            raise store.unreachable(error, name) from None
        what = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        raise UserError(f"{store.uri}/{name} is damaged ({what}); write the shards again") from None


def splits_of(store: Filesystem) -> dict[int, set[str]]:
    """Return the splits of each image's refs by image_id."""
    return {place[0]: set(splits.split(",")) for place, splits in _all_places(store)}


def picture_places(store: Filesystem, splits: Collection[str]) -> list[PicturePlace]:
    """Return the places of the pictures with a ref in one of the splits, in order of image_id.

    Returns:
        (image_id, file, row group, row) of each picture.
    """
    wanted = set(splits)
    return sorted(place for place, held in _all_places(store) if wanted & set(held.split(",")))


def _all_places(store: Filesystem) -> Iterator[tuple[PicturePlace, str]]:
    """Yield the place of every picture and its splits, comma-separated."""
    names = read_manifest(store)["files"]
    with ThreadPoolExecutor(Filesystem.READERS) as pool:
        read = functools.partial(_image_ids, store)
        for name, groups in zip(names, pool.map(read, names), strict=True):
            for group, pairs in enumerate(groups):
                for row, (image_id, splits) in enumerate(pairs):
                    yield (image_id, name, group, row), splits


def _image_ids(store: Filesystem, name: str) -> list[list[tuple[int, str]]]:
    """Return image_id and splits of the rows of each row group of a file."""
    tables = _row_groups(store, name, ["image_id", "splits"])
    return [
        list(zip(table["image_id"].to_pylist(), table["splits"].to_pylist(), strict=True))
        for table in tables
    ]


def read_rows(
    store: Filesystem, places: list[PicturePlace], *, jpeg: bool = True
) -> Iterator[dict[str, Any]]:
    """Yield the rows at some places, one at a time.

    A row group is read once and held until its last place. In order of image_id, one row group for
    each combination of splits is held, since rows lie in the order of splits, then image_id.

    Args:
        store: Folder of the shards.
        places: Places as picture_places returns them.
        jpeg: Whether rows have the key `jpeg`.
    """
    left = Counter((name, group) for _, name, group, _ in places)
    held: dict[tuple[str, int], pa.Table] = {}
    columns = ["meta", "jpeg"] if jpeg else ["meta"]
    for _, name, group, row in places:
        key = name, group
        if key not in held:
            with open_file(store, name) as file:
                held[key] = file.read_row_group(group, columns=columns)
        table = held[key]
        left[key] -= 1
        if not left[key]:
            del held[key]
        meta = parse_row(table["meta"][row].as_py(), f"{store.uri}/{name}, row {row} of {group}")
        yield meta | ({"jpeg": table["jpeg"][row].as_py()} if jpeg else {})


def words(store: Filesystem) -> list[str]:
    """Return the vocabulary that is stored with the shards."""
    data = store.read("vocabulary.json")
    if data is None:
        raise UserError(
            f"{store.uri} lacks vocabulary.json; copy it again or write the shards again"
        )
    return parse_json(data, f"{store.uri}/vocabulary.json")


def describe_counts(manifest: dict[str, Any]) -> str:
    """Return the counts of refs, sentences and images of each split, in words."""
    return "; ".join(
        f"{split} {c['refs']} refs, {c['sentences']} sentences, {c['images']} images"
        for split, c in manifest["splits"].items()
    )


def keep_refs(
    row: dict[str, Any], splits: Collection[str], excluded: Mapping[str, Collection[int]]
) -> dict[str, Any] | None:
    """Return the row with some of its refs; None if no ref is left.

    Args:
        row: Row with all refs.
        splits: Splits whose refs stay.
        excluded: By split the image_ids whose refs of that split go.
    """
    refs = [
        ref
        for ref in row["refs"]
        if ref["split"] in splits and row["image_id"] not in excluded.get(ref["split"], ())
    ]
    return row | {"refs": refs} if refs else None
