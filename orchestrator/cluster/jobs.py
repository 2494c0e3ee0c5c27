"""Commands run as Ray jobs: a small package of the project, settings by name, the job's log; list, stop, logs.

What goes along with a job can be read by everybody who sees the cluster's jobs. So nothing secret does: a job inherits what is exported
where the cluster runs, and only what is named is handed over.
"""

import asyncio
import os
import shlex
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from aml.errors import UserError
from orchestrator.cluster.packaging import LOCAL, Package, stays_here
from orchestrator.utils import redact

COMMANDS = ("train", "sweep", "evaluate")

OVER = ("SUCCEEDED", "FAILED", "STOPPED")

SILENCE = 10

"""Times in a row that a cluster is asked for a job it does not tell of, before it is given up: a tunnel comes back, a lost head does not."""

EXIT_CODES = {"SUCCEEDED": 0, "FAILED": 1, "STOPPED": 130}


@dataclass(frozen=True)
class Command:
    """A checked command of a job."""

    arguments: list[str]
    name: str
    """Of the experiment, or `evaluate`."""
    tracking: str | None = None
    """The address of MLflow, where the command says it."""

    @property
    def entrypoint(self) -> str:
        return shlex.join(["python", "-m", "orchestrator", *self.arguments])


def check_command(arguments: list[str], parse, root: Path) -> Command:
    """The command as it will run in the package. UserError where it could not: unknown, a config outside, a relative --out, a password.

    parse(name, arguments) -> parameters by name, as the command line reads them.
    """
    name, rest = arguments[0], list(arguments[1:])
    if name not in COMMANDS:
        raise UserError(
            f"submit runs {', '.join(COMMANDS)} on a cluster, not {name!r}; run {name} here"
        )
    for argument in rest:
        if redact(argument) != argument:
            raise UserError(
                f"{redact(argument)} holds a password, and everybody who sees the cluster's jobs could read it; export it where the cluster runs"
            )
    given = parse(name, rest)
    if name == "evaluate":
        if not given["out"].is_absolute():
            raise UserError(
                f"--out {given['out']} would be lost with the job's throw-away folder; give a folder from / that the cluster keeps"
            )
        return Command([name, *rest], name)
    from orchestrator.config import load

    experiment = load(given["config"], given["overrides"] or [])
    inside = Path(given["config"]).resolve()
    if not inside.is_relative_to(root.resolve()):
        raise UserError(
            f"{given['config']} is not in {root}, whose files the job gets; copy it there, under experiments/ say"
        )
    rest[rest.index(given["config"])] = inside.relative_to(root.resolve()).as_posix()
    return Command([name, *rest], experiment.name, experiment.tracking.uri)


def connect_jobs(address: str | None):
    """A client of the cluster's jobs. UserError where it does not answer or wants a token."""
    from orchestrator.cluster.session import set_ray_environment

    set_ray_environment()
    from ray.job_submission import JobSubmissionClient

    address = address or os.environ.get("RAY_API_SERVER_ADDRESS") or LOCAL
    try:
        return JobSubmissionClient(address)
    except ConnectionError:
        raise UserError(
            f"no cluster answers at {redact(address)}; start one, open the tunnel to its dashboard, or give --address"
        ) from None
    except Exception as error:  # Ray and requests raise several kinds
        raise UserError(
            f"the cluster at {redact(address)} refuses: {_reason(error)}; with a token: RAY_AUTH_MODE=token and the token itself"
        ) from None


