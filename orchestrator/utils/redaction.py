"""Removal of secrets from what is written or printed.

Secrets are passwords and options inside addresses, and the values of this process's environment
variables whose names say that they are secret. What an address of the environment, of the command
line or of the settings holds is removed wherever it stands, percent-encoded or decoded: libraries
quote parts of an address in their errors.
"""

import functools
import os
import re
from typing import Any
from urllib.parse import quote, unquote, unquote_plus

SECRET = re.compile(
    r"(?i)secret|token|passw|credential|private|api_?key|access_?key|(^|_)key($|_)|(^|_)auth($|_)"
    r"|connection_string"
)
"""Names of variables whose values are secret, except for those that `ABOUT` matches."""

ABOUT = re.compile(r"(?i)_(mode|type|name|prefix|provider|path|file|dir|url)$")
"""Names that say something about a secret: RAY_AUTH_MODE=disabled must not remove a common word."""

SHORTEST = 8
"""Characters: a shorter value may be a common word and is not removed."""

AZURE_PLACE = r"[a-z0-9$-]{3,63}@[a-z0-9]{3,24}\.(?:dfs|blob)\.[a-z0-9.-]+"
"""The container and the account of an abfs:// address, neither of which is secret."""

USER_INFO = re.compile(
    rf"(?<=://)(?!(?:(?<=abfs://)|(?<=abfss://)){AZURE_PLACE}(?:[/?\s'\"]|$))[^\s'\"/]*@"
)

USER_INFO_WITH_SLASH = re.compile(
    r"(?<=://)[^\s'\"/@:]+:[^\s'\"/@]*/[^\s'\"@]*@(?=[^\s'\"@/]+[:/])"
)
"""User names and passwords of addresses where the password contains a slash."""

QUERY = re.compile(r"(?<=[?&;])([^\s'\"&;=#]+)(=?)([^\s'\"&;#]*)")
"""An option in the query of an address: its name, the sign and its value."""

ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"]*")

USER = re.compile(r"[^/:@]*:(?!\d{1,5}/)(.*)@|([^/@:]+)@", re.DOTALL)
"""User name and password, up to the last @ of an address; a port and a path are neither."""

QUERY_SECRET = re.compile(
    r"(?i)([?&](?:token|password|passwd|secret|sig|signature|api_key|x-amz-[\w-]+)=)[^&\s'\"]+"
)
"""A secret option where the address has lost its beginning, as in a line of a server's log."""

OPEN_OPTIONS = frozenset(
    {
        *("region", "scheme", "endpoint_override", "smart_defaults", "tls_ca_file_path"),
        *("tls_verify_certificates", "allow_bucket_creation", "allow_bucket_deletion"),
        "allow_delayed_open",
        *("runs", "experiments", "workflowType"),
    }
)
"""Options of the address of a bucket, and of MLflow's page that compares runs, none of which is
secret; any other option of an address may be."""

_learned: set[str] = set()
"""Secrets of the addresses that this process was given, in every form."""


def redact(value: object) -> str:
    """Return a text with `***` in place of every secret.

    Removed are the user names, passwords and options of addresses in the text, the values of this
    process's secret variables, and what `learn_secrets` was told.
    """
    text = USER_INFO.sub("***@", str(value))
    text = USER_INFO_WITH_SLASH.sub("***@", text)
    text = QUERY_SECRET.sub(r"\1***", text)
    text = ADDRESS.sub(lambda address: QUERY.sub(_option, address[0]), text)
    for secret in secret_values():
        # %2F and %2f are the same
        text = re.sub(re.escape(secret), "***", text, flags=re.IGNORECASE)
    return text


def learn_secrets(*texts: str) -> None:
    """Have `redact` remove the passwords and options of addresses in some texts from now on."""
    for text in texts:
        _learned.update(_secrets_of_addresses(text))


def _option(found: re.Match[str]) -> str:
    name, sign, value = found.groups()
    if _is_open(name, value):
        return found[0]
    return f"{name}=***" if sign else "***"


def _is_open(name: str, value: str) -> bool:
    """Return whether an option holds no secret; an endpoint may have a password in it."""
    return name in OPEN_OPTIONS and "@" not in unquote(unquote(value))


@functools.lru_cache(256)
def _secrets_of_addresses(text: str) -> frozenset[str]:
    """Return the passwords and secret options in the addresses of a text, in every form.

    A text that is an address as a whole may have spaces and quotes in its password.
    """
    whole = re.fullmatch(r"(?:[\w.]+=)?[A-Za-z][A-Za-z0-9+.-]*://.*", text, re.DOTALL)
    found = []
    for address in [text] if whole else ADDRESS.findall(text):
        scheme, _, rest = address.partition("://")
        plain = scheme in ("abfs", "abfss") and re.match(rf"{AZURE_PLACE}(?:[/?]|$)", rest)
        if (user := USER.match(rest)) and not plain:
            found.append(user[1] or user[2])
        query = ADDRESS.search(address)
        for name, sign, value in QUERY.findall(query[0] if query else ""):
            if not sign or SECRET.search(name) or re.search("(?i)sig|pass|pwd", name):
                found.append(value if sign else name)
            elif "://" in unquote(value):  # the address of an endpoint
                found += _secrets_of_addresses(unquote(value))
    return frozenset(form for secret in found for form in _forms(secret) if _is_telling(form))


def _forms(secret: str) -> set[str]:
    """Return a secret as it is, decoded and encoded."""
    plain = unquote(secret)
    encoded = quote(plain, safe="")
    return {secret, plain, unquote_plus(secret), encoded, quote(plain), quote(encoded)}


def _is_telling(secret: str) -> bool:
    """Return whether a secret is no common word, whose removal would spoil a text."""
    return len(secret) >= SHORTEST or (len(secret) >= SHORTEST - 2 and not secret.isalpha())


def redact_all(value: Any) -> Any:
    """Return a JSON value with every string in it redacted; tuples become lists."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {key: redact_all(entry) for key, entry in value.items()}
    return [redact_all(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def secret_values() -> list[str]:
    """Return the secrets that this process knows, the longest first.

    The path of a file that exists is no secret, but a key may begin like a path.
    """
    values = set(_learned)
    for name, value in os.environ.items():
        if _is_secret(name) and len(value) >= SHORTEST and not value.isdigit():
            values |= set() if _is_path(value) else {value, quote(value, safe="")}
        elif "://" in value:
            values |= _secrets_of_addresses(value)
    return sorted(values, key=len, reverse=True)


def looks_secret(name: str, value: str) -> bool:
    """Return whether a variable is secret by its name, or holds an address with a password."""
    return _is_secret(name) or redact(value) != value


def _is_path(value: str) -> bool:
    return value.startswith(("/", "~", ".")) and os.path.exists(os.path.expanduser(value))


@functools.lru_cache(4096)
def _is_secret(name: str) -> bool:
    return bool(SECRET.search(name)) and not ABOUT.search(name)
