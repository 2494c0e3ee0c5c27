"""Test that shards are written file by file.

A conversion that was killed is continued, and nothing half-written is read.
"""

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from aml.data import refer_counts
from aml.errors import NotSaved, UserError
from aml.files import DRAFT, MARKER, marker_bytes
from orchestrator.data import convert, shard_file, shards
from orchestrator.storage import filesystem
from orchestrator.utils import progress
from tests.aml.training.test_checkpoint import file_size_limit
from tests.support.hearing import hear
from tests.support.stores import write_store


@pytest.fixture
def small_files(monkeypatch):
    monkeypatch.setattr(convert, "ROWS_PER_FILE", 8)
    monkeypatch.setattr(shard_file, "ROWS_PER_GROUP", 4)


def here(packed, out, skip=False):
    """Write all files in this process and return their notes by name."""
    return {
        name: shard_file.write_file(out, name, lines, skip) for name, lines in packed.files.items()
    }


def test_rows_of_a_split_lie_together_and_packing_loses_nothing(rows, tmp_path, small_files):
    packed = convert.pack_rows(rows)
    out = filesystem.Filesystem(tmp_path)
    notes = here(packed, out)
    digests = {i: d for note in notes.values() for i, d in note["digests"].items()}
    assert len(notes) == 5 and sorted(out.names()) == sorted(notes) == list(notes)
    held = [pq.read_table(tmp_path / name) for name in notes]
    splits = [s for table in held for s in table["splits"].to_pylist()]
    ids = [i for table in held for i in table["image_id"].to_pylist()]
    assert (
        splits == sorted(splits)
        and len(set(splits)) == 4
        and sorted(ids) == [r["image_id"] for r in rows] == sorted(digests)
    )
    assert ids[: splits.count("testA")] == sorted(ids[: splits.count("testA")])
    meta = [{k: v for k, v in r.items() if k != "path"} for r in rows]
    assert sorted(packed.rows(digests), key=lambda r: r["image_id"]) == meta
    jpegs = {
        i: j
        for table in held
        for i, j in zip(table["image_id"].to_pylist(), table["jpeg"].to_pylist(), strict=True)
    }
    assert all(jpegs[r["image_id"]] == Path(r["path"]).read_bytes() for r in rows)
    assert pq.ParquetFile(tmp_path / next(iter(notes))).metadata.row_group(0).num_rows == 4


def test_the_source_of_shards_is_the_hash_of_all_rows(rows):
    text = json.dumps(
        [shards.FORMAT, [{k: v for k, v in r.items() if k != "path"} for r in rows]], sort_keys=True
    )
    assert convert.pack_rows(rows).source == hashlib.sha256(text.encode()).hexdigest()


def test_a_file_with_an_image_that_cannot_be_used_is_written_without_it_or_not_at_all(
    rows, tmp_path, small_files
):
    broken = [dict(r) for r in rows[:8]]
    (tmp_path / "cut.jpg").write_bytes(Path(broken[2]["path"]).read_bytes()[:50])
    Image.fromarray(np.zeros((9, 7, 3), np.uint8)).save(tmp_path / "other.jpg")
    broken[2]["path"] = str(tmp_path / "cut.jpg")
    broken[5]["path"] = str(tmp_path / "other.jpg")
    packed = convert.pack_rows(broken)
    out = filesystem.Filesystem(tmp_path / "out")
    (note,) = here(packed, out).values()
    assert out.names() == [] and len(note["errors"]) == 2
    assert any("cannot be read" in e for e in note["errors"]) and any(
        "is 7 x 9, but its annotations are for" in e for e in note["errors"]
    )
    (note,) = here(packed, out, skip=True).values()
    (name,) = out.names()
    assert pq.read_metadata(tmp_path / "out" / name).num_rows == 6 == len(note["digests"])


def test_annotations_without_any_image_are_refused():
    with pytest.raises(UserError, match="annotations name no image"):
        convert.pack_rows([])


def test_a_folder_without_the_marker_or_with_other_names_is_no_unfinished_conversion(
    rows, tmp_path
):
    packed = convert.pack_rows(rows)
    out = filesystem.Filesystem(tmp_path)
    (part,) = packed.files
    out.write(part, b"")
    with pytest.raises(UserError, match="which no conversion of this program wrote"):
        convert.check_output(out, packed)
    out.write(MARKER, marker_bytes(convert.KIND))
    out.write(f"vocabulary.json{DRAFT}", b"")
    assert convert.check_output(out, packed) is None
    for name in ("part-00000-sales.parquet", "sales.parquet", "draft.tmp", f"mine{DRAFT}"):
        out.write(name, b"")
        with pytest.raises(UserError, match=f"holds {name}"):
            convert.check_output(out, packed)
        out.delete(name)


