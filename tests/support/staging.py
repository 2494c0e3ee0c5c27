"""Start processes for a test and kill them.

A mark in their environment finds them again, whichever process started them and wherever they hang.
"""

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

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
TOKEN = "planted-" + "0123456789abcdef" * 4


def free_port(among: Iterable[int] = (0,)) -> int:
    """Return a free port among these, or among all if none is named."""
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
    """Wait until condition() is true and return what it returned.

    Args:
        condition: Function without arguments, called again and again.
        log: File whose text the error shows.
        process: Process that must not end before the condition is true.
        seconds: Time limit.

    Raises:
        AssertionError: The time is over or the process has ended.
    """
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        over = process is not None and process.poll() is not None
        assert not over and time.monotonic() < deadline, (
            log.read_text("utf-8", "replace") if log else "it did not come true"
        )
        time.sleep(0.05)
    return found


def wait_for_text(process: subprocess.Popen, log: Path, text: str, *, seconds: float = 500) -> str:
    """Wait until a process has printed a text or has ended, and return all that it printed."""

    def printed() -> bool:
        return process.poll() is not None or text in log.read_text()

    wait_for(printed, log=log, seconds=seconds)
    return log.read_text()


class Stage:
    """Start processes with a clean environment.

    They have temporary folders and a Ray token of their own, and a mark that all their children
    inherit.
    """

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
        # Ray's default of 30 s for a node to start is too short on a busy machine.
        self.environment |= {"RAY_raylet_start_wait_time_s": "120"}
        self.environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
        self.environment |= dict([self.mark.split("=")]) | environment
        self.logs = 0

    def start(self, command: list, cwd: Path = ROOT, **more: str) -> tuple[subprocess.Popen, Path]:
        """Start a command in a session of its own.

        Args:
            command: Program and arguments.
            cwd: Folder the command runs in.
            more: Environment variables to add.

        Returns:
            The process and the file of what it prints.
        """
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
        """Return whether a process is of this stage and its environment has lines that begin so."""
        try:
            found = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            return False
        return all(
            any(one.startswith(mark.encode()) for one in found) for mark in (self.mark, *marks)
        )

    def of_machine(self, pid: int) -> bool:
        """Return whether a process or one of its ancestors was started with AMLRIS_MACHINE.

        The ancestors are asked, too, because a process that renames itself overwrites its own
        environment.
        """
        while pid > 1:
            if self.has(pid, "AMLRIS_MACHINE="):
                return True
            try:
                pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                return False
        return False

    def alive(self, *marks: str) -> dict[int, str]:
        """Return {process id: command line} of the running processes of this stage.

        Only processes whose environment has all of `marks` count; a zombie process does not.
        """
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
        """Send SIGKILL to the processes of this stage and to those they start meanwhile.

        Args:
            marks: Variables that the environment of a process must have.
            machines: Kill the processes of a Machines cluster, too.
        """
        while alive := [pid for pid in self.alive(*marks) if machines or not self.of_machine(pid)]:
            for pid in alive:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


