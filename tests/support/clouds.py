"""Servers of this machine that answer as Google's, Azure's and Hugging Face's stores of files do.

Each knows the requests that pyarrow and huggingface_hub make for files, and no others; objects are
kept in `objects` by their paths, with the name of the bucket in front.
"""

import datetime
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

TOKEN = "hf_plantedForTheHub"  # noqa: S105 (planted)
"""What a request to the hub must bring."""

TRAILING = "includeTrailingDelimiter"
"""The option by which Google lists the markers of folders beside files."""

DATE = "Sun, 29 Nov 2026 00:00:00 GMT"


class Store(BaseHTTPRequestHandler):
    """Answers the requests for the objects of `self.server`; `answer` is a store's own."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self):
        url = urlsplit(self.path)
        self.query = {key: one[0] for key, one in parse_qs(url.query, True).items()}
        self.body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if "chunked" in self.headers.get("transfer-encoding", ""):
            while size := int(self.rfile.readline(), 16):
                self.body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        self.answer(url.path)

    do_PUT = do_POST = do_HEAD = do_DELETE = do_GET

    def log_message(self, *_):
        pass

    def send(self, body: bytes | dict = b"", code: int = 200, **headers: object) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def send_range(self, data: bytes, **headers: object) -> None:
        """Send the bytes that the request asks for."""
        wanted = self.headers.get("x-ms-range") or self.headers.get("range") or "bytes=0-"
        first, last = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted).groups()
        start, stop = int(first), min(int(last or len(data)) + 1, len(data))
        if start >= max(len(data), 1):
            return self.send(b"", 416)
        span = f"bytes {start}-{stop - 1}/{len(data)}"
        return self.send(data[start:stop], 206, Content_Range=span, **headers)

    def listed(self, bucket: str, prefix: str, delimiter: str) -> tuple[dict[str, bytes], set[str]]:
        """Return the objects under a prefix by name, and the folders beside them."""
        found, folders = {}, set()
        for path, data in sorted(self.server.objects.items()):
            name = path.removeprefix(f"{bucket}/")
            if name == path or not name.startswith(prefix):
                continue
            head, slash, rest = name[len(prefix) :].partition("/")
            if delimiter and slash:
                folders.add(prefix + head + "/")
            if not (delimiter and slash) or (not rest and TRAILING in self.query):
                found[name] = data
        return found, folders


class Google(Store):
    """Answers as Google's JSON interface."""

    def answer(self, path: str) -> None:
        objects = self.server.objects
        found = re.search(r"/b/([^/]+)(?:/o(?:/([^/]+))?)?(?:/rewriteTo/b/([^/]+)/o/(.+))?$", path)
        bucket, name, other, target = (unquote(one or "") for one in found.groups())
        key = f"{bucket}/{name}"
        if path.startswith("/upload/"):
            key = f"{bucket}/{self.query['name']}"
            if self.query["uploadType"] == "multipart":  # the marker of a folder
                objects[key] = b""
                self.server.markers.add(key)
            elif self.command == "POST":
                here = f"http://{self.headers['host']}{self.path}&upload_id=1"
                return self.send({}, Location=here)
            else:
                objects[key] = self.body
        elif other:
            objects[f"{other}/{target}"] = objects[key]
            resource = self.resource(f"{other}/{target}")
            return self.send(
                {"kind": "storage#rewriteResponse", "done": True, "resource": resource}
            )
        elif not name:
            if not path.endswith("/o"):
                return self.send({"kind": "storage#bucket", "name": bucket})
            prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter", "")
            files, folders = self.listed(bucket, prefix, delimiter)
            items = [self.resource(f"{bucket}/{name}") for name in files]
            return self.send({"items": items, "prefixes": sorted(folders)})
        elif key not in objects:
            return self.send({"error": {"code": 404, "message": "Not Found"}}, 404)
        elif self.command == "DELETE":
            del objects[key]
            return self.send(code=204)
        elif self.query.get("alt") == "media":
            if self.headers.get("range"):
                return self.send_range(objects[key], X_Goog_Generation=1)
            return self.send(objects[key], X_Goog_Generation=1)
        return self.send(self.resource(key))

    def resource(self, key: str) -> dict:
        bucket, _, name = key.partition("/")
        now = datetime.datetime.now(datetime.UTC).isoformat().replace("+00:00", "Z")
        size = str(len(self.server.objects[key]))
        return {
            **{"kind": "storage#object", "bucket": bucket, "name": name, "size": size},
            **{"generation": "1", "updated": now, "timeCreated": now},
            "metadata": {"arrow/gcsfs": "directory"} if key in self.server.markers else {},
        }


CONTAINER = {
    **{"x_ms_has_immutability_policy": "false", "x_ms_has_legal_hold": "false"},
    **{"x_ms_lease_state": "available", "x_ms_lease_status": "unlocked"},
    **{"x_ms_default_encryption_scope": "x", "x_ms_deny_encryption_scope_override": "false"},
}
"""What Azure says of a container."""


