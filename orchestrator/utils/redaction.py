"""What must not be written or said: passwords and signatures inside addresses, and the values of this process's secret variables."""

import functools
import os
import re

SECRET = re.compile(
    r"(?i)secret|token|passw|credential|private|api_?key|access_?key|(^|_)key($|_)|(^|_)auth($|_)"
)

"""Names of variables whose values are secret ..."""

ABOUT = re.compile(r"(?i)_(mode|type|name|prefix|provider|path|file|dir|url)$")

"""... but for these, which say something about a secret: RAY_AUTH_MODE=disabled must not blot out a word."""

SHORTEST = 8

"""Characters: a shorter value is a word like any other."""


def redact(text: object) -> str:
    """`text` without the user names, passwords and signatures that addresses in it carry, and without what secret variables hold."""
    text = re.sub(r"(?<=://)[^\s'\"/]*@", "***@", str(text))
    text = re.sub(
        r"(?<=://)[^\s'\"/@:]+:[^\s'\"/@]*/[^\s'\"@]*@(?=[^\s'\"@/]+[:/])", "***@", text
    )  # a slash in the password
    text = re.sub(
        r"(?i)([?&](?:token|password|passwd|secret|sig|signature|api_key|x-amz-[\w-]+)=)[^&\s'\"]+",
        r"\1***",
        text,
    )
    for value in secret_values():
        text = text.replace(value, "***")
    return text


def redact_all(value):
    """A JSON value with every string in it redacted."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {k: redact_all(v) for k, v in value.items()}
    return [redact_all(v) for v in value] if isinstance(value, (list, tuple)) else value


def secret_values() -> list[str]:
    """What the secret variables of this process hold, the longest first; places of files are no secret, but a key may begin like one."""
    found = {
        v for k, v in os.environ.items() if _secret(k) and len(v) >= SHORTEST and not v.isdigit()
    }
    return sorted(
        (
            v
            for v in found
            if not (v.startswith(("/", "~", ".")) and os.path.exists(os.path.expanduser(v)))
        ),
        key=len,
        reverse=True,
    )


def looks_secret(name: str, value: str) -> bool:
    """By its name, or because the value is an address with a password."""
    return _secret(name) or redact(value) != value


@functools.lru_cache(4096)
def _secret(name: str) -> bool:
    return bool(SECRET.search(name)) and not ABOUT.search(name)
