"""Address an MLflow server, word its errors, open an experiment, end the runs of lost processes.

mlflow itself takes seconds to import, so the functions that need it import it when they are called.
"""

import errno
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aml import files
from aml.errors import UserError
from orchestrator import utils
from orchestrator.utils import redact

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

SQLITE = "sqlite:///"
"""Beginning of the address of a SQLite store; the path of its file follows."""

SQLITE_HEADER = b"SQLite format 3\0"
"""The first bytes of a SQLite database."""

KEY_TAG = "amlris.key"
"""Tag of every MLflow run of this project: "RUN_FOLDER/RUN_KEY"."""

KIND_TAG = {"mlflow.experimentKind": "custom_model_development"}
"""Tag of an experiment by which MLflow opens its page on runs and charts, not on prompts."""

DEFAULT = "Default"
"""Name of the experiment that MLflow creates in every new database."""

PERMANENT_CODES = {
    "INVALID_PARAMETER_VALUE",
    "BAD_REQUEST",
    "RESOURCE_DOES_NOT_EXIST",
    "RESOURCE_ALREADY_EXISTS",
    "INVALID_STATE",
}
"""Error codes of MLflow that stay the same however often a request is repeated."""

UNAVAILABLE_CODES = {
    "TEMPORARILY_UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "REQUEST_LIMIT_EXCEEDED",
    "RESOURCE_EXHAUSTED",
    "UNAUTHENTICATED",
    "CUSTOMER_UNAUTHORIZED",
    "PERMISSION_DENIED",
}
"""Error codes of MLflow that count as an outage: the request is kept and repeated."""

CONNECTION_REFUSED_CODES = {
    "UNAUTHENTICATED",
    "CUSTOMER_UNAUTHORIZED",
    "PERMISSION_DENIED",
    "INVALID_PARAMETER_VALUE",
}
"""Error codes that, while connecting, mean that the person has to change a setting."""


@dataclass
class ExperimentConnection:
    """An MLflow client together with the one experiment and the run folder that it serves."""

    client: "MlflowClient"
    experiment_id: str
    folder: Path
    """Folder of the run, whose name begins the tag `amlris.key`."""


def tracking_uri(uri: str | None, root: Path) -> str:
    """Return the tracking address in use, with the path of a SQLite file made absolute.

    Args:
        uri: Setting tracking.uri. None: the environment variable MLFLOW_TRACKING_URI, else a
            SQLite file in the storage root.
        root: Storage root, which relative SQLite paths refer to.

    Raises:
        UserError: MLflow cannot track to this kind of address.
    """
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    if not re.match(r"(sqlite|postgresql|mysql|mssql)(\+\w+)?://|https?://", uri):
        raise UserError(
            f"tracking.uri is {redact(uri)!r}, but MLflow tracks to a database or a server only: "
            "give sqlite:///FILE, postgresql://... or http(s)://..., or none"
        )
    if uri.startswith(SQLITE):
        uri = f"{SQLITE}{Path(root).absolute() / uri.removeprefix(SQLITE)}"
    return uri


def check_store(uri: str | None, root: Path) -> None:
    """Check, before anything starts, that a SQLite store can be made or written where it is wanted.

    Args:
        uri: Setting tracking.uri.
        root: Storage root.

    Raises:
        UserError: The address is of no kind that MLflow tracks to; or the file cannot be there, or
            is none of SQLite.
        NotSaved: There is no room.
    """
    if uri == "none":
        return
    uri = tracking_uri(uri, root)
    if not uri.startswith(SQLITE):
        return
    file = Path(uri.removeprefix(SQLITE).partition("?")[0])
    files.check_folder(file.parent, "the folder of the tracking store,")
    if not file.exists():
        return
    if not file.is_file() or file.open("rb").read(16) not in (b"", SQLITE_HEADER):
        raise UserError(
            f"the tracking store {file} is there and is no SQLite database; give another "
            "sqlite:///FILE, or none"
        )
    if not os.access(file, os.W_OK):
        raise UserError(
            f"the tracking store {file} may not be written; give another sqlite:///FILE, or none"
        )


def error_text(error: Exception) -> str:
    """Return the first line of an error, redacted, at most 300 characters."""
    text = redact(str(error).strip().partition("\n")[0]) or type(error).__name__
    # urllib3 names the address three times before it names the cause.
    cause = re.search(r"Caused by \w+\(.*?: (.*?)[\"')]*$", text)
    return (cause[1] if cause else text)[:300]


