"""Addresses of buckets and of MLflow: what is served, and what must not be printed."""

import re
from pathlib import Path
from urllib.parse import quote, unquote

from aml.errors import UserError
from aml.files import scheme_of
from orchestrator.utils.redaction import AZURE_PLACE, OPEN_OPTIONS, learn_secrets, redact

RESULTS = ("s3", "gs")
"""Schemes of the buckets that may hold results.

Azure's are not among them: pyarrow empties an object there before it writes it anew, so that a run
whose machine is lost in that moment would be lost, and its lease would look free.
"""

SCHEMES = (*RESULTS, "abfs", "abfss", "hf")
"""Schemes of the buckets that may hold shards; those of hf:// are only read."""

FORMS = {
    "abfs": "abfs://container@account.dfs.core.windows.net/PREFIX",
    "hf": "hf://datasets/OWNER/NAME",
}
"""How an address is spelt where that is not SCHEME://BUCKET/PREFIX."""

KEYS = {
    "s3": "AWS_ACCESS_KEY_ID and the like",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "abfs": "AZURE_STORAGE_KEY, AZURE_STORAGE_SAS_TOKEN or AZURE_CLIENT_ID and the like",
    "abfss": "AZURE_STORAGE_KEY, AZURE_STORAGE_SAS_TOKEN or AZURE_CLIENT_ID and the like",
    "hf": "HF_TOKEN",
}
"""The variables from which the keys of a bucket are taken, by its scheme."""

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


def check_address(text: str, given_as: str = "the address", *, results: bool = False) -> None:
    """Check a folder or an address as a person gave it, wherever one is given.

    Args:
        text: a path, or the address of a place in a bucket.
        given_as: what the message calls it, as AMLRIS_HOME.
        results: whether results are to be kept there, not only shards.

    Raises:
        UserError: it is empty, its scheme is not served, it names no bucket, or it holds keys,
            which the message does not repeat.
    """
    served = _served(RESULTS if results else SCHEMES)
    if not text or "\0" in text:
        raise UserError(f"{given_as} is {text!r}; give {served}")
    if text.startswith("~"):
        try:
            Path(text).expanduser()
        except RuntimeError:
            raise UserError(
                f"{given_as} is {text!r}, and there is no user of that name; give {served}"
            ) from None
    scheme = scheme_of(text)
    if not scheme and text.partition(":")[0] not in SCHEMES:
        return
    learn_secrets(text)
    if scheme and scheme not in SCHEMES:
        raise UserError(f"{given_as} is {redact(text)}, which is not served; give {served}")
    _check_no_keys(text, scheme or text.partition(":")[0], given_as)
    if not _names_bucket(text, scheme):
        raise UserError(
            f"{given_as} is {redact(text)!r}, which names no bucket; give {served} without spaces "
            "and #"
        )
    if results and scheme not in RESULTS:
        why = (
            "which is only read"
            if scheme == "hf"
            else "where shards may be but no results: an object is empty there while it is "
            "written anew, and a run whose machine is lost in that moment would be lost"
        )
        raise UserError(f"{given_as} is {redact(text)}, {why}; give {served}")


def _check_no_keys(text: str, scheme: str, given_as: str) -> None:
    """Raise UserError where an address holds keys, or what may be one."""
    place, _, query = text.partition("?")
    bucket = place.partition("://")[2].partition("/")[0]
    options = dict(option.partition("=")[::2] for option in query.split("&") if option)
    plain = scheme.startswith("abfs") and re.fullmatch(AZURE_PLACE, bucket)
    in_bucket = not plain and ("@" in bucket or ":" in bucket)
    if in_bucket or any("@" in unquote(one) for one in options.values()):
        raise UserError(
            f"{given_as} of {bucket.rpartition('@')[2] if '@' in bucket else 'a bucket'} holds "
            f"keys, and addresses are logged; export {KEYS[scheme]} instead"
        )
    if not OPEN_OPTIONS.issuperset(options):  # a name may be a key, too
        raise UserError(
            f"{given_as} of {bucket or 'a bucket'} holds keys or an unknown option behind its "
            "question mark, and addresses are logged; give endpoint_override, region and scheme "
            f"there, and export {KEYS[scheme]}"
        )


def _names_bucket(text: str, scheme: str) -> bool:
    """Return whether an address is complete, of the form that its scheme has."""
    bucket, _, inner = text.partition("?")[0].partition("://")[2].partition("/")
    if not is_address(text) or not bucket or not text.isprintable() or set(text) & set("# "):
        return False
    if scheme == "hf":
        return bucket == "datasets" and len([part for part in inner.split("/") if part]) >= 2
    return not scheme.startswith("abfs") or bool(re.fullmatch(AZURE_PLACE, bucket))


def _served(schemes: tuple[str, ...]) -> str:
    forms = [FORMS.get(one, f"{one}://BUCKET/PREFIX") for one in schemes if one != "abfss"]
    return f"a folder, {', '.join(forms[:-1])} or {forms[-1]}"
