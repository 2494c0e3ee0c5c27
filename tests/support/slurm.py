"""Run a Slurm cluster of two machines on this one, for tests.

Each machine is a set of Linux namespaces: its own name, network address, processes and temporary
folder; all other files are shared, as on a cluster's file system. What runs on a machine ends with
it, whatever it is, and no process outside can be reached from inside.
"""

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

from tests.support.staging import ROOT, Stage, wait_for

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "unshare", "nsenter", "ip")

NAMES = ("first", "second")

CONF = """
ClusterName=amlris
SlurmctldHost=first(10.77.0.1)
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
KillWait=5
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
ReturnToService=2
GresTypes=gpu
NodeName=first NodeAddr=10.77.0.1 CPUs=1 RealMemory=4000 Gres=gpu:1
NodeName=second NodeAddr=10.77.0.2 CPUs=1 RealMemory=4000 Gres=gpu:1
PartitionName=gpu Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
"""slurm.conf. A GPU of a machine is /dev/null: Slurm counts it, and nothing opens it."""

OF_MACHINES = (
    "unshare ",
    "bash -ec",
    "sleep infinity",
    "nsenter ",
    "munged ",
    "slurmctld ",
    "slurmd ",
    ": slurmscriptd",
)
"""Beginnings of the command lines that run on a machine without a job."""

HOSTS = "127.0.0.1 localhost\n10.77.0.1 first\n10.77.0.2 second\n"

MACHINE = """
hostname {name}
mount --bind {folder}/hosts /etc/hosts
mount --bind {folder}/tmp-{name} {temporary}
touch {folder}/up-{name}
sleep infinity &
wait
"""
"""What the first process of a machine runs; bash also takes leave of orphans that end."""


def missing() -> str:
    """Return why there can be no cluster on this machine; "" where there can."""
    if absent := [program for program in PROGRAMS if not shutil.which(program)]:
        return f"no {', '.join(absent)}: install slurm-wlm, munge and iproute2"
    if os.geteuid() != 0:
        return "machines are made of namespaces, which takes root"
    done = subprocess.run(
        ["unshare", "--net", "--pid", "--uts", "--mount", "--fork", "--mount-proc", "true"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"no namespaces here: {done.stderr.strip()}" if done.returncode else ""


class SlurmCluster:
    """Two machines with a node daemon each, the first of which is controller and login node."""

    def __init__(self, stage: Stage) -> None:
        """Lay out the cluster.

        Args:
            stage: Stage whose processes the machines and their daemons are.
        """
        self.stage = stage
        self.folder = stage.folder / "slurm"
        self.inits: dict[str, int] = {}
        """Process ids, as this machine counts them, of the machines' first processes."""

    def start(self) -> None:
        """Start machines and daemons, and wait until they take jobs."""
        self.stage.folder.chmod(0o755)  # munge wants a socket that everybody can reach
        self.folder.mkdir()
        for name in ("state", *(f"tmp-{name}" for name in NAMES)):
            (self.folder / name).mkdir()
        (self.folder / "hosts").write_text(HOSTS)
        (self.folder / "slurm.conf").write_text(CONF.format(folder=self.folder))
        (self.folder / "gres.conf").write_text("Name=gpu File=/dev/null\n")
        (self.folder / "munge.key").write_bytes(os.urandom(128))
        (self.folder / "munge.key").chmod(0o600)
        for name in NAMES:
            self._start_machine(name)
        self._connect()
        self._start_daemons()

    def tell(self, program: str, *arguments: object, cwd: Path = ROOT) -> str:
        """Run a command of Slurm on the login node and return what it prints."""
        done = subprocess.run(
            self._on("first", program, *arguments, cwd=cwd),
            env=self.stage.environment | self._conf,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def submit(self, script: str, folder: Path) -> tuple[subprocess.Popen, str, Path]:
        """Submit a job from a folder.

        Returns:
            A process that ends with the job and with its exit code, the job's number, and the file
            of what it prints.
        """
        command = self._on("first", "sbatch", "--wait", script, cwd=folder)
        process, said = self.stage.start(command, **self._conf)
        queue = ["squeue", "--noheader", "--states=PENDING,RUNNING", "--format=%i"]
        number = wait_for(lambda: self.tell(*queue), log=said, process=process)
        return process, number, folder / f"slurm-{number}.out"

    def end_soon(self, number: str) -> None:
        """Set a job's time limit so that it has one to two minutes left."""
        (job,) = self.tell("squeue", "--noheader", f"--job={number}", "--format=%M").split()
        limit = sum(int(n) * 60**i for i, n in enumerate(job.split(":")[-2::-1])) + 2
        self.tell("scontrol", "update", f"JobId={number}", f"TimeLimit={limit}")

    def close(self) -> None:
        """End both machines and all that runs on them."""
        for pid in self.inits.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)

    def processes(self) -> dict[int, str]:
        """Return {process id: command line} of what runs on the machines besides their daemons."""
        return {p: c for p, c in self.stage.alive().items() if not c.startswith(OF_MACHINES)}

    @property
    def _conf(self) -> dict[str, str]:
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def _on(self, name: str, *command: object, cwd: Path = ROOT) -> list[str]:
        """Return the command as it runs on a machine."""
        where = ["nsenter", f"--target={self.inits[name]}", "--net", "--pid", "--uts", "--mount"]
        # nsenter would run it in the root folder.
        return [*where, "--", "env", f"--chdir={cwd}", *map(str, command)]

    def _start_machine(self, name: str) -> None:
        script = MACHINE.format(name=name, folder=self.folder, temporary=self.stage.temporary)
        spaces = ["--net", "--pid", "--uts", "--mount", "--mount-proc", "--fork", "--kill-child"]
        process, log = self.stage.start(["unshare", *spaces, "bash", "-ec", script])
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        (pid,) = wait_for(lambda: children.read_text().split(), log=log, process=process)
        wait_for((self.folder / f"up-{name}").exists, log=log, process=process)
        self.inits[name] = int(pid)

    def _connect(self) -> None:
        """Lay a cable between the machines."""
        first, second = self.inits.values()
        self._ip(first, f"link add eth0 type veth peer name eth0 netns {second}")
        for number, pid in enumerate((first, second), 1):
            self._ip(pid, "link set lo up")
            self._ip(pid, f"address add 10.77.0.{number}/24 dev eth0")
            self._ip(pid, "link set eth0 up")

    def _ip(self, pid: int, line: str) -> None:
        """Change the network of the machine whose first process this is."""
        command = ["nsenter", f"--target={pid}", "--net", "ip", *line.split()]
        subprocess.run(command, check=True)

    def _start_daemons(self) -> None:
        files = [f"--{n}-file={self.folder}/munge.{n}" for n in ("key", "pid", "log", "seed")]
        socket = self.folder / "munge.socket"
        munge = ["munged", "--foreground", *files, f"--socket={socket}"]
        process, log = self.stage.start(self._on("first", *munge))
        wait_for(socket.exists, log=log, process=process, seconds=60)
        conf = ["-f", self.folder / "slurm.conf"]
        self.stage.start(self._on("first", "slurmctld", "-D", *conf))
        for name in NAMES:
            self.stage.start(self._on(name, "slurmd", "-D", *conf))
        wait_for(lambda: self._states() == {"idle"}, log=self.folder / "slurmctld.log", seconds=120)

    def _states(self) -> set[str]:
        """Return the states of the two nodes; empty while the controller does not answer."""
        with contextlib.suppress(AssertionError):
            return set(self.tell("sinfo", "--Node", "--noheader", "--format=%t").split())
        return set()
