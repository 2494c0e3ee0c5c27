"""Write one file of shards in a Ray task, and read what its footer notes."""

import hashlib
import json
import zlib
from pathlib import Path
from typing import Any, TypedDict

from aml.data import picture_kind, row_picture
from aml.errors import Unreadable, UserError
from aml.reading import MOST_PIXELS, open_picture, parse_json, read_picture
from orchestrator.storage import Filesystem

ROWS_PER_GROUP = 64
"""Images a row group: about 10 MB of COCO JPEGs, the unit of random access."""

NOTE = b"amlris"
"""Key of the FileNote in a file's footer."""

TURNED = "turned by EXIF"
"""Key of the pictures, among the kinds, that EXIF turns when they are shown."""

PackedRow = tuple[str, bytes]
"""Path of a JPEG, and the rest of its row as zlib-compressed JSON."""


class FileNote(TypedDict):
    """Outcome of writing one file, kept in its footer as JSON."""

    digests: dict[int, str]
    """SHA-256 of the JPEG by image_id; JSON makes the keys text."""
    errors: list[str]
    """Reasons why images could not be used, one for each."""
    kinds: dict[str, int]
    """Pictures of each format, and under TURNED those that EXIF turns when they are shown."""


def splits_of_refs(meta: dict[str, Any]) -> str:
    """Return the splits of the refs of a row without its picture, comma-separated."""
    return ",".join(sorted({ref["split"] for ref in meta["refs"]}))


def read_note(out: Filesystem, name: str) -> FileNote | None:
    """Return the note in a file's footer; None if the file is unreadable or has none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        footer = pq.read_schema(out.join(name), filesystem=out.fs).metadata or {}
    except (OSError, pa.ArrowInvalid):
        return None
    try:
        note = parse_json(footer.get(NOTE, b"null"), name)
    except UserError:
        return None
    if not isinstance(note, dict) or note.keys() != FileNote.__annotations__.keys():
        return None
    return FileNote(digests=note["digests"], errors=note["errors"], kinds=note["kinds"])


def write_file(
    out: Filesystem, name: str, lines: list[PackedRow], skip_unreadable: bool
) -> FileNote:
    """Write one file in a Ray task and return its note.

    Nothing is written if an image cannot be used and skip_unreadable is False.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    note: FileNote = {"digests": {}, "errors": [], "kinds": {}}
    rows = []
    for path, packed in lines:
        text = zlib.decompress(packed).decode()
        meta = json.loads(text)
        try:
            jpeg = read_picture(Path(path))
            row_picture(meta | {"jpeg": jpeg})
        except Unreadable as error:
            note["errors"].append(str(error))
            continue
        kind, turned = picture_kind(open_picture(jpeg, path, MOST_PIXELS))
        for key in [kind, TURNED] if turned else [kind]:
            note["kinds"][key] = note["kinds"].get(key, 0) + 1
        note["digests"][meta["image_id"]] = hashlib.sha256(jpeg).hexdigest()
        rows.append(
            {
                "image_id": meta["image_id"],
                "splits": splits_of_refs(meta),
                "jpeg": jpeg,
                "meta": text,
            }
        )
    if not rows or (note["errors"] and not skip_unreadable):
        return note
    types = {"image_id": pa.int64(), "splits": pa.string(), "jpeg": pa.binary()}
    types["meta"] = pa.string()
    table = pa.Table.from_pylist(rows, pa.schema(types, metadata={NOTE: json.dumps(note)}))
    del rows
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        row_group_size=ROWS_PER_GROUP,
        # JPEGs do not get smaller.
        compression={key: "none" if key == "jpeg" else "zstd" for key in types},
        use_dictionary=["splits"],
        write_statistics=["image_id", "splits"],
    )
    out.write(name, sink.getvalue())
    return note
