"""An S3 server of this machine, its buckets, and machines that share nothing but a bucket."""

import contextlib
import logging
import os
import socket
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.storage.paths import storage_root

KEYS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
}


def serve():
    """Return a running server, a client of it, and the query that leads an address to it.

    The caller stops the server.
    """
    import boto3
    import moto.server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = moto.server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    _, port = running.get_host_and_port()
    client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}")
    return running, client, f"?scheme=http&endpoint_override=127.0.0.1:{port}"


@dataclass
class Bucket:
    """A bucket: `uri` is its address, and keys are relative to it."""

    client: object
    name: str
    query: str

    @property
    def uri(self) -> str:
        return f"s3://{self.name}/team{self.query}"

    def get(self, key: str) -> bytes:
        return self.client.get_object(Bucket=self.name, Key=f"team/{key}")["Body"].read()

    def put(self, key: str, body: bytes) -> None:
        self.client.put_object(Bucket=self.name, Key=f"team/{key}", Body=body)

    def has(self, key: str) -> bool:
        return any(k == key for k in objects(self))


def objects(bucket: Bucket) -> dict[str, object]:
    """Return {key: time of writing} of every object except markers of folders."""
    pages = bucket.client.get_paginator("list_objects_v2").paginate(
        Bucket=bucket.name, Prefix="team/"
    )
    return {
        o["Key"].removeprefix("team/"): o["LastModified"]
        for page in pages
        for o in page.get("Contents", [])
        if not o["Key"].endswith("/")
    }


class Line:
    """A connection to the server of a bucket that a test can make slow, or silent.

    While it is silent, clients can connect but get no answer.
    """

    def __init__(self, bucket: Bucket):
        _, _, self.port = bucket.query.rpartition(":")
        self.delay_s, self.open = 0.0, threading.Event()
        self.open.set()
        self.listening = socket.create_server(("127.0.0.1", 0))
        here = f"127.0.0.1:{self.listening.getsockname()[1]}"
        self.bucket = replace(bucket, query=bucket.query.replace(f"127.0.0.1:{self.port}", here))
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self.open.set()
        self.listening.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                caller, _ = self.listening.accept()
                server = socket.create_connection(("127.0.0.1", int(self.port)))
                for ends in ((caller, server), (server, caller)):
                    threading.Thread(target=self._carry, args=ends, daemon=True).start()

    def _carry(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(2**16):
                time.sleep(self.delay_s)
                self.open.wait()
                other.sendall(data)
        for end in (one, other):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@dataclass
class Machine:
    """Switch this process to another machine: `machine(name)` returns its storage root."""

    folder: Path
    monkeypatch: object

    def __call__(self, name: str) -> Path:
        self.monkeypatch.setenv("XDG_CACHE_HOME", str(self.folder / name))
        return storage_root(os.environ["AMLRIS_HOME"])
