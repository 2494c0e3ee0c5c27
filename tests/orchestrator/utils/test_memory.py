"""Peak memory of a command: its own and that of Ray's workers, shared pages counted once."""

import mmap
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from orchestrator.utils import process_memory

MB = 2**20


def test_the_most_that_was_held_is_kept_though_it_is_given_back():
    before = process_memory.pss_mb()
    with process_memory.PeakMemory() as peak:
        held = mmap.mmap(-1, 200 * MB)
        held.write(b"x" * (200 * MB))
        while peak.mb < before + 190:  # a sample falls into it
            pass
        held.close()
    assert before + 190 < peak.mb < before + 600 and process_memory.pss_mb() < before + 100


@pytest.fixture
def worker():
    """Return a function that starts a child process whose command line begins with a name."""
    running = []

    def start(name: str) -> SimpleNamespace:
        code = (
            "import sys; held = bytearray(b'x') * (100 << 20); "
            "print(1, flush=True); sys.stdin.read()"
        )
        process = subprocess.Popen(
            [name, "-c", code],
            executable=sys.executable,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        running.append(process)
        process.stdout.readline()
        return process

    yield start
    for process in running:
        process.communicate()


def test_ray_s_workers_below_a_process_count_and_other_children_do_not(worker):
    before = process_memory.pss_mb()
    other = worker("raylet")
    assert process_memory.pss_mb() < before + 50
    worker("ray::_write_file")
    assert process_memory.pss_mb() > before + 90
    assert (
        100 < process_memory.pss_mb(other.pid) < 300
        and process_memory._parent(process_memory.Path(f"/proc/{other.pid}")) == os.getpid()
    )
