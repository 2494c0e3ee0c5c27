"""Commands run as Ray jobs: a small package of the project, settings by name, the job's log; list, stop, logs.

What goes along with a job can be read by everybody who sees the cluster's jobs. So nothing secret does: a job inherits what is exported
where the cluster runs, and only what is named is handed over.
"""

import asyncio
import fnmatch
import os
import shlex
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from aml.errors import UserError
from orchestrator import runs, shards
from orchestrator.redaction import looks_secret, redact

LOCAL = "http://127.0.0.1:8265"
COMMANDS = ("train", "sweep", "evaluate")
NEVER = (
    "/.git",
    "/.venv",
    "/runs",
    "/data",
    "__pycache__",
    ".*_cache",
    "*.egg-info",
    ".env",
    ".env.*",
    "*.pem",
    "*.key",
    ".netrc",
    ".gitignore",
    ".rayignore",
)
"""Never uploaded, whatever the ignore files say; a leading slash means the project's own folder only."""
LIMIT_MB = 100
"""Ray's own limit for a package."""
BY_REFERENCE = ("MLFLOW_TRACKING_URI", "AWS_", "HF_")
STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"
"""What Ray leaves a job that is stopped before SIGKILL, 3 s otherwise: what is under way is saved meanwhile."""
OVER = ("SUCCEEDED", "FAILED", "STOPPED")
SILENCE = 10
"""Times in a row that a cluster is asked for a job it does not tell of, before it is given up: a tunnel comes back, a lost head does not."""
EXIT_CODES = {"SUCCEEDED": 0, "FAILED": 1, "STOPPED": 130}


# ---- the package ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Package:
    """What of a folder is uploaded."""

    root: Path
    files: list[Path]
    """Relative to root."""
    left_out: list[str]
    """Top-level names, or paths below, that stay here."""

    @property
    def size(self) -> int:
        """Bytes, not compressed."""
        return sum((self.root / f).stat().st_size for f in self.files)

    def copy_to(self, folder: Path) -> None:
        for file in self.files:
            target = folder / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.root / file, target)


def package(root: Path, limit_mb: float = LIMIT_MB) -> Package:
    """The files under `root` that neither NEVER nor its .gitignore or .rayignore names. UserError above the limit."""
    patterns = [*NEVER, *(line for name in (".gitignore", ".rayignore") for line in _patterns(root / name))]
    files, left_out = [], []
    for folder, folders, names in os.walk(root):
        here = Path(folder).relative_to(root)
        for name in sorted(folders):
            if ignored(here / name, patterns):
                folders.remove(name)
                left_out.append(str(here / name))
        files += [here / name for name in sorted(names) if (Path(folder) / name).is_file() and not ignored(here / name, patterns)]
        left_out += [str(here / name) for name in sorted(names) if ignored(here / name, patterns)]
    made = Package(root, files, sorted(p for p in left_out if not p.endswith("__pycache__")))
    if made.size > limit_mb * 2**20:
        sizes: dict[str, int] = {}
        for file in files:
            sizes[file.parts[0]] = sizes.get(file.parts[0], 0) + (root / file).stat().st_size
        largest = max(sizes, key=sizes.get)
        raise UserError(
            f"the package would be {made.size / 2**20:.1f} MB, more than {limit_mb:g} MB; {largest} alone is {sizes[largest] / 2**20:.1f} MB: "
            f"name what a job does not need in .rayignore"
        )
    return made


def ignored(path: Path, patterns: list[str]) -> bool:
    """Whether a path relative to the project is named by a pattern: a name anywhere (*.pem), or a place from the top (/data, a/b)."""
    for pattern in patterns:
        anchored = "/" in pattern
        if fnmatch.fnmatch(str(path), pattern.lstrip("/")) if anchored else fnmatch.fnmatch(path.name, pattern):
            return True
    return False


def _patterns(file: Path) -> list[str]:
    lines = file.read_text("utf-8").splitlines() if file.is_file() else []
    return [line.strip().rstrip("/") for line in lines if line.strip() and not line.startswith(("#", "!"))]


# ---- the environment ------------------------------------------------------------------------------------------------


def environment(named: list[str], *, secret_from_env: bool = False) -> dict[str, str]:
    """Variables that go along: AMLRIS_HOME, the commit and the dirty flag, how long a stop waits, and those named. UserError for one that is unset or looks secret."""
    sha, dirty = runs.git_state()
    found = {"AMLRIS_GIT_SHA": sha, "AMLRIS_GIT_DIRTY": "1" if dirty else "0", STOP_WAIT: os.environ.get(STOP_WAIT, "60")}
    if home := os.environ.get("AMLRIS_HOME"):
        if not home.startswith(("/", "~", "s3://")):
            raise UserError(
                f"AMLRIS_HOME is {home!r}, which a job's throw-away folder would take with it; give it from / or ~, as the cluster's nodes see it, "
                "or as s3://BUCKET/PREFIX"
            )
        if home.startswith("s3://"):
            shards.refuse_keys(home)
        found["AMLRIS_HOME"] = home
    for name in named:
        if name not in os.environ:
            raise UserError(
                f"--env {name}: {name.partition('=')[0]} is not set here; export it, or export it where the cluster runs and leave --env away"
            )
        if looks_secret(name, os.environ[name]) and not secret_from_env:
            raise UserError(
                f"--env {name} looks like a secret, and everybody who sees the cluster's jobs could read it; "
                "export it where the cluster runs, or add --secret-from-env"
            )
        found[name] = os.environ[name]
    return found


def stays_here(handed: dict[str, str]) -> list[str]:
    """Names set here that a job takes from where its cluster runs."""
    return sorted(n for n in os.environ if n.startswith(BY_REFERENCE) and n not in handed)


