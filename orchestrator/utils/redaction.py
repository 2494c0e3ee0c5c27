"""Removal of secrets from what is written or printed.

Secrets are passwords and signatures inside addresses, and the values of this process's environment
variables whose names say that they are secret.
"""

import functools
import os
import re
from typing import Any

SECRET = re.compile(
    r"(?i)secret|token|passw|credential|private|api_?key|access_?key|(^|_)key($|_)|(^|_)auth($|_)"
)
"""Names of variables whose values are secret, except for those that `ABOUT` matches."""

ABOUT = re.compile(r"(?i)_(mode|type|name|prefix|provider|path|file|dir|url)$")
"""Names that say something about a secret: RAY_AUTH_MODE=disabled must not remove a common word."""

SHORTEST = 8
"""Characters: a shorter value may be a common word and is not removed."""

USER_INFO = re.compile(r"(?<=://)[^\s'\"/]*@")

USER_INFO_WITH_SLASH = re.compile(
    r"(?<=://)[^\s'\"/@:]+:[^\s'\"/@]*/[^\s'\"@]*@(?=[^\s'\"@/]+[:/])"
)
"""User names and passwords of addresses where the password contains a slash."""

QUERY_SECRET = re.compile(
    r"(?i)([?&](?:token|password|passwd|secret|sig|signature|api_key|x-amz-[\w-]+)=)[^&\s'\"]+"
)


def redact(value: object) -> str:
    """Return a text with `***` in place of every secret.

    Removed are the user names, passwords and signatures of addresses in the text, and the values of
    this process's secret variables.
    """
    text = USER_INFO.sub("***@", str(value))
    text = USER_INFO_WITH_SLASH.sub("***@", text)
    text = QUERY_SECRET.sub(r"\1***", text)
    for secret in secret_values():
        text = text.replace(secret, "***")
    return text


def redact_all(value: Any) -> Any:
    """Return a JSON value with every string in it redacted; tuples become lists."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {key: redact_all(entry) for key, entry in value.items()}
    return [redact_all(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def secret_values() -> list[str]:
    """Return the values of this process's secret variables, the longest first.

    The path of a file that exists is no secret, but a key may begin like a path.
    """
    values = {
        value
        for name, value in os.environ.items()
        if _is_secret(name) and len(value) >= SHORTEST and not value.isdigit()
    }
    return sorted((value for value in values if not _is_path(value)), key=len, reverse=True)


def looks_secret(name: str, value: str) -> bool:
    """Return whether a variable is secret by its name, or holds an address with a password."""
    return _is_secret(name) or redact(value) != value


def _is_path(value: str) -> bool:
    return value.startswith(("/", "~", ".")) and os.path.exists(os.path.expanduser(value))


@functools.lru_cache(4096)
def _is_secret(name: str) -> bool:
    return bool(SECRET.search(name)) and not ABOUT.search(name)