def is_disk_full(error: Exception) -> bool:
    """Check for a full disk or quota where MLflow writes: somebody may make room later."""
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return True
    return "disk is full" in str(error)


def is_connection_refused(error: Exception, uri: str) -> bool:
    """Check if a failure to connect is an answer, not an outage.

    Answers are a wrong password, an old schema or a missing database driver.
    """
    code = getattr(error, "error_code", "")
    is_local = not uri.startswith("http")
    if isinstance(error, ModuleNotFoundError) or (is_local and isinstance(error, OSError)):
        return True
    if code in CONNECTION_REFUSED_CODES:
        return True
    return is_local and bool(code) and code not in UNAVAILABLE_CODES


def set_environment() -> None:
    """Set MLflow's environment variables; call this before mlflow is imported.

    MLflow then sends no telemetry, prints no addresses and no progress bars, and leaves most of
    the retries to the delivery thread.
    """
    os.environ.update(
        MLFLOW_DISABLE_TELEMETRY="true",
        DO_NOT_TRACK="true",
        MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT="true",
    )
    defaults = {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_UV_AUTO_DETECT": "false",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


class _RedactingFilter(logging.Filter):
    """Redact MLflow's log records and drop their tracebacks.

    MLflow logs addresses with their passwords, and tracebacks of errors that it raises anyway.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg = redact(record.getMessage())
        record.args = None
        record.exc_info = None
        record.exc_text = None
        return True


def connect(uri: str) -> "MlflowClient":
    """Return an MlflowClient on `uri`; the process's own tracking address is left as it is.

    The first call imports mlflow, which takes about 5 s.

    Raises:
        UserError: The database was made by another version of MLflow.
    """
    set_environment()
    from mlflow import MlflowClient

    mlflow_logger = logging.getLogger("mlflow")
    mlflow_logger.setLevel(max(mlflow_logger.level, logging.WARNING))
    for handler in mlflow_logger.handlers:
        if not any(isinstance(known, _RedactingFilter) for known in handler.filters):
            handler.addFilter(_RedactingFilter())
    try:
        return MlflowClient(tracking_uri=uri)
    except Exception as error:
        if found := re.search(r"found version (\w+), but expected \w+", str(error)):
            raise UserError(_other_schema(uri, found[1])) from None
        raise


def _other_schema(uri: str, revision: str) -> str:
    """Return a sentence about a database whose schema is not that of the installed MLflow.

    Args:
        uri: Address of the database.
        revision: What the database says of its schema; every change of the schema has a file.
    """
    import mlflow

    changes = Path(mlflow.__file__).parent / "store" / "db_migrations" / "versions"
    if any(changes.glob(f"{revision}_*.py")):
        return (
            f"the MLflow database {redact(uri)} was made by an older MLflow than the installed "
            f"{mlflow.__version__}; copy it to a safe place, then bring it up to date with "
            f"`python -m mlflow db upgrade {redact(uri)}`"
        )
    return (
        f"the MLflow database {redact(uri)} has a schema ({revision}) that the installed MLflow "
        f"{mlflow.__version__} does not know, as of a newer one; set MLFLOW_TRACKING_URI to "
        "another, or install the MLflow that made it"
    )


def store_problem(uri: str) -> str:
    """Return why a database cannot be used for tracking, or an empty text.

    A SQLite file that is missing is no problem, and is not created.

    Args:
        uri: Tracking address, as tracking_uri returns it.
    """
    if _is_missing(uri):
        return ""
    try:
        with utils.announced_wait(f"MLflow at {redact(uri)} to answer"):
            connect(uri)
    except UserError as error:
        return str(error)
    except Exception as error:
        return f"MLflow at {redact(uri)} cannot be used: {error_text(error)}"
    return ""


def _is_missing(uri: str) -> bool:
    return uri.startswith(SQLITE) and not Path(uri.removeprefix(SQLITE)).exists()


def open_experiment(
    uri: str, experiment: str, root: Path, folder: Path, client: Any = None
) -> ExperimentConnection:
    """Connect to an MLflow store and find the experiment there, or create it.

    Args:
        uri: Tracking address, as tracking_uri returns it.
        experiment: Name of the experiment.
        root: Storage root, which holds the artifacts of a store that is not a server.
        folder: Folder of the run.
        client: Client to use in place of MLflow's own.

    Raises:
        PermissionError: The SQLite file may not be written.
        UserError: The experiment was deleted in MLflow.
    """
    artifacts = None if uri.startswith("http") else (root.absolute() / "artifacts").as_uri()
    # Of two processes that create the tables or the experiment at once, one would be told that the
    # store cannot be used.
    with _sqlite_lock(uri) if uri.startswith(SQLITE) else nullcontext():
        is_new = _is_missing(uri)
        client = client or connect(uri)
        found = client.get_experiment_by_name(experiment)
        if found is not None and found.lifecycle_stage != "active":
            raise UserError(
                f"the experiment {experiment!r} was deleted in MLflow; restore it there or choose "
                "another name"
            )
        if found is None:
            experiment_id = client.create_experiment(experiment, artifacts, KIND_TAG)
        else:
            experiment_id = found.experiment_id
            for name, value in KIND_TAG.items():
                if name not in found.tags:
                    client.set_experiment_tag(experiment_id, name, value)
        if is_new and experiment != DEFAULT:
            _hide_default(client)
    return ExperimentConnection(client, experiment_id, folder)


def _hide_default(client: "MlflowClient") -> None:
    """Delete MLflow's experiment Default, which a new database has and nothing here uses.

    MLflow keeps a deleted experiment, which can be restored. One with runs stays.
    """
    from mlflow.entities import ViewType

    found = client.get_experiment_by_name(DEFAULT)
    if found is None or found.lifecycle_stage != "active":
        return
    if not client.search_runs([found.experiment_id], run_view_type=ViewType.ALL, max_results=1):
        client.delete_experiment(found.experiment_id)


def _sqlite_lock(uri: str) -> AbstractContextManager[Any]:
    """Return a lock on the folder of a SQLite file, which is created where it is missing."""
    file = Path(uri.removeprefix(SQLITE))
    file.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise PermissionError(f"{file} may not be written")
    return utils.exclusive_lock(file.parent)


def reconcile(uri: str, experiment: str | None = None) -> list[str]:
    """Set the MLflow runs that lost processes left RUNNING to KILLED.

    Such a run gets the tag `stopped_by: lost` and the time of its last lease as its end. Runs
    without a lease were not made by this project and stay as they are.

    Args:
        uri: Tracking address, as tracking_uri returns it.
        experiment: Name of an experiment. None: all experiments.

    Returns:
        Names of the runs that were set to KILLED.

    Raises:
        ConnectionError: MLflow does not answer, or the database was made by another version of
            it; the address in the message is redacted.
    """
    if _is_missing(uri):
        return []
    try:
        with utils.announced_wait(f"MLflow at {redact(uri)} to answer"):
            client = connect(uri)
            if experiment:
                found = [client.get_experiment_by_name(experiment)]
            else:
                found = list(all_pages(client.search_experiments))
            return reconcile_experiments(client, [one.experiment_id for one in found if one])
    except UserError as error:
        raise ConnectionError(str(error)) from None
    except Exception as error:
        raise ConnectionError(
            f"MLflow at {redact(uri)} does not answer: {error_text(error)}"
        ) from None


def reconcile_experiments(client: "MlflowClient", experiment_ids: list[str]) -> list[str]:
    """Set RUNNING runs with a dead lease to KILLED in some experiments; return their names."""
    lost: list[str] = []
    if not experiment_ids:
        return lost
    running = all_pages(client.search_runs, experiment_ids, "attributes.status = 'RUNNING'")
    for run in list(running):
        lease = run.data.tags.get("lease", "")
        if re.fullmatch(r"\S+ \d+ \d+", lease) and utils.is_dead(lease):
            last_renewal_s = int(lease.split()[2])
            client.set_tag(run.info.run_id, "stopped_by", "lost")
            client.set_terminated(run.info.run_id, "KILLED", end_time=1000 * last_renewal_s)
            lost.append(run.info.run_name)
            logger.warning(
                "MLflow run %s was left RUNNING by a process that is gone: now KILLED",
                run.info.run_name,
            )
    return lost


def all_pages(search: Callable[..., Any], *args: Any) -> Iterator[Any]:
    """Yield the results of an MLflow search, page after page."""
    token = None
    while True:
        page = search(*args, page_token=token)
        yield from page
        token = page.token
        if not token:
            return
