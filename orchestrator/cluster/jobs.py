"""Commands run as Ray jobs: check and submit one, follow its log, list and stop jobs.

A job gets a small package of the project, the variables that are named, and nothing secret, because
everybody who sees the cluster's jobs can read what goes along with them. Other variables are those
that are exported where the cluster runs.
"""

import asyncio
import logging
import os
import shlex
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aml.errors import UserError
from orchestrator.cluster.packaging import LOCAL, Package, refuse_files_left_behind, stays_here
from orchestrator.utils import announced_wait, redact

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

logger = logging.getLogger(__name__)

COMMANDS = ("train", "sweep", "evaluate")

OVER = ("SUCCEEDED", "FAILED", "STOPPED")

SILENCE = 10
"""Requests in a row for a job without an answer before its cluster is given up.

A tunnel comes back, a lost head node does not.
"""

EXIT_CODES = {"SUCCEEDED": 0, "FAILED": 1, "STOPPED": 130}


@dataclass(frozen=True)
class Command:
    """A checked command of a job."""

    arguments: list[str]
    name: str
    """Name of the experiment, or `evaluate`."""
    tracking: str | None = None
    """The address of MLflow, where the command names it."""

    @property
    def entrypoint(self) -> str:
        """The command line of the job."""
        return shlex.join(["python", "-m", "orchestrator", *self.arguments])


def check_command(
    arguments: list[str], parse: Callable[[str, list[str]], dict[str, Any]], root: Path
) -> Command:
    """Return a command as it will run in the package of the project.

    Args:
        arguments: the command and its arguments.
        parse: returns the parameters by name, as the command line reads them, given the name of a
            command and its arguments.
        root: the folder of the project.

    Raises:
        UserError: the command could not run as a job: it is unknown, its config is outside the
            project, its --out is relative, or it holds a password.
    """
    name = arguments[0]
    rest = list(arguments[1:])
    if name not in COMMANDS:
        raise UserError(
            f"submit runs {', '.join(COMMANDS)} on a cluster, not {name!r}; run {name} here"
        )
    for argument in rest:
        if redact(argument) != argument:
            raise UserError(
                f"{redact(argument)} holds a password, and everybody who sees the cluster's jobs "
                "could read it; export it where the cluster runs"
            )
    given = parse(name, rest)
    if name == "evaluate":
        if not given["out"].is_absolute():
            raise UserError(
                f"--out {given['out']} would be lost with the job's throw-away folder; "
                "give a folder from / that the cluster keeps"
            )
        return Command([name, *rest], name)
    from orchestrator.config import load, load_matrix

    overrides = given["overrides"] or []
    matrix = load_matrix(given["config"], overrides) if name == "sweep" else None
    cells = matrix.cells if matrix else []
    experiments = [cell.experiment for cell in cells] or [load(given["config"], overrides)]
    inside = Path(given["config"]).resolve()
    if not inside.is_relative_to(root.resolve()):
        raise UserError(
            f"{given['config']} is not in {root}, whose files the job gets; "
            "copy it there, under experiments/ say"
        )
    for experiment in experiments:
        refuse_files_left_behind(experiment, root)
    called = matrix.name if matrix else experiments[0].name
    rest[rest.index(given["config"])] = inside.relative_to(root.resolve()).as_posix()
    return Command([name, *rest], called, experiments[0].tracking.uri)


def connect_jobs(address: str | None) -> "JobClient":
    """Return a client of a cluster's jobs.

    Args:
        address: of the cluster's dashboard; by default RAY_API_SERVER_ADDRESS, else this machine.

    Raises:
        UserError: the cluster does not answer, or wants a token.
    """
    from orchestrator.cluster.session import set_ray_environment

    set_ray_environment()
    from ray.job_submission import JobSubmissionClient

    address = address or os.environ.get("RAY_API_SERVER_ADDRESS") or LOCAL
    try:
        with announced_wait(f"the cluster at {redact(address)} to answer"):
            return JobClient(JobSubmissionClient(address))
    except ConnectionError:
        raise UserError(
            f"no cluster answers at {redact(address)}; "
            "start one, open the tunnel to its dashboard, or give --address"
        ) from None
    except Exception as error:  # Ray and requests raise several kinds
        raise UserError(
            f"the cluster at {redact(address)} refuses: {_reason(error)}; "
            "with a token: RAY_AUTH_MODE=token and the token itself"
        ) from None


