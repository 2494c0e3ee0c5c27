"""Read regular files up to a size."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from aml.errors import Unreadable
from aml.reading.short_repr import describe

MAX_BYTES = 1 << 29
"""Largest file that is read as a whole unless a reader says otherwise, in bytes."""

PIECE = 1 << 20
"""Bytes read at a time."""

KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
"""What a path may name besides a file."""


def open_file(path: Path, what: str = "a file", name: str = "") -> BinaryIO:
    """Open a regular file for reading; anything else is refused without being opened.

    Args:
        path: the file.
        what: what was wanted, with its article, for messages.
        name: how messages begin; by default with the path.

    Raises:
        Unreadable: there is no such file, it may not be read, or is a folder, pipe or device.
    """
    name = name or str(path)
    try:
        _check_kind(name, os.stat(path), what)
        # should the file have become a pipe by now, this does not wait for its writer
        file = open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")  # noqa: SIM115
    except Unreadable:  # which is a ValueError, too
        raise
    except FileNotFoundError:
        raise Unreadable(f"{name} cannot be read (it is missing); give {what}") from None
    except OSError as error:
        raise Unreadable(f"{name} cannot be read ({error.strerror}); give {what}") from None
    except ValueError:  # a NUL, or a character that no file name of this system can have
        raise Unreadable(
            f"{describe(str(path))} cannot be read (no file can have that name); give {what}"
        ) from None
    try:
        _check_kind(name, os.fstat(file.fileno()), what)
    except Unreadable:
        file.close()
        raise
    return file


def read_bytes(path: Path, what: str = "a file", limit: int = MAX_BYTES, name: str = "") -> bytes:
    """Return the content of a regular file.

    Args:
        path: the file.
        what: what was wanted, with its article, for messages.
        limit: largest size in bytes.
        name: how messages begin; by default with the path.

    Raises:
        Unreadable: as `open_file`, or the file is larger.
    """
    content = bytearray()
    name = name or str(path)
    with open_file(path, what, name) as file:
        try:
            # the size that the system states is 0 for some files, and others grow
            while piece := file.read(PIECE):
                content += piece
                if len(content) > limit:
                    raise Unreadable(
                        f"{name} is larger than {limit / 2**20:g} MiB, the most for {what}; give a "
                        "smaller one"
                    )
        except OSError as error:
            raise Unreadable(f"{name} cannot be read ({error.strerror}); give {what}") from None
    return bytes(content)


def read_text(path: Path, what: str = "a text file", limit: int = MAX_BYTES) -> str:
    """Return the content of a UTF-8 file without its byte order mark.

    Args:
        path: the file.
        what: what was wanted, with its article, for messages.
        limit: largest size in bytes.

    Raises:
        Unreadable: as `read_bytes`, or the content is not UTF-8.
    """
    return decode_text(read_bytes(path, what, limit), str(path))


def decode_text(content: bytes, name: str) -> str:
    """Decode UTF-8, with or without a byte order mark.

    Raises:
        Unreadable: the content is not UTF-8; the sentence begins with `name`.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unreadable(
            f"{name} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from None


def _check_kind(name: str, found: os.stat_result, what: str) -> None:
    kind = stat.S_IFMT(found.st_mode)
    if kind != stat.S_IFREG:
        raise Unreadable(f"{name} cannot be read (it is {KINDS.get(kind, 'no file')}); give {what}")