def submit_job(
    client, address: str, command: Command, packed: Package, env: dict[str, str], say
) -> str:
    """Hand the job over.   -> its id. UserError while the same command is running there."""
    present = [
        j
        for j in list_jobs(client)
        if j.entrypoint == command.entrypoint and _status(j) not in OVER
    ]
    if present:
        raise UserError(
            f"job {present[0].submission_id} is already running this command; follow it with --logs, or end it with --stop"
        )
    taken = {j.submission_id for j in list_jobs(client)}
    job = next(
        name for k in range(1, len(taken) + 2) if (name := f"{command.name}-{k}") not in taken
    )
    say(
        f"package     {len(packed.files)} files, {packed.size / 2**20:.2f} MB; left out: {', '.join(packed.left_out) or 'nothing'}"
    )
    say(
        f"environment {', '.join(sorted(env))} handed over"
        + (f"; taken from the cluster: {', '.join(away)}" if (away := stays_here(env)) else "")
    )
    with tempfile.TemporaryDirectory(prefix="amlris-package-") as folder:
        packed.copy_to(Path(folder))
        try:
            job = client.submit_job(
                entrypoint=command.entrypoint,
                submission_id=job,
                runtime_env={"working_dir": folder, "env_vars": env},
                metadata={"name": command.name, "git_sha": env["AMLRIS_GIT_SHA"]},
            )
        except RuntimeError as error:
            raise UserError(
                f"the cluster did not take the job: {_reason(error)}; try again when its nodes are up"
            ) from None
    uri = command.tracking or env.get("MLFLOW_TRACKING_URI")
    say(f"job         {job}")
    say(f"dashboard   {redact(address)}/#/jobs/{job}")
    say(
        f"MLflow      {redact(uri) if uri else 'where MLFLOW_TRACKING_URI of the cluster points, else a file under its storage root'}"
    )
    return job


def follow_job(client, job: str, say, *, pause_s: float = 2) -> int:
    """Print the job's log until the job is over.   -> its exit code; 1 where the cluster is gone. An interruption here leaves the job running."""
    import aiohttp

    printed, silent = 0, 0

    async def tail() -> None:
        nonlocal printed
        read = 0  # each connection starts at the log's beginning
        async for text in client.tail_job_logs(job):
            new = text[max(0, printed - read) :]
            read += len(text)
            printed = max(printed, read)
            print(new, end="", flush=True)

    try:
        while True:
            try:
                asyncio.run(tail())
            except (
                RuntimeError,
                OSError,
                aiohttp.ClientError,
            ) as error:  # the connection was lost: the job need not be
                if not silent:
                    say(f"the log of {job} broke off: {_reason(error)}")
            try:
                info, silent = client.get_job_info(job), 0
            except (RuntimeError, OSError) as error:
                silent += 1
                if silent == SILENCE:
                    say(
                        f"the cluster tells nothing of {job} any more: {_reason(error)}; submitted again where one runs it continues"
                    )
                    return 1
                time.sleep(pause_s)
                continue
            if _status(info) in OVER:
                break
            time.sleep(pause_s)
    except KeyboardInterrupt:
        say(f"{job} goes on; its log: --logs {job}, its end: --stop {job}")
        return 130
    status = _status(info)
    say(
        f"{job} {status.lower()}"
        + (
            ""
            if status == "SUCCEEDED"
            else f": {redact(info.message)}; submitted again it continues"
        )
    )
    code = getattr(info, "driver_exit_code", None)
    return code if status == "FAILED" and code and code > 0 else EXIT_CODES[status]


def list_jobs(client) -> list:
    """Submitted jobs, the newest last."""
    return sorted(
        (j for j in client.list_jobs() if j.submission_id), key=lambda j: j.start_time or 0
    )


def job_line(job) -> str:
    """A job in one line."""
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime((job.start_time or 0) / 1000))
    return f"{job.submission_id:28} {_status(job):10} {when}  {redact(job.entrypoint)}"


def job_logs(client, job: str) -> str:
    """What the job has printed so far. UserError where there is no such job."""
    try:
        return client.get_job_logs(job)
    except RuntimeError as error:
        raise UserError(_unknown(client, job, error)) from None


def stop_job(client, job: str) -> bool:
    """Ask a job to end; its state is saved.   -> whether it was running. UserError where there is no such job."""
    try:
        return client.stop_job(job)
    except RuntimeError as error:
        raise UserError(_unknown(client, job, error)) from None


def _unknown(client, job: str, error: RuntimeError) -> str:
    names = [j.submission_id for j in list_jobs(client)]
    if job in names:
        return f"job {job}: {_reason(error)}"
    return f"there is no job {job!r} on the cluster; there: {', '.join(names) or 'none'}"


def _status(job) -> str:
    return getattr(job.status, "value", job.status)


def _reason(error: Exception) -> str:
    lines = [line for line in redact(error).splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else type(error).__name__