def test_objects_of_somebody_elses_in_a_bucket_are_refused_and_stay(rows, bucket):
    bucket.put("scenes/sales.parquet", b"sold")
    bucket.put("scenes/draft.tmp", b"half")
    out = filesystem.Filesystem(bucket.uri.replace("?", "/scenes?"))
    with pytest.raises(UserError, match=r"holds draft.tmp \(2 files"):
        convert.check_output(out, convert.pack_rows(rows))
    assert bucket.get("scenes/sales.parquet") == b"sold" and bucket.has("scenes/draft.tmp")


def test_shards_that_would_not_fit_are_refused_before_anything_is_written(
    rows, tmp_path, monkeypatch
):
    free = SimpleNamespace(free=1000)
    monkeypatch.setattr("shutil.disk_usage", lambda place: free)
    with pytest.raises(NotSaved, match=r"out could not be written .*takes .* and 1000 bytes"):
        convert.check_output(filesystem.Filesystem(tmp_path / "out"), convert.pack_rows(rows))
    assert not list(tmp_path.iterdir())


def test_a_disk_that_gets_full_leaves_no_draft_of_shards(rows, tmp_path):
    packed = convert.pack_rows(rows)
    out = filesystem.Filesystem(tmp_path / "out")
    with (
        file_size_limit(10_000),
        pytest.raises(NotSaved, match=r"part-00000-.* could not be written .*: it takes .* free"),
    ):
        here(packed, out)
    assert out.names() == []


@pytest.fixture
def stored_anew(rows, tmp_path):
    """Write shards for one test, without Ray; return the folder and its store."""
    store = write_store(tmp_path / "own", rows)
    return tmp_path / "own", store


def test_verifying_says_how_far_it_is_and_reads_a_row_group_at_a_time(
    rows, tmp_path, small_files, monkeypatch
):
    out = filesystem.Filesystem(tmp_path)
    packed = convert.pack_rows(rows)
    notes = here(packed, out)
    digests = {int(i): d for note in notes.values() for i, d in note["digests"].items()}
    content = hashlib.sha256(
        (packed.source + "".join(digests[i] for i in sorted(digests))).encode()
    ).hexdigest()[:16]
    marker = {
        "format": shards.FORMAT,
        "images": len(rows),
        "files": list(notes),
        "splits": refer_counts.split_counts(rows),
    }
    out.write(
        shards.COMPLETE_MARKER,
        json.dumps(marker | {"source": packed.source, "fingerprint": content}).encode(),
    )
    monkeypatch.setattr(progress, "FIRST_S", 0.0)
    monkeypatch.setattr(progress, "AGAIN_S", 0.0)
    read = []

    class Noted(list):
        def append(self, text):
            super().append((text, len(read)))

    said = hear(Noted())
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", spy(pq.ParquetFile.read_row_group, read))
    assert shards.verify_shards(out)["fingerprint"] == content
    assert (
        len(said) == 9
        and said[0][0].startswith(f"reading {out.uri}: 4 of {len(rows)} images, ")
        and said[0][0].endswith(" s left")
    )
    assert [groups for _, groups in said] == list(range(1, 10))
    out.write(
        shards.COMPLETE_MARKER,
        json.dumps(marker | {"source": packed.source, "fingerprint": "0" * 16}).encode(),
    )
    with pytest.raises(
        UserError,
        match=f"does not hold what its marker says .content {content}, noted 0000000000000000.",
    ):
        shards.verify_shards(out)


def test_rows_in_order_of_image_id_are_read_a_row_group_at_a_time_with_any_splits(
    rows, tmp_path, small_files, monkeypatch
):
    """Each combination of splits is one sequence of row groups.

    Splits by object, such as Google's of RefCOCO, have many combinations.
    """
    combinations = [
        ["test"],
        ["train"],
        ["val"],
        ["test", "train"],
        ["test", "val"],
        ["train", "val"],
        ["test", "train", "val"],
    ]
    mixed = []
    for k, row in enumerate(rows):
        refs = [
            row["refs"][0] | {"split": split, "ref_id": 10 * k + j}
            for j, split in enumerate(combinations[k % 7])
        ]
        mixed.append(row | {"refs": refs})
    out = filesystem.Filesystem(tmp_path)
    packed = convert.pack_rows(mixed)
    notes = here(packed, out)
    out.write(
        shards.COMPLETE_MARKER, json.dumps({"format": shards.FORMAT, "files": list(notes)}).encode()
    )
    places = shards.picture_places(out, ["val", "test"])
    asked = []
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", spy(pq.ParquetFile.read_row_group, asked))
    found = list(shards.read_rows(out, places))
    assert [row["image_id"] for row in found] == [
        row["image_id"] for k, row in enumerate(mixed) if k % 7 != 1
    ]
    assert len(asked) == len({(name, group) for _, name, group, _ in places}) > 6


