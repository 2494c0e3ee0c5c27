"""Read large JSON files one element or one line at a time.

An annotation file of 100 MB would take gigabytes as Python objects.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from aml.errors import Unreadable
from aml.reading.files import open_file
from aml.reading.json_text import TOO_DEEP, check_characters, check_depth, decoder, parse_json
from aml.reading.short_repr import describe

CHUNK = 1 << 20
"""Characters read at a time."""

MAX_ELEMENT = 1 << 26
"""Characters of an element at most."""

SPACE = " \t\r\n"

ENDS = tuple(",]}:" + SPACE)
"""Characters that may follow a value."""


def elements(path: Path, keys: set[str], what: str) -> Iterator[tuple[str, Any]]:
    """Yield the elements of the arrays that an object in a file has under some keys.

    Elements are bounded as `parse_json` bounds a text.

    Args:
        path: a JSON file that holds one object.
        keys: names of the arrays.
        what: what was wanted, with its article, for messages.

    Yields:
        (key, element) in the order of the file; before the elements of each array (key, None).

    Raises:
        Unreadable: the file cannot be read, is not valid JSON or holds no object.
    """
    with open_file(path, what) as file:
        try:
            yield from _elements(_Text(io.TextIOWrapper(file, "utf-8-sig")), keys)
        except Unreadable:
            raise
        except ValueError as error:
            raise Unreadable(f"{path} is not valid JSON ({error}); get the file again") from None
        except RecursionError:
            raise Unreadable(f"{path} is not valid JSON ({TOO_DEEP}); get the file again") from None
        except OSError as error:
            raise Unreadable(f"{path} cannot be read ({error.strerror}); give {what}") from None


def json_lines(path: Path, what: str) -> Iterator[tuple[int, Any]]:
    """Yield the number, from 1, and the value of each line of a JSON Lines file; skip empty ones.

    Args:
        path: the file.
        what: what was wanted, with its article, for messages.

    Raises:
        Unreadable: the file cannot be read, a line has more than MAX_ELEMENT bytes, or is not as
            `parse_json` wants it.
    """
    with open_file(path, what) as file:
        number = 0
        try:
            while line := file.readline(MAX_ELEMENT + 1):
                number += 1
                if len(line) > MAX_ELEMENT:
                    raise Unreadable(
                        f"{path}, line {number}, has more than {MAX_ELEMENT >> 20} MiB; give {what}"
                    )
                if line.strip():
                    yield number, parse_json(line, f"{path}, line {number},")
        except OSError as error:
            raise Unreadable(f"{path} cannot be read ({error.strerror}); give {what}") from None


def _elements(text: "_Text", keys: set[str]) -> Iterator[tuple[str, Any]]:
    text.take("{")
    seen: set[str] = set()
    while text.peek() != "}":
        key = text.value()
        if not isinstance(key, str) or key in seen:
            raise ValueError(f"{describe(key)} is no key, or comes twice")
        seen.add(key)
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
    if text.peek():
        raise ValueError("something follows its end")


class _Text:
    """Text of a file, of which only the part being parsed is in memory."""

    def __init__(self, file: TextIO):
        self.file = file
        self.decoder = decoder()
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
            # a value that the buffer cuts is not valid, and a number may have too many digits
            except ValueError as error:
                why = getattr(error, "msg", error)
                place = self.dropped + getattr(error, "pos", self.position)
                if not self._more():
                    raise ValueError(f"{why} at char {place}") from None
            else:
                length = end - self.position
                # at the end of the buffer a number may go on
                if self.buffer[end : end + 1] in ENDS or not self._more():
                    read = self.buffer[self.position : self.position + length]
                    check_depth(read)
                    check_characters(read, found)
                    self.position += length
                    return found

    def _more(self) -> bool:
        """Read on, and return False at the end of the file.

        A value longer than a chunk doubles the buffer each time.
        """
        if len(self.buffer) - self.position > MAX_ELEMENT:
            raise ValueError(f"a value has more than {MAX_ELEMENT} characters")
        read = self.file.read(max(CHUNK, len(self.buffer) - self.position))
        self.dropped += self.position
        self.buffer = self.buffer[self.position :] + read
        self.position = 0
        return bool(read)