class Machines:
    """Run a Ray cluster whose machines are all this one.

    A machine is lost by killing whatever runs on it.
    """

    def __init__(self, stage: Stage):
        self.stage = stage
        self.port = free_port(range(20000, 40000, 7))  # one that cluster/slurm.sh may choose
        self.dashboard = free_port()
        self.started: dict[str, subprocess.Popen] = {}
        """For each machine's name, the process that started the others of the machine."""
        self.address = f"127.0.0.1:{self.port}"
        self.jobs = f"http://127.0.0.1:{self.dashboard}"

    def _start(self, name: str, cpus: int, *arguments: str, **environment: str) -> None:
        # Another Ray on this machine may use the default port.
        agent = f"--dashboard-agent-listen-port={free_port()}"
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
        # Ray then notices a dead machine in seconds.
        soon = {
            "RAY_health_check_period_ms": "500",
            "RAY_health_check_initial_delay_ms": "2000",
        }
        for tries_left in (1, 0):
            process, log = self.stage.start(
                command,
                AMLRIS_MACHINE=name,
                RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S="60",
                **soon,
                **environment,
            )
            self.started[name] = process
            said = wait_for_text(process, log, "Ray runtime started", seconds=300)
            if "Ray runtime started" in said:
                return
            # A busy machine gets a second try.
            assert tries_left and "timed out" in said, said
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
        # In a shared folder, the machine would unpack a job package again while the driver uses it.
        own = f"--temp-dir={self.stage.folder / f'ray-{name}'}"
        self._start(name, cpus, f"--address={self.address}", own, *arguments, **environment)

    def lose(self, name: str) -> None:
        self.stage.kill(f"AMLRIS_MACHINE={name}")
        self.started.pop(name, None)

    def only(self, *names: str) -> None:
        """Start these machines, with a CPU each, and lose all others except the head."""
        for name in [name for name in self.started if name != "head"]:
            self.lose(name)
        for name in names:
            self.add(name, 1)

    def warn(self, name: str) -> None:
        """Send a machine SIGTERM, as Kubernetes does to a pod: Ray drains its node for a minute."""
        self.started[name].terminate()

    def submit(self, *arguments: str, **how) -> tuple[subprocess.Popen, Path]:
        """Submit a job, again until the cluster has an agent that accepts jobs.

        Args:
            arguments: Arguments of the submit command.
            how: Keyword arguments of Stage.start.

        Returns:
            The process of the submit command and the file of what it prints.
        """
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
            text = wait_for_text(process, log, "dashboard   ")
            if "No available agent" not in text and "try again when its nodes are up" not in text:
                return process, log

    def groups(self) -> list[str]:
        """Return the states of all placement groups that the cluster knows."""
        return self._ask("[g['state'] for g in ray.util.placement_group_table().values()]")

    def ran(self, task: str) -> set[str]:
        """Return the names of the machines on which tasks of this name ran."""
        tasks = (
            f"ray.util.state.list_tasks(sys.argv[1], filters=[('name', '=', {task!r})], "
            "detail=True, limit=1000)"
        )
        names = f"[name for name in n['Resources'] if name in {list(self.started)}]"
        nodes = f"{{n['NodeID']: {names} for n in ray.nodes()}}"
        return set(
            self._ask(
                f"[name for nodes in [{nodes}] for task in {tasks} for name in nodes[task.node_id]]"
            )
        )

    def _ask(self, expression: str) -> list:
        ask = (
            "import json, sys, ray, ray.util.state\n"
            "ray.init(sys.argv[1], log_to_driver=False, logging_level='ERROR')\n"
            f"print(json.dumps({expression}))"
        )
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
"""Beginnings of the names of processes that a running cluster keeps.

They are idle workers, agents, and actors that Ray Data starts once for each cluster.
"""


def assert_nothing_left(stage: Stage, root: Path, machines: Machines | None = None) -> None:
    """Check that a run left nothing, however it ended.

    It may leave no process, placement group or temporary folder, and no draft in the results.
    Processes that the test itself keeps were started with AMLRIS_MACHINE.

    Args:
        stage: Stage that started the run.
        root: Storage root of the results.
        machines: Cluster to ask for placement groups, if one stays.
    """

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
    # Temporary folders of Ray and torch themselves may stay.
    temporary = [p.name for p in stage.temporary.iterdir()]
    assert [name for name in temporary if name.startswith(("amlris", "tmp"))] == []
    assert [str(p) for p in root.rglob("*") if p.name.endswith((".amlris-draft", ".new"))] == []


def holding(folder: Path, text: str) -> list[str]:
    """Return the files below a folder that contain a text."""
    return [str(p) for p in folder.rglob("*") if p.is_file() and text.encode() in p.read_bytes()]


def statuses(folder: Path, name: str = "tiny") -> list[str]:
    """Return the statuses of the runs of an experiment in the MLflow store of a root."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == name]
    return [r.info.status for r in client.search_runs([experiment.experiment_id])]


def histories(folder: Path) -> dict[str, list[dict]]:
    """Return {folder of a run or trial: records of its finished epochs}."""
    files = [
        p for pattern in ("*/epochs.jsonl", "*/trials/*/epochs.jsonl") for p in folder.glob(pattern)
    ]
    found = {str(p.parent): p.read_text().splitlines() for p in files}
    return {name: [json.loads(line) for line in lines] for name, lines in found.items()}


def assert_resumed(before: dict[str, list[dict]], after: dict[str, list[dict]]) -> None:
    """Check that every epoch that was done is unchanged.

    A record holds how long its epoch took, so a repeated epoch has a different one.
    """
    assert before and all(
        after[name][: len(history)] == history for name, history in before.items()
    )
