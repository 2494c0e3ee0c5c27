"""The MLflow server: its address, errors in words, and runs whose process was lost."""

import errno
import logging
import os
import re
from pathlib import Path

from aml.errors import UserError
from orchestrator import utils
from orchestrator.utils import redact

log = logging.getLogger(__name__)

KEY_TAG = "amlris.key"

# MLflow's answers that more patience does not change
PERMANENT = {
    "INVALID_PARAMETER_VALUE",
    "BAD_REQUEST",
    "RESOURCE_DOES_NOT_EXIST",
    "RESOURCE_ALREADY_EXISTS",
    "INVALID_STATE",
}

AWAY = {
    "TEMPORARILY_UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "REQUEST_LIMIT_EXCEEDED",
    "RESOURCE_EXHAUSTED",
    "UNAUTHENTICATED",
    "CUSTOMER_UNAUTHORIZED",
    "PERMISSION_DENIED",
}

REFUSED = {
    "UNAUTHENTICATED",
    "CUSTOMER_UNAUTHORIZED",
    "PERMISSION_DENIED",
    "INVALID_PARAMETER_VALUE",
}


def tracking_uri(uri: str | None, root: Path) -> str:
    """The address in use: `uri`, else MLFLOW_TRACKING_URI, else a SQLite file in the storage root. SQLite paths come
    out absolute.

    Raises UserError for an address that MLflow cannot track to."""
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    if not re.match(r"(sqlite|postgresql|mysql|mssql)(\+\w+)?://|https?://", uri):
        raise UserError(
            f"tracking.uri is {redact(uri)!r}, but MLflow tracks to a database or a server only: "
            "give sqlite:///FILE, postgresql://... or http(s)://..., or none"
        )
    if uri.startswith("sqlite:///"):
        uri = f"sqlite:///{Path(root).absolute() / uri.removeprefix('sqlite:///')}"
    return uri


def words_of(error: Exception) -> str:
    words = redact(str(error).strip().partition("\n")[0]) or type(error).__name__
    cause = re.search(
        r"Caused by \w+\(.*?: (.*?)[\"')]*$", words
    )  # urllib3 says three times where before it says what
    return (cause[1] if cause else words)[:300]


def no_room(error: Exception) -> bool:
    """Whether the disk that MLflow writes to is full, or over its quota: somebody may make room."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "disk is full" in str(
        error
    )


def refused(error: Exception, uri: str) -> bool:
    """Whether a failure to connect is an answer (wrong password, old schema, no driver) rather than silence."""
    code, local = getattr(error, "error_code", ""), not uri.startswith("http")
    if isinstance(error, ModuleNotFoundError) or (local and isinstance(error, OSError)):
        return True
    return code in REFUSED or (local and bool(code) and code not in AWAY)


def set_environment() -> None:
    """Before mlflow is imported: nothing phones home, no addresses on stdout, no progress bars, and retries that
    leave room for ours."""
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


class _Redacted(logging.Filter):
    """MLflow prints addresses with their passwords, and tracebacks of errors that it raises anyway."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args, record.exc_info, record.exc_text = (
            redact(record.getMessage()),
            None,
            None,
            None,
        )
        return True


def connect(uri: str):
    """An MlflowClient on `uri`; the process's own tracking address is left alone. The first call imports mlflow (5
    s)."""
    set_environment()
    from mlflow import MlflowClient

    noisy = logging.getLogger("mlflow")
    noisy.setLevel(max(noisy.level, logging.WARNING))
    for handler in noisy.handlers:
        if not any(isinstance(one, _Redacted) for one in handler.filters):
            handler.addFilter(_Redacted())
    return MlflowClient(tracking_uri=uri)


def _pages(search, *args):
    token = None
    while True:
        page = search(*args, page_token=token)
        yield from page
        if not (token := page.token):
            return


def reconcile(uri: str, experiment: str | None = None) -> list[str]:
    """Set RUNNING runs whose lease is dead to KILLED, `stopped_by: lost`, ended when last heard of; returns their
    names.

    Runs without a lease are not ours and stay. Raises ConnectionError, with the address redacted, if MLflow does not
    answer."""
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        return []
    try:
        client = connect(uri)
        found = (
            [client.get_experiment_by_name(experiment)]
            if experiment
            else list(_pages(client.search_experiments))
        )
        return _reconcile(client, [one.experiment_id for one in found if one])
    except Exception as error:
        raise ConnectionError(
            f"MLflow at {redact(uri)} does not answer: {words_of(error)}"
        ) from None


def _reconcile(client, experiment_ids: list[str]) -> list[str]:
    lost = []
    if not experiment_ids:
        return lost
    for run in list(_pages(client.search_runs, experiment_ids, "attributes.status = 'RUNNING'")):
        held = run.data.tags.get("lease", "")
        if re.fullmatch(r"\S+ \d+ \d+", held) and utils.is_dead(held):
            client.set_tag(run.info.run_id, "stopped_by", "lost")
            client.set_terminated(run.info.run_id, "KILLED", end_time=1000 * int(held.split()[2]))
            lost.append(run.info.run_name)
            log.warning(
                "MLflow run %s was left RUNNING by a process that is gone: now KILLED",
                run.info.run_name,
            )
    return lost
