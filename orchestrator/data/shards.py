"""Shards: Parquet files with each image's JPEG once, and a marker written last. orchestrator.convert writes them, orchestrator.decoded feeds trials.

URI/part-*.parquet     image_id, splits, jpeg, meta (the row of aml.refer as JSON); the rows of a split lie together
URI/vocabulary.json    words of the train split, the most frequent first
URI/_COMPLETE.json     dataset, split_by, counts by split, fingerprint of the content, files; readers look for this file first
"""

import functools
import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from aml.data import decode_image, split_counts
from aml.errors import UserError
from orchestrator import storage
from orchestrator.storage import READERS, Filesystem

COMPLETE_MARKER = "_COMPLETE.json"

FORMAT = 1

COLUMNS = {"image_id": "int64", "splits": "string", "jpeg": "binary", "meta": "string"}

SAID_EVERY_S = 5.0


def read_manifest(store: Filesystem) -> dict:
    """The marker's content. UserError where there are no shards, or unfinished ones, or a file of them is missing."""
    data = store.read(COMPLETE_MARKER)
    if data is None:
        how = f"python -m orchestrator shard --out {store.uri} ..."
        raise UserError(
            f"{store.uri} has no {COMPLETE_MARKER}, so there are no complete shards there; make them with: {how}"
        )
    try:
        found = json.loads(data)
        version, files = found["format"], found["files"]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{store.uri}/{COMPLETE_MARKER} is damaged ({type(error).__name__}: {error}); copy it again or write the shards again"
        ) from None
    if version != FORMAT:
        raise UserError(
            f"{store.uri} is of format {version!r}, and this version reads format {FORMAT}; write the shards again"
        )
    missing = sorted(set(files) - set(store.names()))
    if missing:
        lack = f"{len(missing)} of its {len(files)} files, the first is {missing[0]}"
        raise UserError(f"{store.uri} lacks {lack}; copy it again or write the shards again")
    return found


def verify_shards(store: Filesystem, say: Callable = lambda _: None) -> dict:
    """Read everything again, a row group at a time: files whole, every JPEG decodes, counts and fingerprint as noted.

    Returns the manifest. UserError names the damage.
    """
    noted, digests = read_manifest(store), {}
    progress = Progress(noted.get("images", 0), 0, say)

    def rows() -> Iterator[dict]:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for name in noted["files"]:
                for table in _row_groups(store, name, ["jpeg", "meta"]):
                    checked = functools.partial(_checked, store, name)
                    for row, digest in pool.map(
                        checked, table["jpeg"].to_pylist(), table["meta"].to_pylist()
                    ):
                        digests[row["image_id"]] = digest
                        yield row
                    progress.add(table.num_rows)
                    progress.say()

    counts = split_counts(rows())
    content = hashlib.sha256(
        (noted["source"] + "".join(digests[i] for i in sorted(digests))).encode()
    ).hexdigest()[:16]
    if counts != noted["splits"] or content != noted["fingerprint"]:
        raise UserError(
            f"{store.uri} does not hold what its marker says (content {content}, noted {noted['fingerprint']}); write the shards again"
        )
    return noted


def _checked(store: Filesystem, name: str, jpeg: bytes, meta: str) -> tuple[dict, str]:
    """A row and its JPEG's digest."""
    with _damage_named(store, name):
        row = json.loads(meta)
        decode_image(jpeg, row["file_name"])
    return row, hashlib.sha256(jpeg).hexdigest()


class Progress:
    """Said every few seconds: images, rate, time left."""

    def __init__(self, total: int, done: int, tell: Callable):
        self.total, self.before, self.done, self.tell = total, done, done, tell
        self.start = self.said = time.monotonic()

    def add(self, images: int) -> None:
        self.done += images

    def say(self) -> None:
        now = time.monotonic()
        if self.done in (self.before, self.total) or now - self.said < SAID_EVERY_S:
            return
        self.said = now
        rate = (self.done - self.before) / (now - self.start)
        self.tell(
            f"{self.done} of {self.total} images, {rate:.0f} images/s, {(self.total - self.done) / rate:.0f} s left"
        )


def files_with(store: Filesystem, splits: frozenset[str]) -> dict[str, object]:
    """{file: its footer} of those that may hold a picture with a ref in one of the splits.

    The end of every file is looked at, which says where everything in it is. UserError names one that is cut off or something else.
    """
    with ThreadPoolExecutor(READERS) as pool:
        names = read_manifest(store)["files"]
        footers = dict(zip(names, pool.map(functools.partial(_footer, store), names), strict=True))
    return {
        name: footer
        for name, footer in footers.items()
        if any(may_hold(footer, group, splits) for group in range(footer.num_row_groups))
    }


def _footer(store: Filesystem, name: str):
    with opened(store, name) as file:
        return file.metadata


