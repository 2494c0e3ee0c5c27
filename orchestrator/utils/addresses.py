"""Addresses of buckets and of MLflow: what is served, and what must not be printed."""

from pathlib import Path
from urllib.parse import quote, unquote

from aml.errors import UserError
from aml.files import scheme_of
from orchestrator.utils.redaction import OPEN_OPTIONS, learn_secrets, redact

SCHEMES = ("s3",)
"""Schemes of the buckets that are read and written."""

SERVED = " or ".join(["a folder", *(f"{scheme}://BUCKET/PREFIX" for scheme in SCHEMES)])

MLFLOW_UI = "http://127.0.0.1:5000"
"""Address of the pages that the command `ui` serves, where no other port is given."""

TRAINING_PAGES = "workflowType=machine_learning"
"""Option of an address in the MLflow UI that shows model training and not prompts."""


def mlflow_pages(uri: str) -> str:
    """Return what the addresses of a tracking store's pages begin with.

    A server has its own pages; those of a database are there while the command `ui` runs.
    """
    return uri.rstrip("/") if uri.startswith(("http://", "https://")) else MLFLOW_UI


def ui_command(uri: str, program: str = "python -m orchestrator") -> str:
    """Return the command that serves the MLflow UI of a database, from any folder and shell.

    Args:
        uri: Address of the database.
        program: How the command begins.
    """
    if redact(uri) != uri or "***" in uri:
        return f"{program} ui   (with MLFLOW_TRACKING_URI set to {redact(uri)})"
    return f"{program} ui --store {quote(uri, safe=':/+@?=&%.,~')}"


def is_address(text: str | Path | None) -> bool:
    """Return whether a text is the address of a place in a bucket, and no path."""
    return str(text or "").startswith(tuple(f"{scheme}://" for scheme in SCHEMES))


def check_address(text: str, given_as: str = "the address") -> None:
    """Check a folder or an address as a person gave it, wherever one is given.

    Args:
        text: a path, or the address of a place in a bucket.
        given_as: what the message calls it, as AMLRIS_HOME.

    Raises:
        UserError: it is empty, its scheme is not served, it names no bucket, or it holds keys,
            which the message does not repeat.
    """
    if not text or "\0" in text:
        raise UserError(f"{given_as} is {text!r}; give {SERVED}")
    if text.startswith("~"):
        try:
            Path(text).expanduser()
        except RuntimeError:
            raise UserError(
                f"{given_as} is {text!r}, and there is no user of that name; give {SERVED}"
            ) from None
    scheme = scheme_of(text)
    if not scheme and text.partition(":")[0] not in SCHEMES:
        return
    learn_secrets(text)
    if scheme and scheme not in SCHEMES:
        raise UserError(f"{given_as} is {redact(text)}, which is not served; give {SERVED}")
    place, _, query = text.partition("?")
    bucket = place.partition("://")[2].partition("/")[0]
    options = dict(option.partition("=")[::2] for option in query.split("&") if option)
    if "@" in bucket or ":" in bucket or any("@" in unquote(one) for one in options.values()):
        raise UserError(
            f"{given_as} of {bucket.rpartition('@')[2] if '@' in bucket else 'a bucket'} holds "
            "keys, and addresses are logged; export AWS_ACCESS_KEY_ID and the like instead"
        )
    if not OPEN_OPTIONS.issuperset(options):  # a name may be a key, too
        raise UserError(
            f"{given_as} of {bucket or 'a bucket'} holds keys or an unknown option behind its "
            "question mark, and addresses are logged; give endpoint_override, region and scheme "
            "there, and export AWS_ACCESS_KEY_ID and the like"
        )
    if not is_address(text) or not bucket or not text.isprintable() or set(text) & set("# "):
        raise UserError(
            f"{given_as} is {redact(text)!r}, which names no bucket; give {SERVED} without spaces "
            "and #"
        )
