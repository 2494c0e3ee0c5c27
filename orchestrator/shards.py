"""Shards: Parquet files with each image's JPEG once, and a marker written last. orchestrator.convert writes them, orchestrator.decoded feeds trials.

URI/part-*.parquet     image_id, splits, jpeg, meta (the row of aml.refer as JSON); the rows of a split lie together
URI/vocabulary.json    words of the train split, the most frequent first
URI/_COMPLETE.json     dataset, split_by, counts by split, fingerprint of the content, files; readers look for this file first
"""

import functools
import hashlib
import json
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aml.data import decode_image
from aml.errors import UserError
from aml.refer import split_counts
from orchestrator import mirror

MARKER = "_COMPLETE.json"
FORMAT = 1


class Store:
    """A folder on local disk or on object storage, through pyarrow's file systems. Relative ones are relative to root, or to root's bucket."""

    def __init__(self, uri: str | Path, root: Path | None = None):
        from pyarrow import fs

        text = str(uri)
        if "://" not in text:
            path = (root or Path()) / Path(text).expanduser()
            text = (root and mirror.bucket_of(path)) or str(path)
        if "://" not in text:
            self.fs, self.path = fs.LocalFileSystem(), str(Path(text).absolute())
        else:
            refuse_keys(text)
            try:
                self.fs, self.path = fs.FileSystem.from_uri(text)
            except (OSError, ValueError) as error:  # pyarrow's own error is a ValueError
                raise self._away(text, error) from None
        self.uri = text

    @staticmethod
    def _away(uri: str, error: Exception) -> UserError:
        why = " ".join(str(error).split())[:200]
        return UserError(f"{uri} cannot be reached ({why}); check the endpoint, the bucket and what AWS_* is exported here and on the cluster")

    def join(self, name: str) -> str:
        return posixpath.join(self.path, name)

    def read(self, name: str) -> bytes | None:
        """The file's bytes; None where it is absent."""
        try:
            with self.fs.open_input_stream(self.join(name)) as stream:
                return stream.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._away(self.uri, error) if "://" in self.uri else error from None

    def write(self, name: str, data: bytes) -> None:
        """Complete or absent: local files are written beside and renamed; object stores do so themselves."""
        draft = self.join(name + ".tmp")
        try:
            self.fs.create_dir(self.path)
            with self.fs.open_output_stream(draft) as stream:
                stream.write(data)
            self.fs.move(draft, self.join(name))
        except OSError as error:
            raise self._away(self.uri, error) if "://" in self.uri else error from None

    def names(self) -> list[str]:
        """The files of the folder; none where it is not there."""
        from pyarrow import fs

        try:
            return [posixpath.basename(i.path) for i in self.fs.get_file_info(fs.FileSelector(self.path, allow_not_found=True))]
        except OSError as error:
            raise self._away(self.uri, error) if "://" in self.uri else error from None

    def clear_unfinished(self, keep: set[str]) -> None:
        """Remove what an interrupted conversion left, but `keep`. UserError where the folder holds anything else: it is somebody's."""
        names = self.names()
        foreign = sorted(n for n in names if not n.endswith((".parquet", ".tmp")) and n != "vocabulary.json")
        if foreign:
            raise UserError(f"{self.uri} holds {foreign[0]} ({len(foreign)} files that are no shards); give --out a folder of its own")
        for name in set(names) - keep:
            self.fs.delete_file(self.join(name))


def refuse_keys(uri: str) -> None:
    """UserError, without repeating them, where an address holds keys."""
    place = uri.partition("://")[2].partition("/")[0]
    if "@" in place:
        raise UserError(
            f"the address of {place.rpartition('@')[2]} holds keys, and addresses are logged; export AWS_ACCESS_KEY_ID and the like instead"
        )


def manifest(store: Store) -> dict:
    """The marker's content. UserError where there are no shards, or unfinished ones, or a file of them is missing."""
    data = store.read(MARKER)
    if data is None:
        how = f"python -m orchestrator shard --out {store.uri} ..."
        raise UserError(f"{store.uri} has no {MARKER}, so there are no complete shards there; make them with: {how}")
    found = json.loads(data)
    missing = sorted(set(found["files"]) - set(store.names()))
    if missing:
        lack = f"{len(missing)} of its {len(found['files'])} files, the first is {missing[0]}"
        raise UserError(f"{store.uri} lacks {lack}; copy it again or write the shards again")
    return found


