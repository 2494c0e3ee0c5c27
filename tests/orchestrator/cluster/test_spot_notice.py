"""cluster/spot.sh hands the notice of a spot market on to Ray."""

import os
import shlex
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml

from tests.orchestrator.cluster.test_cluster_files import CLUSTER


def test_the_markets_notice_is_handed_on_to_ray(tmp_path):
    """A metadata service as AWS has it: a token first, and 404 until there is a notice."""
    asked = []

    class Metadata(BaseHTTPRequestHandler):
        def answer(self, code: int, text: bytes = b"") -> None:
            asked.append((self.command, self.path, self.headers.get("X-aws-ec2-metadata-token")))
            self.send_response(code)
            self.end_headers()
            self.wfile.write(text)

        def do_PUT(self):
            self.answer(
                200 if self.headers.get("X-aws-ec2-metadata-token-ttl-seconds") else 400, b"t0ken"
            )

        def do_GET(self):
            self.answer(200 if len(asked) > 4 else 404, b'{"action": "terminate"}')

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    (tmp_path / "ray").write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    (tmp_path / "ray").chmod(0o755)
    where = {
        "AWS_EC2_METADATA_SERVICE_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "SPOT_POLL_S": "0.05",
    }
    environment = (
        os.environ | where | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "TMPDIR": str(tmp_path)}
    )
    done = subprocess.run(
        ["bash", CLUSTER / "spot.sh"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    server.shutdown()
    assert done.stdout.splitlines()[0] == "drain-node" and asked[:2] == [
        ("PUT", "/latest/api/token", None),
        ("GET", "/latest/meta-data/spot/instance-action", "t0ken"),
    ]
    assert len(asked) == 6, "it asks until there is a notice, and then no more"


@pytest.mark.parametrize("code", [0, 1])
def test_a_worker_of_the_launcher_waits_for_the_markets_notice_where_its_ray_started(
    code, filled, tmp_path
):
    config = yaml.safe_load(filled["aws.yaml"])
    (tmp_path / "amlris-env" / "bin").mkdir(parents=True)
    (tmp_path / "amlris-env" / "bin" / "ray").write_text(f"#!/bin/bash\nexit {code}\n")
    (tmp_path / "amlris-env" / "bin" / "ray").chmod(0o755)
    assert config["file_mounts"]["~/spot.sh"] == "cluster/spot.sh"
    os.mkfifo(tmp_path / "heard")
    (tmp_path / "spot.sh").write_text('echo "$RAY_AUTH_MODE" > ~/heard\n')
    # The launcher wraps the command in the same way.
    wrapped = f"export OMP_NUM_THREADS=1 && ({config['worker_start_ray_commands'][-1]})"
    done = subprocess.run(
        ["bash", "-c", wrapped],
        env=os.environ | {"HOME": str(tmp_path), "RAY_HEAD_IP": "head"},
        check=False,
    )
    assert done.returncode == code, "the launcher is told of a Ray that did not start"
    if code == 0:
        assert (
            subprocess.check_output(["cat", tmp_path / "heard"], timeout=60) == b"token\n"
        )  # it waits for the writer
    assert (tmp_path / "spot.log").exists() == (code == 0)


def test_the_markets_notice_is_told_as_ray_takes_it():
    from ray.scripts.scripts import drain_node

    text = (CLUSTER / "spot.sh").read_text("utf-8")
    given = drain_node.make_context(
        "drain-node", shlex.split(text.split("ray drain-node")[1].splitlines()[0])
    ).params
    assert (
        given["reason"] == "DRAIN_NODE_REASON_PREEMPTION"
        and given["reason_message"]
        and given["deadline_remaining_seconds"] < 120
    )
