"""Processes that a test stages and kills: found again by a mark in their environment, whoever started them and wherever they hang."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(condition, *, log: Path | None = None, process: subprocess.Popen | None = None, seconds: float = 500):
    """What condition() returns once it is true. AssertionError, with the log, where it does not come true or the process ends before."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        over = process is not None and process.poll() is not None
        assert not over and time.monotonic() < deadline, log.read_text("utf-8", "replace") if log else "it did not come true"
        time.sleep(0.05)
    return found


class Stage:
    """Starts processes with a clean environment, a mark that all their children inherit, and temporary folders of their own."""

    def __init__(self, **environment: str):
        self.folder = Path(tempfile.mkdtemp(prefix="a", dir="/tmp"))  # noqa: S108 (a socket's path must be short)
        self.temporary = self.folder / "tmp"
        self.temporary.mkdir()
        self.mark = f"AMLRIS_STAGE={uuid.uuid4().hex}"
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "AMLRIS_", "MLFLOW_"))}
        self.environment = clean | {"PATH": f"{BIN}:{os.environ['PATH']}", "RAY_USAGE_STATS_ENABLED": "0", "TMPDIR": str(self.temporary)}
        self.environment |= dict([self.mark.split("=")]) | environment
        self.logs = 0

    def start(self, command: list, **more: str) -> tuple[subprocess.Popen, Path]:
        """In a session of its own.   -> the process, the file of what it prints"""
        self.logs += 1
        log = self.folder / f"{self.logs}.log"
        with open(log, "w") as out:
            environment = self.environment | more
            process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
        return process, log

    def orchestrator(self, *arguments: object, **more: str) -> tuple[subprocess.Popen, Path]:
        return self.start([sys.executable, "-m", "orchestrator", *map(str, arguments)], **more)

    def has(self, pid: int, *marks: str) -> bool:
        """Whether the process is of this stage, and its environment has these (or what begins so)."""
        try:
            found = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            return False
        return all(any(one.startswith(mark.encode()) for one in found) for mark in (self.mark, *marks))

    def alive(self, *marks: str) -> dict[int, str]:
        """The processes that have the mark, and those of start() that are asked for: their command lines. What waits to be reaped is none."""
        found = {}
        for pid in (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()):
            if self.has(pid, *marks):
                with contextlib.suppress(OSError):
                    found[pid] = Path(f"/proc/{pid}/cmdline").read_text("utf-8", "replace").replace("\0", " ").strip()
        return found

    def kill(self, *marks: str) -> None:
        """SIGKILL for all of them, by their ids, and for what they start meanwhile."""
        while alive := self.alive(*marks):
            for pid in alive:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
