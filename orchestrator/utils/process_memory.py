"""Memory of this process and of the Ray workers below it, measured on Linux.

The sum of the proportional set sizes (PSS) is taken, so that a shared page counts once. Ray's own
daemons are left out: what they hold does not depend on what a command does.
"""

import os
import threading
from contextlib import suppress
from pathlib import Path

SAMPLED_EVERY_S = 0.2


def pss_mb(root: int | None = None) -> float:
    """Return the MiB that a process and the Ray workers below it hold now.

    Args:
        root: the process id; this process by default.
    """
    root = os.getpid() if root is None else root
    parents = {
        int(folder.name): parent
        for folder in Path("/proc").iterdir()
        if folder.name.isdigit() and (parent := _parent(folder))
    }
    workers = [pid for pid in parents if _below(pid, root, parents) and _is_ray_worker(pid)]
    return sum(map(_pss_kb, [root, *workers])) / 1024


class PeakMemory:
    """Sample the memory of a process while a `with` block runs: `with PeakMemory() as peak: ...`.

    `peak.mb` is then the largest of the samples, in MiB.
    """

    def __init__(self, root: int | None = None) -> None:
        self.root = root
        self.mb = 0.0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="memory", daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _sample(self) -> None:
        stopped = False
        while not stopped:
            stopped = self._stopped.wait(SAMPLED_EVERY_S)  # a last sample is taken after the end
            self.mb = max(self.mb, pss_mb(self.root))


# A process may end while the functions below read of it: it then counts nothing.


def _parent(folder: Path) -> int | None:
    with suppress(OSError):
        return int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    return None


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
