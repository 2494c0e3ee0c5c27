"""Shards on S3-compatible storage, against a server of this machine.

They are written, read and decoded without a local copy; damage and absence are reported.
"""

import io
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aml.data.batches import train_batches
from aml.data.dataset import Items
from aml.errors import Unreachable, UserError
from orchestrator.data import decoded, shards, streaming
from orchestrator.storage import filesystem
from tests.support.stores import hand_row, write_store

KEYS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@pytest.fixture(scope="module")
def server():
    """Yield a client of an S3 server with one bucket, and the query that leads an address to it."""
    moto = pytest.importorskip(
        "moto.server", reason="moto is not installed: install requirements-dev.txt"
    )
    import boto3

    before = {name: os.environ.get(name) for name in KEYS}
    os.environ.update(KEYS)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    _, port = running.get_host_and_port()
    client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}")
    client.create_bucket(Bucket="amlris")
    yield client, f"?scheme=http&endpoint_override=127.0.0.1:{port}"
    running.stop()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


@pytest.fixture(scope="module")
def written(server, scenes, ray_session, tmp_path_factory):
    """Return the address of the scenes' shards, the printed text, and the current folder."""
    client, query = server
    folder, before = tmp_path_factory.mktemp("here"), Path.cwd()
    uri = f"s3://amlris/team/scenes{query}"
    os.chdir(folder)
    try:
        code, text = ray_session(
            [
                "shard",
                "--refer-root",
                str(scenes),
                "--images",
                str(scenes / "images"),
                "--dataset",
                "refcoco",
                "--split-by",
                "unc",
                "--out",
                uri,
            ]
        )
        assert code == 0, text
        code, verified = ray_session(["shard", "--verify", uri])
        assert code == 0, verified
    finally:
        os.chdir(before)
    return uri, text + verified, folder


def names(client) -> set[str]:
    return {
        o["Key"].rpartition("/")[2]
        for o in client.list_objects_v2(Bucket="amlris", Prefix="team/scenes/").get("Contents", [])
    } - {""}


def test_shards_are_written_to_the_bucket_alone(written, server):
    _, text, folder = written
    found = names(server[0])
    assert (
        {"_COMPLETE.json", "vocabulary.json"} < found
        and any(n.endswith(".parquet") for n in found)
        and not any(n.endswith(".amlris-draft") for n in found)
    )
    assert "is whole" in text and list(folder.rglob("*")) == []


def test_rows_read_back_are_the_rows_written(written, rows):
    store = filesystem.Filesystem(written[0])
    places = shards.picture_places(store, ["train", "val", "testA", "testB"])
    read = {row["image_id"]: row for row in shards.read_rows(store, places)}
    assert len(read) == len(rows) == shards.read_manifest(store)["images"]
    for row in rows:
        back = read[row["image_id"]]
        assert back["jpeg"] == Path(row["path"]).read_bytes() and back["refs"] == row["refs"]


def test_a_cluster_decodes_from_the_bucket(written, rows):
    blocks = decoded.decode_shards(
        decoded.ShardSelection(filesystem.Filesystem(written[0]), frozenset({"val"}), {}),
        32,
        "square",
    ).open()
    wanted = sum(any(r["split"] == "val" for r in row["refs"]) for row in rows)
    assert sum(len(b["image"]) for b in blocks) == wanted > 0 and blocks[0]["image"].shape[1:] == (
        32,
        32,
        3,
    )


def test_writing_again_leaves_complete_shards_as_they_are(written, server, scenes, ray_session):
    client, _ = server
    times = {
        o["Key"]: o["LastModified"] for o in client.list_objects_v2(Bucket="amlris")["Contents"]
    }
    code, text = ray_session(
        [
            "shard",
            "--refer-root",
            str(scenes),
            "--images",
            str(scenes / "images"),
            "--dataset",
            "refcoco",
            "--split-by",
            "unc",
            "--out",
            written[0],
        ]
    )
    assert code == 0, text
    assert {
        o["Key"]: o["LastModified"] for o in client.list_objects_v2(Bucket="amlris")["Contents"]
    } == times