def may_hold(footer, group: int, splits: frozenset[str]) -> bool:
    """Whether a row group may have a picture with a ref in one of the splits, by what its footer tells."""
    known = footer.row_group(group).column(footer.schema.names.index("splits")).statistics
    return not (
        known
        and known.has_min_max
        and known.min == known.max
        and not splits & set(known.min.split(","))
    )


@contextmanager
def opened(store: Filesystem, name: str, metadata=None):
    """A file of the shards as a ParquetFile, its columns checked. UserError where it is cut off, altered or something else.

    metadata: its footer where it was read before.
    """
    import pyarrow.parquet as pq

    with (
        _damage_named(store, name),
        pq.ParquetFile(store.join(name), filesystem=store.fs, metadata=metadata) as file,
    ):
        held = {field.name: str(field.type) for field in file.schema_arrow}
        if wrong := [
            f"{column} ({kind})" for column, kind in COLUMNS.items() if held.get(column) != kind
        ]:
            raise UserError(
                f"{store.uri}/{name} lacks {', '.join(wrong)}, so it is no file of these shards; copy it again or write the shards again"
            )
        yield file


def _row_groups(store: Filesystem, name: str, columns: list[str]) -> Iterator:
    """The row groups of a file as Arrow tables, one in memory at a time."""
    with opened(store, name) as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, columns=columns)


@contextmanager
def _damage_named(store: Filesystem, name: str):
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # pyarrow raises several kinds on cut-off or altered files
        if "AWS Error" in str(error):  # the bucket gave nothing; what it holds may be whole
            raise store.away(storage.join_uri(store.uri, name), error) from None
        what = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        raise UserError(f"{store.uri}/{name} is damaged ({what}); write the shards again") from None


def splits_of(store: Filesystem) -> dict[int, set[str]]:
    """{image_id: the splits of its refs}"""
    return {image_id: set(of.split(",")) for image_id, of, *_ in _places(store)}


def picture_places(store: Filesystem, splits: list[str]) -> list[tuple[int, str, int, int]]:
    """Where the pictures with a ref in one of the splits are: (image_id, file, row group, row), in the order of image_id."""
    wanted = set(splits)
    return sorted((i, *where) for i, of, *where in _places(store) if wanted & set(of.split(",")))


def _places(store: Filesystem) -> Iterator[tuple[int, str, str, int, int]]:
    """Of every picture (image_id, its splits comma-separated, file, row group, row)."""
    names = read_manifest(store)["files"]
    with ThreadPoolExecutor(READERS) as pool:
        for name, groups in zip(
            names, pool.map(functools.partial(_ids, store), names), strict=True
        ):
            yield from (
                (i, of, name, group, row)
                for group, pairs in enumerate(groups)
                for row, (i, of) in enumerate(pairs)
            )


def _ids(store: Filesystem, name: str) -> list[list[tuple[int, str]]]:
    """Of each row group of a file, image_id and splits of its rows."""
    tables = _row_groups(store, name, ["image_id", "splits"])
    return [
        list(zip(table["image_id"].to_pylist(), table["splits"].to_pylist(), strict=True))
        for table in tables
    ]


def read_rows(
    store: Filesystem, places: list[tuple[int, str, int, int]], *, jpeg: bool = True
) -> Iterator[dict]:
    """The rows at some places, with or without their `jpeg`, one at a time. A row group is read once and held until its last place.

    In the order of image_id that is one row group for each combination of splits, since rows lie in the order of both.
    """
    left, held = Counter((name, group) for _, name, group, _ in places), {}
    for _, name, group, row in places:
        key = name, group
        if key not in held:
            with opened(store, name) as file:
                held[key] = file.read_row_group(
                    group, columns=["meta", "jpeg"] if jpeg else ["meta"]
                )
        table = held[key]
        left[key] -= 1
        if not left[key]:
            del held[key]
        meta = json.loads(table["meta"][row].as_py())
        yield meta | ({"jpeg": table["jpeg"][row].as_py()} if jpeg else {})


def words(store: Filesystem) -> list[str]:
    """The vocabulary stored with the shards."""
    return json.loads(store.read("vocabulary.json"))


def describe_counts(found: dict) -> str:
    """Counts in words, a part a split."""
    return "; ".join(
        f"{split} {c['refs']} refs, {c['sentences']} sentences, {c['images']} images"
        for split, c in found["splits"].items()
    )


def with_refs_of(row: dict, splits: set[str], leave: dict[str, frozenset[int]]) -> dict | None:
    """The row with the refs of these splits that `leave` keeps; None where there is none."""
    refs = [
        r
        for r in row["refs"]
        if r["split"] in splits and row["image_id"] not in leave.get(r["split"], ())
    ]
    return row | {"refs": refs} if refs else None