def verify(store: Store) -> dict:
    """Read everything again: files whole, every JPEG decodes, counts and fingerprint as noted.   -> the manifest; UserError names the damage"""
    import pyarrow.parquet as pq

    noted, rows, digests = manifest(store), [], {}
    for name in noted["files"]:
        with _damage_named(store, name):
            table = pq.read_table(store.join(name), filesystem=store.fs, columns=["jpeg", "meta"])
        for jpeg, text in zip(table["jpeg"].to_pylist(), table["meta"].to_pylist(), strict=True):
            rows.append(json.loads(text))
            decode_image(jpeg, rows[-1]["file_name"])
            digests[rows[-1]["image_id"]] = hashlib.sha256(jpeg).hexdigest()
    content = hashlib.sha256((noted["source"] + "".join(digests[i] for i in sorted(digests))).encode()).hexdigest()[:16]
    if split_counts(rows) != noted["splits"] or content != noted["fingerprint"]:
        raise UserError(f"{store.uri} does not hold what its marker says (content {content}, noted {noted['fingerprint']}); write the shards again")
    return noted


def check_files(store: Store) -> None:
    """The end of each file, which says where everything in it is. UserError names one that is cut off or something else."""
    import pyarrow.parquet as pq

    for name in manifest(store)["files"]:
        with _damage_named(store, name):
            pq.ParquetFile(store.join(name), filesystem=store.fs).close()


@contextmanager
def _damage_named(store: Store, name: str):
    try:
        yield
    except Exception as error:  # pyarrow raises several kinds on cut-off or altered files
        what = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        raise UserError(f"{store.uri}/{name} is damaged ({what}); write the shards again") from None


def splits_of(store: Store) -> dict[int, set[str]]:
    """{image_id: the splits of its refs}"""
    import pyarrow.parquet as pq

    found = {}
    for name in manifest(store)["files"]:
        with _damage_named(store, name):
            table = pq.read_table(store.join(name), filesystem=store.fs, columns=["image_id", "splits"])
        found |= {i: set(of.split(",")) for i, of in zip(table["image_id"].to_pylist(), table["splits"].to_pylist(), strict=True)}
    return found


def index(store: Store, splits: list[str]) -> list[tuple[int, str, int, int]]:
    """Where the pictures with a ref in one of the splits are: (image_id, file, row group, row), in the order of image_id."""
    import pyarrow.parquet as pq

    found = []
    for name in manifest(store)["files"]:
        with _damage_named(store, name), pq.ParquetFile(store.join(name), filesystem=store.fs) as file:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=["image_id", "splits"])
                pairs = zip(table["image_id"].to_pylist(), table["splits"].to_pylist(), strict=True)
                found += [(i, name, group, r) for r, (i, of) in enumerate(pairs) if set(splits) & set(of.split(","))]
    return sorted(found)


def read(store: Store, places: list[tuple[int, str, int, int]], *, jpeg: bool = True) -> Iterator[dict]:
    """The rows at some places, with or without their `jpeg`, one at a time; a few row groups are kept in memory."""
    import pyarrow.parquet as pq

    @functools.lru_cache(maxsize=4)
    def group_of(name: str, group: int):
        with _damage_named(store, name), pq.ParquetFile(store.join(name), filesystem=store.fs) as file:
            return file.read_row_group(group, columns=["meta", "jpeg"] if jpeg else ["meta"])

    for _, name, group, row in places:
        table = group_of(name, group)
        meta = json.loads(table["meta"][row].as_py())
        yield meta | ({"jpeg": table["jpeg"][row].as_py()} if jpeg else {})


def words(store: Store) -> list[str]:
    """The vocabulary stored with the shards."""
    return json.loads(store.read("vocabulary.json"))


def describe(found: dict) -> str:
    """Counts in words, a part a split."""
    return "; ".join(f"{split} {c['refs']} refs, {c['sentences']} sentences, {c['images']} images" for split, c in found["splits"].items())


def with_refs_of(row: dict, splits: set[str], leave: dict[str, frozenset[int]]) -> dict | None:
    """The row with the refs of these splits that `leave` keeps; None where there is none."""
    refs = [r for r in row["refs"] if r["split"] in splits and row["image_id"] not in leave.get(r["split"], ())]
    return row | {"refs": refs} if refs else None