class Azure(Store):
    """Answers as the blob service of an account without folders."""

    def answer(self, path: str) -> None:
        objects, key = self.server.objects, unquote(path).split("/", 2)[2].rstrip("/")
        account_part = {"x_ms_version": "2020-02-10", "Last_Modified": DATE, "ETag": '"1"'}
        what = self.query.get("comp", "")
        if self.query.get("action"):
            return self.send(b"", 400)
        if self.query.get("restype") == "container" and what != "list":
            return self.send(b"", **CONTAINER, **account_part)
        if what == "list":
            return self.send(self.listing(key), Content_Type="application/xml", **account_part)
        if what == "block":
            self.server.blocks[key, self.query["blockid"]] = self.body
        elif what == "blocklist":
            ids = re.findall(r">([^<>\s]+)</(?:Latest|Uncommitted|Committed)>", self.body.decode())
            objects[key] = b"".join(self.server.blocks[key, one] for one in ids)
        elif self.command == "PUT" and not what:
            if source := self.headers.get("x-ms-copy-source"):
                objects[key] = objects[unquote(urlsplit(source).path).split("/", 2)[2]]
                return self.send(
                    b"", 202, x_ms_copy_id="1", x_ms_copy_status="success", **account_part
                )
            objects[key] = self.body
        elif key not in objects:
            return self.send(b"", 404, x_ms_error_code="BlobNotFound")
        elif what == "lease":
            return self.send(b"", 201, x_ms_lease_id=self.lease(), **account_part)
        elif self.command == "DELETE":
            del objects[key]
            return self.send(b"", 202)
        else:
            blob = {
                **{"x_ms_blob_type": "BlockBlob", "x_ms_creation_time": DATE},
                **{"x_ms_lease_state": "available", "x_ms_lease_status": "unlocked"},
                **{"x_ms_server_encrypted": "true", "Content_Type": "application/octet-stream"},
                **{"x_ms_copy_id": "1", "x_ms_copy_status": "success", "Accept_Ranges": "bytes"},
            }
            if self.command == "HEAD":
                size = len(objects[key])
                return self.send(b"", Content_Length=size, **blob, **account_part)
            return self.send_range(objects[key], **blob, **account_part)
        return self.send(b"", 201, x_ms_request_server_encrypted="true", **account_part)

    def lease(self) -> str:
        return self.headers.get("x-ms-proposed-lease-id") or "00000000-0000-0000-0000-000000000001"

    def listing(self, container: str) -> bytes:
        prefix = self.query.get("prefix", "")
        files, folders = self.listed(container, prefix, self.query.get("delimiter", ""))
        blobs = [
            f"<Blob><Name>{escape(name)}</Name><Properties><Last-Modified>{DATE}</Last-Modified>"
            f"<Creation-Time>{DATE}</Creation-Time><Etag>1</Etag>"
            f"<Content-Length>{len(data)}</Content-Length><BlobType>BlockBlob</BlobType>"
            "</Properties></Blob>"
            for name, data in files.items()
        ]
        blobs += [f"<BlobPrefix><Name>{escape(one)}</Name></BlobPrefix>" for one in folders]
        return (
            f'<?xml version="1.0" encoding="utf-8"?><EnumerationResults><Prefix>{prefix}</Prefix>'
            f"<Blobs>{''.join(blobs)}</Blobs><NextMarker/></EnumerationResults>"
        ).encode()


class Hub(Store):
    """Answers as the hub of data sets for reading; a bucket is `OWNER/NAME`."""

    def answer(self, path: str) -> None:
        found = re.match(r"(/api)?/datasets/([^/]+/[^/]+)(?:/([a-z-]+)/main)?(?:/(.*))?$", path)
        if not found or self.headers.get("authorization") != f"Bearer {TOKEN}":
            return self.send({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        _, repo, verb, inner = found.groups()
        key = f"{repo}/{unquote(inner or '')}".rstrip("/")
        if verb in (None, "revision"):
            return self.send({"id": repo, "sha": "1" * 40, "siblings": []})
        if verb == "resolve":
            if key not in self.server.objects:
                return self.send({"error": "no such file"}, 404, X_Error_Code="EntryNotFound")
            headers = {"ETag": '"1"', "X_Repo_Commit": "1" * 40}
            return self.send_range(self.server.objects[key], **headers)
        prefix = f"{key}/".removeprefix(f"{repo}/")
        if verb == "paths-info":
            names = parse_qs(self.body.decode()).get("paths") or json.loads(self.body)["paths"]
            files = {name: self.server.objects.get(f"{repo}/{name}") for name in names}
            found = [self.entry(*one) for one in files.items() if one[1] is not None]
            inside = [n for n in names if self.listed(repo, f"{n}/", "")[0]]
            found += [{"type": "directory", "path": name, "oid": "1"} for name in inside]
            return self.send(json.dumps(found).encode())
        files, folders = self.listed(repo, "" if prefix == "/" else prefix, "/")
        if not files and not folders:
            return self.send({"error": "no such folder"}, 404, X_Error_Code="EntryNotFound")
        entries = [self.entry(*one) for one in files.items()]
        entries += [{"type": "directory", "path": f.rstrip("/"), "oid": "1"} for f in folders]
        return self.send(json.dumps(entries).encode())

    def entry(self, path: str, data: bytes) -> dict:
        return {"type": "file", "path": path, "size": len(data), "oid": "1"}


@contextmanager
def serving(kind: str, objects: Path | None = None) -> Iterator[str]:
    """Run a server in a process of its own, and yield its HOST:PORT.

    pyarrow keeps Python's lock in some requests, so that no thread of its process could answer.

    Args:
        kind: "Google", "Azure" or "Hub".
        objects: a folder whose files are served.
    """
    command = [sys.executable, "-m", "tests.support.clouds", kind, str(objects or "")]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as server:
        yield f"127.0.0.1:{server.stdout.readline().strip()}"
        server.kill()


def main(kind: str, folder: str) -> None:
    """Serve until the process is killed; the port is printed first."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), {k.__name__: k for k in STORES}[kind])
    files = [path for path in Path(folder).rglob("*") if folder and path.is_file()]
    server.objects = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    server.blocks, server.markers = {}, set()
    print(server.server_port, flush=True)
    server.serve_forever()


STORES = (Google, Azure, Hub)

if __name__ == "__main__":
    main(*sys.argv[1:])