def test_a_missing_or_cut_off_object_is_named(written, server, ray_session):
    client, query = server
    for o in client.list_objects_v2(Bucket="amlris", Prefix="team/scenes/")["Contents"]:
        body = client.get_object(Bucket="amlris", Key=o["Key"])["Body"].read()
        if o["Key"].endswith(".parquet"):
            lost, kept = o["Key"].rpartition("/")[2], body
        client.put_object(Bucket="amlris", Key=o["Key"].replace("scenes", "broken"), Body=body)
    client.put_object(Bucket="amlris", Key=f"team/broken/{lost}", Body=kept[: len(kept) // 2])
    code, text = ray_session(["shard", "--verify", f"s3://amlris/team/broken{query}"])
    assert code == 2 and lost in text and "is damaged" in text
    client.delete_object(Bucket="amlris", Key=f"team/broken/{lost}")
    code, text = ray_session(["shard", "--verify", f"s3://amlris/team/broken{query}"])
    assert code == 2 and f"the first is {lost}" in text
    code, text = ray_session(["shard", "--verify", f"s3://amlris/team/absent{query}"])
    assert code == 2 and "has no _COMPLETE.json" in text


# ---- how much is read ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(server, tmp_path_factory):
    """Return shards of 10 MB on S3, which are large compared with the footers of their files.

    They hold 48 pictures that compress badly; those of val are in files of their own.
    """
    client, query = server
    rng, square = np.random.default_rng(0), np.zeros((280, 280), bool)
    square[50:90, 60:200] = True
    rows = []
    for k in range(48):
        jpeg = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (280, 280, 3), np.uint8)).save(
            jpeg, "JPEG", quality=97
        )
        split = "val" if k % 6 == 0 else "train"
        rows.append(
            hand_row([square], [(1, ["left one", "the bar"])], image_id=k, split=split)
            | {"jpeg": jpeg.getvalue()}
        )
    here = write_store(tmp_path_factory.mktemp("large") / "shards", rows, files=6)
    there = filesystem.Filesystem(f"s3://amlris/large{query}")
    for name in here.names():
        there.write(name, here.read(name))
    return there, sum(len(row["jpeg"]) for row in rows if row["refs"][0]["split"] == "train")


@pytest.fixture
def asked(server, monkeypatch):
    """Return a list that receives (object, bytes of the answer) of each request from now on."""
    from werkzeug.serving import WSGIRequestHandler

    client, _ = server
    found = []

    def log(handler, *_):
        name = handler.path.partition("?")[0].removeprefix("/amlris/")
        if handler.command == "GET" and name.endswith(".parquet"):
            size = client.head_object(Bucket="amlris", Key=name)["ContentLength"]
            part = re.fullmatch(r"bytes=(\d+)-(\d+)", handler.headers.get("Range", ""))
            found.append((name, min(int(part[2]) + 1, size) - int(part[1]) if part else size))

    monkeypatch.setattr(WSGIRequestHandler, "log_request", log)
    return found


TRAIN = frozenset({"train"})


def test_a_window_reads_each_picture_once_an_epoch_and_no_files_of_other_splits(
    large, asked, make_model
):
    store, size = large
    model = make_model()
    for rank in range(2):
        asked.clear()
        items = Items(
            streaming.StreamingBlocks(
                (decoded.ShardSelection(store, TRAIN, {}),), 64, "square"
            ).open(),
            "train",
            size=64,
        )
        opening = sum(n for _, n in asked)
        assert opening < 0.1 * size
        for epoch in range(2):
            asked.clear()
            list(train_batches(items, model, batch=8, seed=0, epoch=epoch, rank=rank, world=2))
            groups = len(items.blocks.pictures.groups)
            assert (
                0.5 * size < sum(n for _, n in asked) < 1.02 * size and len(asked) <= groups
            )  # a row group, one request


def test_a_cluster_reads_each_picture_once_for_all_trials(large, asked, ray_session):
    store, size = large
    shared = decoded.decode_shards(decoded.ShardSelection(store, TRAIN, {}), 64, "square")
    assert 0.9 * size < sum(n for _, n in asked) < 1.1 * size
    asked.clear()
    for _ in range(2):
        assert sum(len(b["image"]) for b in shared.open()) == 40
    assert asked == []


