"""Judge single values of a file: ids, texts and file names."""

import re
from pathlib import Path
from typing import Any

from aml.reading.short_repr import describe

ID = "a whole number from 0 to 2^63 - 1"
"""What an id must be, for messages; shards keep ids as signed 64-bit integers."""

SPLIT_LETTERS = 100
"""Letters of a split's name at most."""

NAME_LETTERS = 1000
"""Letters of a file's name with its folders at most."""


CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def is_id(value: Any) -> bool:
    """Return whether a value is an id: an int, no bool, of 63 bits."""
    return type(value) is int and 0 <= value < 2**63


def text_problem(value: Any, letters: int) -> str:
    """Return why a value cannot be used as a text, as "is 5, no text"; empty where it can.

    Args:
        value: the value.
        letters: length at most.
    """
    if not isinstance(value, str):
        return f"is {describe(value)}, no text"
    if len(value) > letters:
        return f"has {len(value)} letters, and {letters} are the most"
    if "\0" in value:
        return f"is {describe(value)}, with a NUL character"
    if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        return f"is {describe(value)}, with half of a character"
    return ""


def file_problem(name: Any, folder: str) -> str:
    """Return why a value cannot be used as the name of a file in a folder; empty where it can.

    Args:
        name: the value.
        folder: what the folder is, for the text.
    """
    problem = text_problem(name, NAME_LETTERS)
    if not problem and not name.strip():
        return "is empty"
    if not problem and CONTROL.search(name):
        return f"is {describe(name)}, with a control character"
    if not problem and (Path(name).is_absolute() or ".." in Path(name).parts):
        return f"is {describe(name)}, which leads out of {folder}"
    return problem


def split_problem(name: Any) -> str:
    """Return why a value cannot be used as the name of a split; empty where it can."""
    problem = text_problem(name, SPLIT_LETTERS)
    if not problem and (not name.strip() or "," in name or not name.isprintable()):
        return f"is {describe(name)}, and it must be one name without a comma"
    return problem
