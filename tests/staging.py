"""Processes that a test stages and kills: found again by a mark in their environment, whoever started them and wherever they hang."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
TOKEN = "planted-" + "0123456789abcdef" * 4


def free_port(among: Iterable[int] = (0,)) -> int:
    """One of these; of all, where none is named."""
    for port in among:
        with socket.socket() as s, contextlib.suppress(OSError):
            s.bind(("127.0.0.1", port))
            return s.getsockname()[1]
    raise AssertionError("none of the ports is free")


def wait_for(
    condition,
    *,
    log: Path | None = None,
    process: subprocess.Popen | None = None,
    seconds: float = 500,
):
    """What condition() returns once it is true. AssertionError, with the log, where it does not come true or the process ends before."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        over = process is not None and process.poll() is not None
        assert not over and time.monotonic() < deadline, (
            log.read_text("utf-8", "replace") if log else "it did not come true"
        )
        time.sleep(0.05)
    return found


class Stage:
    """Starts processes with a clean environment, a mark that all their children inherit, temporary folders and a token for Ray of their own."""

    def __init__(self, **environment: str):
        self.folder = Path(tempfile.mkdtemp(prefix="a", dir="/tmp"))  # noqa: S108 (a socket's path must be short)
        self.temporary = self.folder / "tmp"
        self.temporary.mkdir()
        self.mark = f"AMLRIS_STAGE={uuid.uuid4().hex}"
        clean = {
            k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "AMLRIS_", "MLFLOW_"))
        }
        self.environment = clean | {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "RAY_USAGE_STATS_ENABLED": "0",
            "TMPDIR": str(self.temporary),
        }
        self.environment |= {
            "RAY_raylet_start_wait_time_s": "120"
        }  # a node has 30 s to appear otherwise, too few on a busy machine
        self.environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
        self.environment |= dict([self.mark.split("=")]) | environment
        self.logs = 0

    def start(self, command: list, cwd: Path = ROOT, **more: str) -> tuple[subprocess.Popen, Path]:
        """In a session of its own.   -> the process, the file of what it prints"""
        self.logs += 1
        log = self.folder / f"{self.logs}.log"
        with open(log, "w") as out:
            environment = self.environment | more
            process = subprocess.Popen(
                command,
                env=environment,
                cwd=cwd,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return process, log

    def orchestrator(self, *arguments: object, **more: str) -> tuple[subprocess.Popen, Path]:
        return self.start([sys.executable, "-m", "orchestrator", *map(str, arguments)], **more)

    def has(self, pid: int, *marks: str) -> bool:
        """Whether the process is of this stage, and its environment has these (or what begins so)."""
        try:
            found = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            return False
        return all(
            any(one.startswith(mark.encode()) for one in found) for mark in (self.mark, *marks)
        )

    def of_machine(self, pid: int) -> bool:
        """Whether it or one that started it was started with AMLRIS_MACHINE: a process that renames itself writes over its own environment."""
        while pid > 1:
            if self.has(pid, "AMLRIS_MACHINE="):
                return True
            try:
                pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                return False
        return False

    def alive(self, *marks: str) -> dict[int, str]:
        """The processes that have the mark, and those of start() that are asked for: their command lines. What waits to be reaped is none."""
        found = {}
        for pid in (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()):
            if self.has(pid, *marks):
                with contextlib.suppress(OSError):
                    found[pid] = (
                        Path(f"/proc/{pid}/cmdline")
                        .read_text("utf-8", "replace")
                        .replace("\0", " ")
                        .strip()
                    )
        return found

    def kill(self, *marks: str, machines: bool = True) -> None:
        """SIGKILL for all of them, by their ids, and for what they start meanwhile; machines: those of Machines, too."""
        while alive := [pid for pid in self.alive(*marks) if machines or not self.of_machine(pid)]:
            for pid in alive:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


class Machines:
    """A Ray cluster of several machines that are all this one, each lost by killing whatever runs on it."""

    def __init__(self, stage: Stage):
        self.stage = stage
        self.port, self.dashboard = (
            free_port(range(20000, 40000, 7)),
            free_port(),
        )  # one that cluster/slurm.sh may choose
        self.started: dict[str, subprocess.Popen] = {}
        """By name: the process that holds the others of its machine."""
        self.address, self.jobs = f"127.0.0.1:{self.port}", f"http://127.0.0.1:{self.dashboard}"

    def _start(self, name: str, cpus: int, *arguments: str, **environment: str) -> None:
        agent = f"--dashboard-agent-listen-port={free_port()}"  # its default may be held by another Ray of this machine
        called = f"--resources={json.dumps({name: 1})}"
        command = [
            BIN / "ray",
            "start",
            *arguments,
            f"--num-cpus={cpus}",
            called,
            agent,
            "--object-store-memory=200000000",
            "--block",
        ]
        soon = {
            "RAY_health_check_period_ms": "500",
            "RAY_health_check_initial_delay_ms": "2000",
        }  # a dead machine is noticed in seconds
        for tries_left in (1, 0):
            process, log = self.stage.start(
                command,
                AMLRIS_MACHINE=name,
                RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S="60",
                **soon,
                **environment,
            )
            self.started[name] = process
            wait_for(
                lambda: "Ray runtime started" in log.read_text() or process.poll() is not None,
                log=log,
                seconds=300,
            )  # noqa: B023
            if "Ray runtime started" in log.read_text():
                return
            assert tries_left and "timed out" in log.read_text(), (
                log.read_text()
            )  # a busy machine: once more
            self.lose(name)

    def head(self, cpus: int, **environment: str) -> None:
        ports = [
            f"--port={self.port}",
            f"--dashboard-port={self.dashboard}",
            f"--ray-client-server-port={free_port()}",
        ]
        self._start(
            "head", cpus, "--head", f"--temp-dir={self.stage.folder / 'ray'}", *ports, **environment
        )

    def add(self, name: str, cpus: int, *arguments: str, **environment: str) -> None:
        own = f"--temp-dir={self.stage.folder / f'ray-{name}'}"  # in a shared one it would lay out a job's package anew under the driver's feet
        self._start(name, cpus, f"--address={self.address}", own, *arguments, **environment)

    def lose(self, name: str) -> None:
        self.stage.kill(f"AMLRIS_MACHINE={name}")
        self.started.pop(name, None)

    def only(self, *names: str) -> None:
        """Beside the head: each has a CPU, and those that earlier tests added are lost."""
        for name in [name for name in self.started if name != "head"]:
            self.lose(name)
        for name in names:
            self.add(name, 1)

    def warn(self, name: str) -> None:
        """It is to end, as Kubernetes tells a pod: Ray drains its node, which it gives a minute."""
        self.started[name].terminate()

    def submit(self, *arguments: str, **how) -> tuple[subprocess.Popen, Path]:
        """A job, once the cluster has an agent that takes jobs.   how: as Stage.start takes it   -> its process, the file of what it prints"""
        while True:
            process, log = self.stage.start(
                [
                    sys.executable,
                    "-m",
                    "orchestrator",
                    "submit",
                    "--address",
                    self.jobs,
                    *arguments,
                ],
                **how,
            )
            text = wait_for(
                lambda: (
                    log.read_text()
                    if process.poll() is not None or "dashboard   " in log.read_text()
                    else ""
                )
            )  # noqa: B023
            if "No available agent" not in text and "try again when its nodes are up" not in text:
                return process, log

    def groups(self) -> list[str]:
        """States of all placement groups the cluster knows."""
        return self._ask("[g['state'] for g in ray.util.placement_group_table().values()]")

    def ran(self, task: str) -> set[str]:
        """The machines that tasks of this name ran on."""
        tasks = f"ray.util.state.list_tasks(sys.argv[1], filters=[('name', '=', {task!r})], detail=True, limit=1000)"
        nodes = (
            "{n['NodeID']: [name for name in n['Resources'] if name in %s] for n in ray.nodes()}"
            % list(self.started)
        )  # noqa: UP031
        return set(
            self._ask(
                f"[name for nodes in [{nodes}] for task in {tasks} for name in nodes[task.node_id]]"
            )
        )

    def _ask(self, expression: str) -> list:
        ask = f"import json, sys, ray, ray.util.state; ray.init(sys.argv[1], log_to_driver=False, logging_level='ERROR')\nprint(json.dumps({expression}))"
        command = [sys.executable, "-c", ask, self.address]
        done = subprocess.run(
            command,
            env=self.stage.environment,
            capture_output=True,
            text=True,
            timeout=180,
            check=True,
        )
        return json.loads(done.stdout.splitlines()[-1])


OF_RAY = (
    "IDLE",
    "DashboardAgent",
    "RuntimeEnvAgent",
    "_StatsActor",
    "_AutoscalingCoordinatorActor",
)
"""What a cluster that stays keeps running: workers without work, its agents, and what Ray Data starts once a cluster."""


def assert_nothing_left(stage: Stage, root: Path, machines: Machines | None = None) -> None:
    """After a run, however it went: no process of it, no placement group, no temporary folder, no draft in the results.

    What the test itself keeps was started with AMLRIS_MACHINE. machines: the cluster to ask for placement groups, where one stays."""

    def left() -> dict[int, str]:
        return {p: c for p, c in stage.alive().items() if not (stage.of_machine(p) and kept(c))}

    def kept(command: str) -> bool:
        return (
            command.removeprefix("ray::").startswith(OF_RAY)
            if command.startswith("ray::")
            else "-m orchestrator" not in command
        )

    deadline = time.monotonic() + 60
    while left() and time.monotonic() < deadline:  # Ray takes down what a driver leaves
        time.sleep(0.2)
    assert left() == {}
    deadline = time.monotonic() + 60
    while machines and not set(machines.groups()) <= {"REMOVED"}:
        assert time.monotonic() < deadline, "a placement group is left"
    assert [
        p.name for p in stage.temporary.iterdir() if p.name.startswith(("amlris", "tmp"))
    ] == []  # Ray's and torch's own stay
    assert [str(p) for p in root.rglob("*") if p.name.endswith((".tmp", ".draft", ".new"))] == []


def holding(folder: Path, text: str) -> list[str]:
    """The files below a folder that hold a text."""
    return [str(p) for p in folder.rglob("*") if p.is_file() and text.encode() in p.read_bytes()]


def statuses(folder: Path, name: str = "tiny") -> list[str]:
    """Of the runs of an experiment in a root's MLflow."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == name]
    return [r.info.status for r in client.search_runs([experiment.experiment_id])]


def histories(folder: Path) -> dict[str, list[dict]]:
    """{run or trial folder: its finished epochs, as they lie there}"""
    files = [
        p for pattern in ("*/epochs.jsonl", "*/trials/*/epochs.jsonl") for p in folder.glob(pattern)
    ]
    found = {str(p.parent): p.read_text().splitlines() for p in files}
    return {name: [json.loads(line) for line in lines] for name, lines in found.items()}


def assert_resumed(before: dict[str, list[dict]], after: dict[str, list[dict]]) -> None:
    """Every epoch that was done is still the very same: how long it took is in it, and no two take as long."""
    assert before and all(
        after[name][: len(history)] == history for name, history in before.items()
    )