def test_what_a_node_that_decodes_cannot_reach_is_said_in_one_sentence(
    rows, ray_session, tmp_path, capfd
):
    class Away(decoded.ShardSelection):
        def filter_row(self, splits, meta):
            raise Unreachable("s3://b does not answer from there")

    part = Away(
        write_store(tmp_path / "shards", rows[:4]),
        frozenset({"train", "val", "testA", "testB"}),
        {},
    )
    with pytest.raises(Unreachable, match="^s3://b does not answer from there$"):
        decoded.decode_shards(part, 32, "square")
    assert "Traceback" not in "".join(capfd.readouterr())


def test_an_endpoint_that_is_away_is_said_in_one_sentence(unused_port, monkeypatch):
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    store = filesystem.Filesystem(
        f"s3://amlris/team/scenes?scheme=http&endpoint_override=127.0.0.1:{unused_port}"
    )
    with pytest.raises(
        UserError,
        match=f"127.0.0.1:{unused_port} cannot be reached .*; check the endpoint, the bucket",
    ):
        shards.read_manifest(store)


def test_a_bucket_that_is_away_is_no_damage(unused_port, monkeypatch):
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    store = filesystem.Filesystem(
        f"s3://amlris/team/scenes?scheme=http&endpoint_override=127.0.0.1:{unused_port}",
        impatient=True,
    )
    with (
        pytest.raises(Unreachable, match="scenes/part-0.parquet.* cannot be reached"),
        shards.open_file(store, "part-0.parquet"),
    ):
        pass


def test_a_window_waits_for_a_bucket_that_is_away_and_gives_it_up_in_the_end(large, monkeypatch):
    monkeypatch.setattr(streaming, "RETRY_PAUSE_S", 0)
    groups, failures = (
        streaming.RowGroupReader((decoded.ShardSelection(large[0], TRAIN, {}),), 64, "square"),
        [3],
    )
    read = groups._read

    def away(group):
        failures[0] -= 1
        if failures[0] >= 0:
            raise Unreachable("away")
        return read(group)

    groups._read = away
    assert groups.read(0) == read(groups.groups[0]) and failures == [-1]
    monkeypatch.setattr(streaming, "UNREACHABLE_LIMIT_S", -1)
    failures[0] = 3
    with pytest.raises(Unreachable):
        groups.read(0)


def test_patience_with_a_bucket_does_not_hold_up_the_end_of_a_process():
    code = """
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from aml.errors import Unreachable
from orchestrator.data import streaming

asked = Event()

def away():
    asked.set()
    raise Unreachable("away")

streaming.RETRY_PAUSE_S = 0.1
ThreadPoolExecutor(1).submit(streaming.retry_unreachable, away)
asked.wait()
"""
    subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=120, cwd=Path(__file__).parents[3]
    )  # it would wait for ten minutes


def test_a_window_waits_for_its_annotations_too(large, monkeypatch):
    monkeypatch.setattr(streaming, "RETRY_PAUSE_S", 0)
    parts, read, failures = (
        (decoded.ShardSelection(large[0], TRAIN, {}),),
        streaming._annotations,
        [3],
    )
    there = streaming.RowGroupReader(parts, 64, "square")

    def away(*of):
        failures[0] -= 1
        if failures[0] >= 0:
            raise Unreachable("away")
        return read(*of)

    monkeypatch.setattr(streaming, "_annotations", away)
    assert streaming.RowGroupReader(parts, 64, "square").meta == there.meta and failures[0] < 0
    monkeypatch.setattr(streaming, "UNREACHABLE_LIMIT_S", -1)
    failures[0] = 1
    with pytest.raises(Unreachable):
        streaming.RowGroupReader(parts, 64, "square")


def test_an_address_with_keys_in_it_is_refused_without_repeating_them():
    with pytest.raises(UserError, match="holds keys") as refused:
        filesystem.Filesystem("s3://AKIAPLANTED:planted@amlris/team/scenes")
    assert "planted" not in str(refused.value).lower()
