"""Locks between the processes and threads of one machine."""

import ast
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from aml.errors import UserError
from orchestrator.storage import listing, run as run_module
from orchestrator.utils import locks

ROOT = Path(__file__).parents[3]

HOLD = """
import sys
from pathlib import Path
from orchestrator.utils import locks
with getattr(locks, sys.argv[1])(Path(sys.argv[2])) as held:
    print(held, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder():
    """holder(function, path): a process that holds a lock until it is killed."""
    running = []

    def start(function: str, path: Path) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, function, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        running.append(process)
        assert process.stdout.readline() == "True\n"
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


def kill(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()


def test_a_folder_is_held_by_one_process_which_releases_it_when_it_dies(holder, tmp_path):
    process = holder("exclusive_lock", tmp_path)
    with locks.exclusive_lock(tmp_path, wait=False) as held:
        assert held is False
    kill(process)
    with locks.exclusive_lock(tmp_path, wait=False) as held:
        assert held is True
    assert list(tmp_path.iterdir()) == []


def test_threads_hold_a_folder_one_after_the_other_and_leave_no_file(tmp_path):
    inside = []
    most = []

    def work() -> None:
        for _ in range(20):
            with locks.exclusive_lock(tmp_path / "new") as held:
                inside.append(held)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 80 and list((tmp_path / "new").iterdir()) == []


def test_the_process_that_holds_a_run_is_found_and_named(holder, tmp_path):
    run = run_module.Run(tmp_path / "tiny-01234567", "sweep")
    assert listing.lock_holder(run) is None
    process = holder("process_lock", run.folder / "lock")
    assert listing.lock_holder(run) == process.pid
    named = f"tiny-01234567 is being worked on by process {process.pid}; wait for it, stop it"
    with pytest.raises(UserError, match=named), run.locked():
        pass
    kill(process)
    assert listing.lock_holder(run) is None
    with run.locked():
        assert listing.lock_holder(run) == os.getpid()
        with pytest.raises(UserError, match=f"by process {os.getpid()};"), run.locked():
            pass
    assert listing.lock_holder(run) is None


def test_no_module_imports_at_its_top_what_windows_lacks():
    missing = {"fcntl", "resource", "grp", "pwd", "termios"}
    found = []
    for path in ROOT.glob("orchestrator/**/*.py"):
        for node in ast.parse(path.read_text("utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            found += [(path.relative_to(ROOT).as_posix(), n) for n in names if n in missing]
    assert found == []


def test_processes_that_look_for_the_holder_do_not_see_each_other(tmp_path):
    path = tmp_path / "lock"
    path.write_bytes(b" 1")  # the id that a process left when it died
    found = []

    def look() -> None:
        found.extend(locks.holder_of(path) for _ in range(50))

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [None] * 200


def test_the_holder_of_a_file_that_may_only_be_read_is_found(holder, tmp_path):
    process = holder("process_lock", tmp_path / "lock")
    (tmp_path / "lock").chmod(0o444)
    assert locks.holder_of(tmp_path / "lock") == process.pid
    kill(process)
    assert locks.holder_of(tmp_path / "lock") is None
