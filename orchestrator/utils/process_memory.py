"""Memory of this process and of the Ray workers it started: the sum of their proportional set sizes, so that shared pages count once.

Ray's own daemons are left out: what they hold does not depend on what a command does.
"""

import os
import threading
from contextlib import suppress
from pathlib import Path

SAMPLED_EVERY_S = 0.2


def pss_mb(root: int | None = None) -> float:
    """MiB held now by process `root` (default: this one) and the Ray workers below it."""
    root = os.getpid() if root is None else root
    parents = {
        int(folder.name): parent
        for folder in Path("/proc").iterdir()
        if folder.name.isdigit() and (parent := _parent(folder))
    }
    workers = [pid for pid in parents if _below(pid, root, parents) and _is_ray_worker(pid)]
    return sum(map(_pss_kb, [root, *workers])) / 1024


class PeakMemory:
    """with Peak() as peak: ...   then peak.mb is the most that was held at a sample."""

    def __init__(self, root: int | None = None):
        self.root, self.mb, self.over = root, 0.0, threading.Event()
        self.thread = threading.Thread(target=self._watch, name="memory", daemon=True)

    def __enter__(self) -> "PeakMemory":
        self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.over.set()
        self.thread.join()

    def _watch(self) -> None:
        last = False
        while not last:
            last = self.over.wait(SAMPLED_EVERY_S)  # set: one last look
            self.mb = max(self.mb, pss_mb(self.root))


# Processes end while they are looked at: what is gone counts nothing.


def _parent(folder: Path) -> int | None:
    with suppress(OSError):
        return int((folder / "stat").read_text().rpartition(")")[2].split()[1])


def _below(pid: int, root: int, parents: dict[int, int]) -> bool:
    while pid := parents.get(pid, 0):
        if pid == root:
            return True
    return False


def _is_ray_worker(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::")
    return False


def _pss_kb(pid: int) -> int:
    with suppress(OSError):
        return next(
            int(line.split()[1])
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            if line.startswith("Pss:")
        )
    return 0
