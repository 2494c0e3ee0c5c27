"""Joining the Ray that RAY_ADDRESS names, or starting one.

A Ray that cannot be joined or does not start in time is reported in one sentence.
"""

import errno
import logging
import os
import re
import socket
import subprocess
import sys

import pytest
import ray

from aml.errors import RunError, UserError
from orchestrator.cluster import placement, session
from orchestrator.utils import signals
from tests.support.hearing import hear


@pytest.mark.parametrize(
    ("address", "said"),
    [
        (
            "127.0.0.1:9",
            "no Ray answers at 127.0.0.1:9, which RAY_ADDRESS names .Connection refused.; "
            "start it, or unset RAY_ADDRESS",
        ),
        (
            "ray://127.0.0.1:10001",
            "RAY_ADDRESS is ray://127.0.0.1:10001, .*; submit to http://HEAD:8265, or unset",
        ),
        (
            "head",
            "RAY_ADDRESS is head; give HOST:PORT of a cluster's head, auto for the cluster of "
            "this machine, or unset",
        ),
        ("head:port", "RAY_ADDRESS is head:port; give HOST:PORT"),
    ],
)
def test_an_address_where_no_ray_is(address, said, monkeypatch):
    monkeypatch.setattr(
        ray,
        "init",
        lambda *a, **k: pytest.fail("a Ray that is away is waited for more than a minute"),
    )
    with pytest.raises(UserError, match=said):
        session._join_cluster(address)


def refused() -> ConnectionError:
    """Return the error that Ray 2.60 raises where a cluster wants a token, with its cause."""
    error = ConnectionError("Failed to connect to Ray cluster at 127.0.0.1:20000")
    error.__cause__ = RuntimeError(
        "Failed to connect to GCS. ... AuthenticationError: RPC error: InvalidAuthToken: "
        "Authentication token is missing"
    )
    return error


@pytest.mark.parametrize(
    ("address", "error", "said"),
    [
        (
            None,
            refused(),
            "refuses the token it was given, or was given none; export RAY_AUTH_MODE=token",
        ),
        (
            None,
            RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.59.0"),
            "cannot be joined .Version mismatch: .* Ray: 2.59.0",
        ),
        (
            "auto",
            ConnectionError("Could not find any running Ray instance."),
            "RAY_ADDRESS is auto, but no Ray runs on this machine; start it with",
        ),
    ],
)
def test_a_ray_that_does_not_let_join(address, error, said, monkeypatch, listening):
    def init(*where, **how):
        raise error

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(UserError, match=said) as caught:
        session._join_cluster(address or listening)
    assert "\n" not in str(caught.value)


@pytest.fixture
def listening():
    """Yield an address where a server answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_one_that_answers_is_joined(monkeypatch, listening):
    joined = []
    monkeypatch.setattr(ray, "init", lambda *where, **how: joined.append((*where, how)))
    for address in (listening, "auto"):
        session._join_cluster(address)
    assert joined == [
        (listening, session.QUIET),
        ("auto", {"log_to_driver": False, "logging_level": logging.WARNING}),
    ]


def test_an_empty_address_is_none(monkeypatch):
    """Compose files and manifests leave an address empty that was not given."""
    started = []
    monkeypatch.setenv("RAY_ADDRESS", "")
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda *where, **how: started.append(where))
    with signals.restored_handlers():
        session.init_ray()
    assert started == [("local",)]


def test_a_dry_run_plans_for_the_cluster_it_would_join(monkeypatch, unused_port):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert len(placement.planned_nodes()) >= 1
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{unused_port}")
    with pytest.raises(UserError, match=f"no Ray answers at 127.0.0.1:{unused_port}"):
        placement.planned_nodes()


LATE = Exception(
    "The current node timed out during startup. "
    "This could happen because some of the raylet failed to startup"
)


@pytest.fixture
def starting(monkeypatch, tmp_path):
    """Return a function that starts a Ray and returns what was logged and done.

    ray.init starts a process each time. It fails with the given errors in turn, then it succeeds.
    """
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    from ray._private import services

    def start(*errors):
        done = hear([])
        left = list(errors)

        def init(*where, **how):
            begun = services.ConsolePopen([sys.executable, "-c", "import time; time.sleep(600)"])
            done.append(begun)
            if left:
                raise left.pop(0)
            begun.kill()

        monkeypatch.setattr(ray, "init", init)
        monkeypatch.setattr(ray, "shutdown", lambda: done.append("shutdown"))
        try:
            with signals.restored_handlers():
                session.init_ray()
        except Exception as error:
            done.append(error)
        processes = [one for one in done if isinstance(one, subprocess.Popen)]
        assert all(process.wait(60) for process in processes), (
            "the processes of a failed start are ended"
        )
        assert services.ConsolePopen is popen
        return ["init" if one in processes else one for one in done]

    popen = services.ConsolePopen
    return start


AGAIN = "Ray did not start in time on this machine; starting it once more"


@pytest.mark.parametrize(
    "error",
    [
        LATE,
        TimeoutError(),
        RuntimeError("GCS cannot find the node with node ID 12."),
        ray.exceptions.RayError("Timed out after 30 seconds"),
    ],
)
def test_a_ray_that_is_late_is_started_once_more(starting, error):
    assert starting(error) == ["init", "shutdown", AGAIN, "init"]


def test_a_ray_that_is_late_twice_ends_the_command_with_its_logs_named(starting, tmp_path):
    for name in (
        f"session_2026-01-01_{os.getpid()}",
        f"session_2026-01-02_{os.getpid()}",
        "session_2026-01-03_1",
    ):
        (tmp_path / "ray" / name).mkdir(parents=True)
    *did, error = starting(LATE, LATE)
    assert did == ["init", "shutdown", AGAIN, "init", "shutdown"]
    logs = tmp_path / "ray" / f"session_2026-01-02_{os.getpid()}" / "logs"
    assert (
        isinstance(error, RunError)
        and f"its logs are in {logs}" in str(error)
        and "\n" not in str(error)
    )


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "make room in .*by RAY_TMPDIR"),
        (PermissionError(errno.EROFS, "Read-only file system"), "another folder.* by RAY_TMPDIR"),
        (ValueError("the object store\nneeds 78 MB"), "the object store needs 78 MB"),
        (RuntimeError("the raylet died; port 6379 is in use"), "port 6379 is in use"),
        (AssertionError(), "AssertionError"),
    ],
)
def test_a_ray_that_cannot_start_ends_the_command_in_one_sentence(starting, error, says):
    *did, failure = starting(error)
    assert did == ["init", "shutdown"]
    assert isinstance(failure, RunError)
    assert "Ray cannot start on this machine" in str(failure)
    assert "its logs are in" in str(failure)
    assert re.search(says, str(failure))
    assert "\n" not in str(failure)


def test_one_that_starts_is_started_once(starting):
    assert starting() == ["init"]
