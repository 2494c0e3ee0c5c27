"""Read the arrays of a large JSON object one element at a time.

An annotation file of 100 MB would take gigabytes as Python objects.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

CHUNK = 1 << 20
"""Characters read at a time."""

SPACE = " \t\r\n"

ENDS = tuple(",]}:" + SPACE)
"""Characters that may follow a value."""


def elements(path: Path, keys: set[str]) -> Iterator[tuple[str, Any]]:
    """Yield the elements of the arrays that an object in a file has under some keys.

    Args:
        path: a JSON file that holds one object.
        keys: names of the arrays.

    Yields:
        (key, element) in the order of the file; before the elements of each array (key, None).

    Raises:
        ValueError: the file is not valid JSON or holds no object.
        FileNotFoundError: there is no file.
    """
    with open(path, encoding="utf-8") as file:
        text = _Text(file)
        text.take("{")
        while text.peek() != "}":
            key = text.value()
            text.take(":")
            if key in keys and text.peek() == "[":
                yield key, None
                text.take("[")
                while text.peek() != "]":
                    yield key, text.value()
                    text.separator("]")
                text.take("]")
            else:
                text.value()
            text.separator("}")
        text.take("}")


class _Text:
    """Text of a file, of which only the part being parsed is in memory."""

    def __init__(self, file: TextIO):
        self.file = file
        self.decoder = json.JSONDecoder()
        self.buffer = ""
        self.position = 0  # in the buffer
        self.dropped = 0  # characters of the file before the buffer

    def peek(self) -> str:
        """Return the next character that is no white space; empty at the end of the file."""
        while True:
            while self.position < len(self.buffer) and self.buffer[self.position] in SPACE:
                self.position += 1
            if self.position < len(self.buffer) or not self._more():
                return self.buffer[self.position : self.position + 1]

    def take(self, wanted: str) -> None:
        """Skip the next character that is no white space, which must be the one wanted."""
        if self.peek() != wanted:
            raise ValueError(f"expecting {wanted!r} at char {self.dropped + self.position}")
        self.position += 1

    def separator(self, end: str) -> None:
        """Skip the comma between two elements; after the last one, check that the end follows."""
        if self.peek() != end:
            self.take(",")
            if self.peek() == end:
                raise ValueError(f"expecting a value at char {self.dropped + self.position}")

    def value(self) -> Any:
        """Return the next value; read on while the value may go on beyond the buffer."""
        self.peek()
        while True:
            try:
                found, end = self.decoder.raw_decode(self.buffer, self.position)
            except json.JSONDecodeError as error:
                if not self._more():
                    raise ValueError(f"{error.msg} at char {self.dropped + error.pos}") from None
            else:
                # at the end of the buffer a number may go on
                if self.buffer[end : end + 1] in ENDS or not self._more():
                    self.position = end
                    return found

    def _more(self) -> bool:
        """Read on, and return False at the end of the file.

        A value longer than a chunk doubles the buffer each time.
        """
        read = self.file.read(max(CHUNK, len(self.buffer) - self.position))
        self.dropped += self.position
        self.buffer = self.buffer[self.position :] + read
        self.position = 0
        return bool(read)