class JobClient:
    """The jobs of one Ray cluster."""

    def __init__(self, client: "JobSubmissionClient") -> None:
        """Use a connected client of Ray."""
        self.client = client

    def submit(self, command: Command, package: Package, env: dict[str, str]) -> str:
        """Submit a job and log what it gets.

        Args:
            command: to run.
            package: the files of the project.
            env: environment variables, as `runtime_environment` gives them.

        Returns:
            The id of the job.

        Raises:
            UserError: the same command is running already, or the cluster does not take the job.
        """
        jobs = self._jobs()
        for job in jobs:
            if job.entrypoint == command.entrypoint and _status(job) not in OVER:
                raise UserError(
                    f"job {job.submission_id} is already running this command; "
                    "follow it with --logs, or end it with --stop"
                )
        taken = {job.submission_id for job in jobs}
        numbers = range(1, len(taken) + 2)
        new_id = next(i for k in numbers if (i := f"{command.name}-{k}") not in taken)
        _log_package(package, env)
        with tempfile.TemporaryDirectory(prefix="amlris-package-") as folder:
            package.copy_to(Path(folder))
            try:
                job_id = self.client.submit_job(
                    entrypoint=command.entrypoint,
                    submission_id=new_id,
                    runtime_env={"working_dir": folder, "env_vars": env},
                    metadata={"name": command.name, "git_sha": env["AMLRIS_GIT_SHA"]},
                )
            except RuntimeError as error:
                raise UserError(
                    f"the cluster did not take the job: {_reason(error)}; "
                    "try again when its nodes are up"
                ) from None
        uri = command.tracking or env.get("MLFLOW_TRACKING_URI")
        default = (
            "where MLFLOW_TRACKING_URI of the cluster points, else a file under its storage root"
        )
        logger.info(f"job         {job_id}")
        logger.info(f"dashboard   {redact(self.client.get_address())}/#/jobs/{job_id}")
        logger.info(f"MLflow      {redact(uri) if uri else default}")
        return job_id

    def follow(self, job_id: str, *, pause_s: float = 2) -> int:
        """Print the log of a job until the job is over. An interruption leaves the job running.

        Args:
            job_id: of the job.
            pause_s: seconds between looks at its state.

        Returns:
            The exit code of the job; 1 where its cluster is gone, 130 after an interruption.
        """
        log = _LogPrinter(self.client, job_id)
        silent = 0
        try:
            while True:
                log.print_new(report_loss=not silent)
                try:
                    info = self.client.get_job_info(job_id)
                    silent = 0
                except (RuntimeError, OSError) as error:
                    silent += 1
                    if silent == SILENCE:
                        logger.info(
                            f"the cluster tells nothing of {job_id} any more: {_reason(error)}; "
                            "submitted again where one runs it continues"
                        )
                        return 1
                    time.sleep(pause_s)
                    continue
                if _status(info) in OVER:
                    return _exit_code(job_id, info)
                time.sleep(pause_s)
        except KeyboardInterrupt:
            logger.info(f"{job_id} goes on; its log: --logs {job_id}, its end: --stop {job_id}")
            return 130

    def lines(self) -> list[str]:
        """Return each submitted job in one line, the newest last."""
        return [_line(job) for job in self._jobs()]

    def logs(self, job_id: str) -> str:
        """Return what a job has printed so far.

        Raises:
            UserError: there is no such job.
        """
        try:
            return self.client.get_job_logs(job_id)
        except RuntimeError as error:
            raise UserError(self._unknown(job_id, error)) from None

    def stop(self, job_id: str) -> bool:
        """Ask a job to end; it saves its state first.

        Returns:
            Whether it was running.

        Raises:
            UserError: there is no such job.
        """
        try:
            return self.client.stop_job(job_id)
        except RuntimeError as error:
            raise UserError(self._unknown(job_id, error)) from None

    def _jobs(self) -> list["JobDetails"]:
        jobs = [job for job in self.client.list_jobs() if job.submission_id]
        return sorted(jobs, key=lambda job: job.start_time or 0)

    def _unknown(self, job_id: str, error: RuntimeError) -> str:
        names = [str(job.submission_id) for job in self._jobs()]
        if job_id in names:
            return f"job {job_id}: {_reason(error)}"
        return f"there is no job {job_id!r} on the cluster; there: {', '.join(names) or 'none'}"


class _LogPrinter:
    """Print the log of a job, without repeating what an earlier connection has printed."""

    def __init__(self, client: "JobSubmissionClient", job_id: str) -> None:
        self.client = client
        self.job_id = job_id
        self.printed = 0  # characters

    def print_new(self, *, report_loss: bool) -> None:
        """Print the log as it grows, until it ends or the connection breaks; the job may go on."""
        import aiohttp

        try:
            asyncio.run(self._tail())
        except (RuntimeError, OSError, aiohttp.ClientError) as error:
            if report_loss:
                logger.info(f"the log of {self.job_id} broke off: {_reason(error)}")

    async def _tail(self) -> None:
        read = 0  # each connection starts at the beginning of the log
        async for text in self.client.tail_job_logs(self.job_id):
            new = text[max(0, self.printed - read) :]
            read += len(text)
            self.printed = max(self.printed, read)
            print(new, end="", flush=True)


def _log_package(package: Package, env: dict[str, str]) -> None:
    logger.info(
        f"package     {len(package.sources)} files, {package.size / 2**20:.2f} MB; "
        f"left out: {', '.join(package.left_out) or 'nothing'}"
    )
    text = f"environment {', '.join(sorted(env))} handed over"
    if elsewhere := stays_here(env):
        text += f"; taken from the cluster: {', '.join(elsewhere)}"
    logger.info(text)


def _line(job: "JobDetails") -> str:
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime((job.start_time or 0) / 1000))
    return f"{job.submission_id:28} {_status(job):10} {when}  {redact(job.entrypoint)}"


def _exit_code(job_id: str, info: "JobDetails") -> int:
    """Log how a job ended and return its exit code."""
    status = _status(info)
    failed = (
        "" if status == "SUCCEEDED" else f": {redact(info.message)}; submitted again it continues"
    )
    logger.info(f"{job_id} {status.lower()}{failed}")
    code = getattr(info, "driver_exit_code", None)
    return code if status == "FAILED" and code and code > 0 else EXIT_CODES[status]


def _status(job: "JobDetails") -> str:
    return getattr(job.status, "value", job.status)


def _reason(error: Exception) -> str:
    """Return the last line of an error, without secrets."""
    lines = [line for line in redact(error).splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else type(error).__name__
