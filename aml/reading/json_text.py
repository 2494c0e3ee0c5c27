"""Parse JSON strictly and within bounds."""

import functools
import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

from aml.errors import Unreadable
from aml.reading.files import MAX_BYTES, decode_text, read_bytes
from aml.reading.short_repr import describe

MAX_DEPTH = 64
"""Lists and objects inside each other at most."""

TOO_DEEP = f"more than {MAX_DEPTH} lists and objects are inside each other"

MAX_DIGITS = 20
"""Digits of an integer at most; one of 64 bits has 19 or 20."""

_STRUCTURE = bytes(set(range(256)) - set(b'"[]{}'))
"""Bytes that say nothing about nesting."""

_SQUARE = bytes.maketrans(b"{}", b"[]")

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
"""Escape of half a character."""


def read_json(
    path: Path, what: str = "a JSON file", *, limit: int = MAX_BYTES, nan: bool = False
) -> Any:
    """Return the value of a JSON file.

    Args:
        path: the file.
        what: what was wanted, with its article, for messages.
        limit: largest size in bytes.
        nan: admit NaN and infinities.

    Raises:
        Unreadable: the file cannot be read, or its content is not as `parse_json` wants it.
    """
    return parse_json(read_bytes(path, what, limit), str(path), nan=nan)


def parse_json(
    text: str | bytes, name: str, *, nan: bool = False, advice: str = "get the file again"
) -> Any:
    """Return the value of a JSON text.

    Keys of an object are different, integers have at most MAX_DIGITS digits, numbers are finite,
    texts hold whole characters, and at most MAX_DEPTH lists and objects are inside each other.

    Args:
        text: the JSON, as UTF-8 where it is bytes; a byte order mark is skipped.
        name: what the text is, with which messages begin.
        nan: admit NaN and infinities.
        advice: what to do, with which messages end.

    Raises:
        Unreadable: the text is anything else.
    """
    text = decode_text(text, name) if isinstance(text, bytes) else text
    try:
        check_depth(text)
        value = decoder(nan).decode(text)
        check_characters(text, value)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise Unreadable(f"{name} is not valid JSON ({error.msg}, {place}); {advice}") from None
    except ValueError as error:
        raise Unreadable(f"{name} is not valid JSON ({error}); {advice}") from None
    return value


@functools.cache
def decoder(nan: bool = False) -> json.JSONDecoder:
    """Return a decoder that raises ValueError for what `parse_json` refuses, except for depth."""
    return json.JSONDecoder(
        object_pairs_hook=_object,
        parse_int=_integer,
        parse_float=float if nan else _number,
        parse_constant=float if nan else _constant,
    )


def check_depth(text: str) -> None:
    """Raise ValueError where more than MAX_DEPTH lists and objects are inside each other.

    The text is judged before it is parsed, since the parser calls itself for each level.
    """
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    content = text.encode("utf-8", "surrogatepass")
    if b"\\" in content:
        content = content.replace(rb"\\", b"").replace(rb"\"", b"")
    # texts without brackets become two quotes, the others are cut out one by one
    content = content.translate(None, _STRUCTURE).replace(b'""', b"")
    content = re.sub(rb'"[^"]*"', b"", content).translate(_SQUARE)
    for _ in range(MAX_DEPTH):
        if b"[]" not in content:
            break
        content = content.replace(b"[]", b"")
    if b"[]" in content or content.count(b"[") > MAX_DEPTH:
        raise ValueError(TOO_DEEP)


def check_characters(text: str, value: Any) -> None:
    """Raise ValueError where a text of the parsed value holds half a character.

    Args:
        text: the JSON.
        value: what it was parsed to.
    """
    if _SURROGATE.search(text) or not text.isascii():
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = describe(error.object[error.start])
            raise ValueError(f"a text holds {half}, half of a character") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
    raise ValueError(f"an object has the key {describe(twice)} twice")


def _integer(text: str) -> int:
    digits = len(text.lstrip("-"))
    if digits > MAX_DIGITS:
        raise ValueError(f"the integer {text[:12]}... has {digits} digits")
    return int(text)


def _number(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text[:20]} is too large")
    return value


def _constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")