# ---- the command ----------------------------------------------------------------------------------------------------


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


def check(arguments: list[str], parse, root: Path) -> Command:
    """The command as it will run in the package. UserError where it could not: unknown, a config outside, a relative --out, a password.

    parse(name, arguments) -> parameters by name, as the command line reads them.
    """
    name, rest = arguments[0], list(arguments[1:])
    if name not in COMMANDS:
        raise UserError(f"submit runs {', '.join(COMMANDS)} on a cluster, not {name!r}; run {name} here")
    for argument in rest:
        if redact(argument) != argument:
            raise UserError(
                f"{redact(argument)} holds a password, and everybody who sees the cluster's jobs could read it; export it where the cluster runs"
            )
    given = parse(name, rest)
    if name == "evaluate":
        if not given["out"].is_absolute():
            raise UserError(f"--out {given['out']} would be lost with the job's throw-away folder; give a folder from / that the cluster keeps")
        return Command([name, *rest], name)
    from orchestrator.config import load

    experiment = load(given["config"], given["overrides"] or [])
    inside = Path(given["config"]).resolve()
    if not inside.is_relative_to(root.resolve()):
        raise UserError(f"{given['config']} is not in {root}, whose files the job gets; copy it there, under experiments/ say")
    rest[rest.index(given["config"])] = inside.relative_to(root.resolve()).as_posix()
    return Command([name, *rest], experiment.name, experiment.tracking.uri)


# ---- the cluster ----------------------------------------------------------------------------------------------------


def connect(address: str | None):
    """A client of the cluster's jobs. UserError where it does not answer or wants a token."""
    from orchestrator.cluster import settle_environment

    settle_environment()
    from ray.job_submission import JobSubmissionClient

    address = address or os.environ.get("RAY_API_SERVER_ADDRESS") or LOCAL
    try:
        return JobSubmissionClient(address)
    except ConnectionError:
        raise UserError(f"no cluster answers at {redact(address)}; start one, open the tunnel to its dashboard, or give --address") from None
    except Exception as error:  # Ray and requests raise several kinds
        raise UserError(
            f"the cluster at {redact(address)} refuses: {_reason(error)}; with a token: RAY_AUTH_MODE=token and the token itself"
        ) from None


def submit(client, address: str, command: Command, packed: Package, env: dict[str, str], say) -> str:
    """Hand the job over.   -> its id. UserError while the same command is running there."""
    present = [j for j in listed(client) if j.entrypoint == command.entrypoint and _status(j) not in OVER]
    if present:
        raise UserError(f"job {present[0].submission_id} is already running this command; follow it with --logs, or end it with --stop")
    taken = {j.submission_id for j in listed(client)}
    job = next(name for k in range(1, len(taken) + 2) if (name := f"{command.name}-{k}") not in taken)
    say(f"package     {len(packed.files)} files, {packed.size / 2**20:.2f} MB; left out: {', '.join(packed.left_out) or 'nothing'}")
    say(f"environment {', '.join(sorted(env))} handed over" + (f"; taken from the cluster: {', '.join(away)}" if (away := stays_here(env)) else ""))
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
            raise UserError(f"the cluster did not take the job: {_reason(error)}; try again when its nodes are up") from None
    uri = command.tracking or env.get("MLFLOW_TRACKING_URI")
    say(f"job         {job}")
    say(f"dashboard   {redact(address)}/#/jobs/{job}")
    say(f"MLflow      {redact(uri) if uri else 'where MLFLOW_TRACKING_URI of the cluster points, else a file under its storage root'}")
    return job


def follow(client, job: str, say, *, pause_s: float = 2) -> int:
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
            except (RuntimeError, OSError, aiohttp.ClientError) as error:  # the connection was lost: the job need not be
                if not silent:
                    say(f"the log of {job} broke off: {_reason(error)}")
            try:
                info, silent = client.get_job_info(job), 0
            except (RuntimeError, OSError) as error:
                silent += 1
                if silent == SILENCE:
                    say(f"the cluster tells nothing of {job} any more: {_reason(error)}; submitted again where one runs it continues")
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
    say(f"{job} {status.lower()}" + ("" if status == "SUCCEEDED" else f": {redact(info.message)}; submitted again it continues"))
    code = getattr(info, "driver_exit_code", None)
    return code if status == "FAILED" and code and code > 0 else EXIT_CODES[status]


def listed(client) -> list:
    """Submitted jobs, the newest last."""
    return sorted((j for j in client.list_jobs() if j.submission_id), key=lambda j: j.start_time or 0)


def line(job) -> str:
    """A job in one line."""
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime((job.start_time or 0) / 1000))
    return f"{job.submission_id:28} {_status(job):10} {when}  {redact(job.entrypoint)}"


def logs(client, job: str) -> str:
    """What the job has printed so far. UserError where there is no such job."""
    try:
        return client.get_job_logs(job)
    except RuntimeError as error:
        raise UserError(_unknown(client, job, error)) from None


def stop(client, job: str) -> bool:
    """Ask a job to end; its state is saved.   -> whether it was running. UserError where there is no such job."""
    try:
        return client.stop_job(job)
    except RuntimeError as error:
        raise UserError(_unknown(client, job, error)) from None


def _unknown(client, job: str, error: RuntimeError) -> str:
    names = [j.submission_id for j in listed(client)]
    if job in names:
        return f"job {job}: {_reason(error)}"
    return f"there is no job {job!r} on the cluster; there: {', '.join(names) or 'none'}"


def _status(job) -> str:
    return getattr(job.status, "value", job.status)


def _reason(error: Exception) -> str:
    lines = [line for line in redact(error).splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else type(error).__name__
