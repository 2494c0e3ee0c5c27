"""Read JSON whose shape is known: what does not have it is named, and the rest is returned."""

from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from aml.errors import Unreadable
from aml.reading.files import read_bytes
from aml.reading.json_text import parse_json
from aml.reading.short_repr import describe


def problem_of(kind: TypeAdapter, value: Any) -> str:
    """Return the first thing in which a value is not of a kind, in a few words; empty for none."""
    try:
        kind.validate_python(value, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["type"] == "value_error":
            return str(first["ctx"]["error"])
        place = describe(".".join(map(str, first["loc"])))[1:-1] or "it"
        missing = first["type"] == "missing"
        return f"{place} is {'missing' if missing else describe(first['input'])}"
    return ""


def read_lines(path: Path, kind: TypeAdapter) -> tuple[list[Any], list[str]]:
    """Return what the lines of a file of JSON lines hold, and what is wrong with each other line.

    Args:
        path: the file; a missing one has no lines.
        kind: what each line must be.

    Raises:
        Unreadable: the file cannot be read at all.
    """
    records: list[Any] = []
    problems: list[str] = []
    if not path.exists():
        return records, problems
    for number, line in enumerate(read_bytes(path).split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            record = parse_json(line, "it", nan=True)
            problem = problem_of(kind, record)
        except Unreadable as error:
            problem = str(error).rpartition(";")[0]
        if problem:
            problems.append(f"line {number}: {problem}")
        else:
            records.append(record)
    return records, problems