def spy(method, calls):
    def called(self, *arguments, **how):
        calls.append(arguments)
        return method(self, *arguments, **how)

    return called


def test_a_file_without_a_column_or_with_another_type_is_named(stored_anew):
    folder, store = stored_anew
    table = pq.read_table(folder / "part-1.parquet")
    for other, lacks in (
        (table.drop_columns(["jpeg"]), "jpeg .binary."),
        (table.set_column(0, "image_id", table["meta"]), "image_id .int64."),
    ):
        pq.write_table(other, folder / "part-1.parquet")
        for look in (
            shards.verify_shards,
            shards.splits_of,
            lambda s: shards.files_with(s, {"val"}),
            lambda s: shards.picture_places(s, ["val"]),
        ):
            with pytest.raises(
                UserError, match=f"part-1.parquet lacks {lacks}, so it is no file of these shards"
            ):
                look(store)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "_COMPLETE.json is not valid JSON"),
        (b'{"format": 1, "fi', "_COMPLETE.json is not valid JSON"),
        (b"[]", "is damaged"),
        (b'{"format": 1}', "is damaged .it names no files"),
        (b'{"format": 2, "files": []}', "is of format 2, and this version reads format 1"),
        (
            b'{"format": 1, "files": ["../part-0.parquet"]}',
            "lacks 1 of its 1 files, the first is ../part-0.parquet",
        ),
    ],
)
def test_a_marker_that_is_damaged_or_of_another_format_is_said(stored_anew, content, says):
    folder, store = stored_anew
    (folder / shards.COMPLETE_MARKER).write_bytes(content)
    with pytest.raises(UserError, match=says) as error:
        shards.read_manifest(store)
    assert "write the shards again" in str(error.value)


def test_rows_that_are_no_json_are_named(stored_anew):
    folder, store = stored_anew
    table = pq.read_table(folder / "part-1.parquet")
    for meta, says in (
        ("{", "a row of .*part-1.parquet is not valid JSON"),
        ("{}", "a row of .*part-1.parquet is no row of shards .KeyError: 'objects'"),
        ("[" * 10**5, "inside each other"),
    ):
        pq.write_table(
            table.set_column(3, "meta", [[meta] * len(table)]), folder / "part-1.parquet"
        )
        with pytest.raises(UserError, match=says):
            shards.verify_shards(store)


def test_a_conversion_goes_on_with_the_files_that_are_there(
    scenes, rows, tmp_path, small_files, ray_session
):
    command = [
        "shard",
        "--refer-root",
        str(scenes),
        "--images",
        str(scenes / "images"),
        "--out",
        str(tmp_path / "out"),
    ]
    code, text = ray_session(command)
    assert code == 0, text
    store = filesystem.Filesystem(tmp_path / "out")
    before = shards.read_manifest(store)
    files = sorted((tmp_path / "out").glob("*.parquet"))
    assert len(files) == 5
    (tmp_path / "out" / shards.COMPLETE_MARKER).unlink()
    files[1].unlink()
    # The writer leaves no truncated file, but a copy that was interrupted may be one.
    files[2].write_bytes(files[2].read_bytes()[:500])
    (tmp_path / "out" / "part-00001-0123456789ab.parquet.amlris-draft").write_bytes(b"half")
    (tmp_path / "out" / "part-00000-0123456789ab.parquet").write_bytes(files[0].read_bytes())
    times = {f: f.stat().st_mtime_ns for f in files if f not in files[1:3]}
    code, text = ray_session(
        ["data", "show", str(tmp_path / "out"), "--out", str(tmp_path / "page.html")]
    )
    assert code == 2 and "no complete shards" in text
    code, text = ray_session(command)
    assert code == 0 and "3 of 5 files are there already" in text, text
    assert shards.read_manifest(store) == before == shards.verify_shards(store)
    assert {f: f.stat().st_mtime_ns for f in times} == times and len(
        list((tmp_path / "out").iterdir())
    ) == 5 + 3
