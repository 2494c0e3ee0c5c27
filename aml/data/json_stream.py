"""The arrays of a large JSON object an element at a time: an annotation file of 100 MB takes gigabytes as Python objects."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

CHUNK = 1 << 20

"""Characters read at a time."""

SPACE = " \t\r\n"

ENDS = tuple(",]}:" + SPACE)

"""What may follow a value."""


def elements(path: Path, keys: set[str]) -> Iterator[tuple[str, object]]:
    """(key, element) of the arrays called so in the object that a file holds, in the file's order; (key, None) first for each array.

    ValueError where it is not valid JSON or not an object, FileNotFoundError where there is no file.
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
    """A file's text of which only what is being parsed is in memory."""

    def __init__(self, file: TextIO):
        self.file, self.held, self.at, self.before, self.decoder = (
            file,
            "",
            0,
            0,
            json.JSONDecoder(),
        )

    def peek(self) -> str:
        """The next character that is no white space; nothing at the end."""
        while True:
            while self.at < len(self.held) and self.held[self.at] in SPACE:
                self.at += 1
            if self.at < len(self.held) or not self._more():
                return self.held[self.at : self.at + 1]

    def take(self, wanted: str) -> None:
        if self.peek() != wanted:
            raise ValueError(f"expecting {wanted!r} at char {self.before + self.at}")
        self.at += 1

    def separator(self, end: str) -> None:
        """A comma between two elements, or the end after the last."""
        if self.peek() != end:
            self.take(",")
            if self.peek() == end:
                raise ValueError(f"expecting a value at char {self.before + self.at}")

    def value(self):
        """The next value. More is read as long as it may go on beyond what is held."""
        self.peek()
        while True:
            try:
                found, end = self.decoder.raw_decode(self.held, self.at)
            except json.JSONDecodeError as error:
                if not self._more():
                    raise ValueError(f"{error.msg} at char {self.before + error.pos}") from None
            else:
                if self.held[end : end + 1] in ENDS or not self._more():  # a number may go on
                    self.at = end
                    return found

    def _more(self) -> bool:
        """Read on, twice as far each time for a value that is longer than a chunk; False at the end of the file."""
        read = self.file.read(max(CHUNK, len(self.held) - self.at))
        self.before += self.at
        self.held, self.at = self.held[self.at :] + read, 0
        return bool(read)
