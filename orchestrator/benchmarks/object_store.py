"""Measure reading shards from, and writing them to, an S3 server on this machine."""

import json
import logging
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from aml.data import READERS
from orchestrator import storage
from orchestrator.data import COMPLETE_MARKER, RowGroupReader, ShardSelection, read_manifest

FILES = 2
"""Shard files that go through the server, which keeps them in memory."""


def measure_object_store(store: storage.Filesystem) -> dict[str, float]:
    """Return MB/s to and from an S3 server in this process.

    The rates are limited by the code around the network, not by a network.

    Args:
        store: Shards on local disk.
    """
    manifest = read_manifest(store)
    some = manifest | {"files": manifest["files"][-FILES:]}
    files = {name: store.read(name) or b"" for name in some["files"]}
    files[COMPLETE_MARKER] = json.dumps(some).encode()
    written_mb = sum(map(len, files.values())) / 1e6
    with s3_server() as query:
        remote = storage.Filesystem(f"s3://bench/shards{query}")
        start = time.perf_counter()
        for name, data in files.items():
            remote.write(name, data)
        write_s = time.perf_counter() - start
        splits = frozenset(read_manifest(remote)["splits"])
        groups = RowGroupReader((ShardSelection(remote, splits, {}),), 8, "square")
        start = time.perf_counter()
        with ThreadPoolExecutor(READERS) as pool:
            blocks = pool.map(groups.read, range(len(groups.meta)))
            read_mb = sum(len(jpeg) for jpegs in blocks for jpeg in jpegs) / 1e6
        read_s = time.perf_counter() - start
    return {"s3_write_mb_s": written_mb / write_s, "s3_read_mb_s": read_mb / read_s}


@contextmanager
def s3_server() -> Iterator[str]:
    """Run a local S3 server with the bucket `bench`.

    Yields:
        The query that leads an s3:// address to this server.
    """
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
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value
