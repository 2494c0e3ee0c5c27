"""Places that a command writes to: checked before work begins, never somebody else's file.

A file made here holds the text `MADE_BY` in its first 4096 bytes, and a folder that a command
filled holds the file `MARKER`; both may be written again. Nothing here imports torch.
"""

import errno
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from aml.errors import NotSaved, UserError

MADE_BY = "made by amlris"
"""Text that every page and picture written at a person's request holds near its beginning."""

MARKER = ".amlris"
"""Name of the file that says which command filled a folder."""

DRAFT = ".amlris-draft"
"""End of the name of a file or folder that is being written, which is then renamed."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Numbers of errors that say that a disk or a quota takes no more."""

REFUSED = (
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP),
)
"""Numbers of errors that say that a file cannot be where it is wanted, or may not be used."""

PROBE_BYTES = 4096
"""Bytes that are written, under no name, to see whether a place takes any."""


def home_expanded(path: str | Path) -> Path:
    """Return a path whose ~ or ~NAME stands for a home folder; raise UserError for nobody's."""
    found = os.path.expanduser(path)
    if found.startswith("~") and not os.path.exists(found):
        raise UserError(
            f"{str(path)!r} begins with {found.split('/')[0]!r}, which is no user's "
            "home; write the folder out, or ./ before it"
        )
    return Path(found)


def scheme_of(text: str) -> str:
    """Return the scheme of an address, as `s3` of s3://bucket; empty for a path."""
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):(?=/|$)", text)
    return found[1] if found else ""


def is_full(error: BaseException) -> bool:
    """Return whether an error says that there is no room, as far as it says anything."""
    number = getattr(error, "errno", None)
    return number in FULL or (number is None and "Permission denied" not in str(error))


def write_failure(path: Path, error: Exception, wanted: int) -> str:
    """Return the message for a file or folder that could not be written.

    Args:
        path: the file or folder.
        error: the exception that was raised.
        wanted: size of what was to be written, in bytes; 0 where it is not known.
    """
    place = Path(path).absolute()
    free = shutil.disk_usage(next(p for p in (*place.parents, place) if os.path.isdir(p))).free
    why = getattr(error, "strerror", None) or " ".join(str(error).split())[:160]
    takes = f"it takes {_size(wanted)}, and " if wanted else ""
    advice = "make room" if is_full(error) else "mend that or choose another place"
    return (
        f"{path} could not be written ({why}): {takes}{_size(free)} are free there; what was saved "
        f"before is whole, so {advice} and give the same command again"
    )


@contextmanager
def writing(path: Path, wanted: int = 0) -> Iterator[None]:
    """Run a block that writes a file or folder, and word its failure.

    Args:
        path: the file or folder.
        wanted: size of what is written, in bytes; 0 where it is not known.

    Raises:
        NotSaved: the operating system refused; the message has path, size and free space.
    """
    try:
        yield
    except OSError as error:
        raise NotSaved(write_failure(path, error, wanted)) from error


@contextmanager
def removed_on_failure(draft: Path) -> Iterator[None]:
    """Run a block that writes a draft, and remove it where the block fails."""
    try:
        yield
    except BaseException:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise


def check_file(path: str | Path, given_as: str, inputs: Iterable[Path] = ()) -> None:
    """Check that a file can be written, and that nobody else's file would be lost.

    Args:
        path: the file.
        given_as: how the person gave it, as --out.
        inputs: files that the command reads.

    Raises:
        UserError: the place is of the wrong kind or may not be written; a link, an input of the
            command or a file that this program did not make is there.
        NotSaved: there is no room.
    """
    place = _readable_path(path, given_as, "a file")
    kind = _kind(place)
    if kind == "a file":
        if any(os.path.samefile(place, one) for one in inputs if os.path.exists(one)):
            raise UserError(f"{given_as} {path} is what this command reads; give another name")
        if not _made_here(place):
            raise UserError(
                f"{given_as} {path} is there and was not made by this program; move that file "
                "away or give another name"
            )
    elif kind:
        raise UserError(
            f"{given_as} {path} is {kind}, and a file is wanted; give the name of a file"
        )
    _check_writable(place.parent, place, given_as, 0)


def check_folder(path: str | Path, given_as: str, wanted: int = 0) -> None:
    """Check that a folder is there or can be made, and that it can be written.

    Args:
        path: the folder.
        given_as: how the person gave it, as --out or AMLRIS_HOME.
        wanted: bytes that will be written there; 0 where it is not known.

    Raises:
        UserError: the place is of the wrong kind, or may not be written.
        NotSaved: there is no room.
    """
    place = check_kind_of_folder(path, given_as)
    _check_writable(place, place, given_as, wanted)


def check_kind_of_folder(path: str | Path, given_as: str) -> Path:
    """Return a path that is a folder or nothing, absolute; nothing is written to find out.

    Raises:
        UserError: something else is there, or the path cannot be one.
    """
    place = _readable_path(path, given_as, "a folder")
    if not os.path.isdir(place) and (kind := _kind(place)):
        raise UserError(f"{given_as} {path} is {kind}, and a folder is wanted; give a folder")
    _nearest(place, place, given_as)
    return place


def check_own_folder(path: str | Path, given_as: str, kind: str) -> None:
    """Check that a folder is new, empty, or was filled by the same command before.

    Hidden files other than the marker do not count.

    Args:
        path: the folder.
        given_as: how the person gave it, as --out.
        kind: what the command fills it with, as `mark_folder` notes it.

    Raises:
        UserError: it holds somebody else's files, or see check_folder.
        NotSaved: there is no room.
    """
    check_folder(path, given_as)
    if not os.path.isdir(path):
        return
    held = [name for name in os.listdir(path) if name == MARKER or not name.startswith(".")]
    held.sort(key=lambda name: (name == MARKER, name))
    marker = Path(path) / MARKER
    known = marker.read_bytes() if _kind(marker) == "a file" else b""
    if held and known != marker_bytes(kind):
        raise UserError(
            f"{given_as} {path} holds {held[0]} ({len(held)} files and folders), which this "
            "command did not write; give a new or an empty folder"
        )


def mark_folder(path: str | Path, kind: str) -> None:
    """Make a folder and note what fills it, for `check_own_folder`.

    Raises:
        NotSaved: the operating system refused.
    """
    with writing(Path(path)):
        Path(path).mkdir(parents=True, exist_ok=True)
        (Path(path) / MARKER).write_bytes(marker_bytes(kind))


def marker_bytes(kind: str) -> bytes:
    """Return the content of the file `MARKER` in a folder of some kind."""
    return f"{MADE_BY}: {kind}\n".encode()


def _size(number: int) -> str:
    if number < 2**16:
        return f"{number} bytes"
    megabytes = number / 2**20
    return f"{megabytes:.1f} MB" if megabytes < 100 else f"{megabytes:.0f} MB"


def _readable_path(path: str | Path, given_as: str, wanted: str) -> Path:
    """Return a path absolute, or raise UserError where it cannot be one on this machine."""
    text = str(path)
    if isinstance(path, str) and not text:
        raise UserError(f"{given_as} is empty; give {wanted}")
    if "\0" in text:
        raise UserError(f"{given_as} {text!r} holds a NUL character; give {wanted}")
    if scheme := scheme_of(text):
        raise UserError(
            f"{given_as} is an address ({scheme}:), and this is written on this machine; give "
            f"{wanted}"
        )
    return Path(text).absolute()


def _kind(place: Path) -> str:
    """Return what is at a place, in words; empty where nothing is, or nothing can be."""
    try:
        mode = os.lstat(place).st_mode
    except OSError:  # `_nearest` says more
        return ""
    if stat.S_ISLNK(mode):
        return "a link"
    if stat.S_ISDIR(mode):
        return "a folder"
    return "a file" if stat.S_ISREG(mode) else "a device or a pipe"


def _made_here(place: Path) -> bool:
    """Return whether a file is empty or was written by this program."""
    try:
        with open(place, "rb") as file:
            head = file.read(4096)
    except OSError:
        return False
    return not head or MADE_BY.encode() in head


def _nearest(place: Path, whole: Path, given_as: str) -> Path:
    """Return the folder that is there and nearest above a place, or the place itself.

    Args:
        place: the folder to be written in.
        whole: the file or folder that was given.
        given_as: how the person gave it.

    Raises:
        UserError: something that is no folder is in the way, or a name is too long.
    """
    for anchor in (place, *place.parents):
        try:
            os.lstat(anchor)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                continue
            raise _refused(whole, given_as, error) from None
        break
    if not os.path.isdir(anchor):
        raise UserError(
            f"{given_as} {whole} cannot be written: {anchor} is {_kind(anchor)}, not a folder; "
            "give another place"
        )
    longest = os.pathconf(anchor, "PC_NAME_MAX") - len(DRAFT)
    if long := [n for n in whole.parts if len(os.fsencode(n)) > longest]:
        raise UserError(
            f"{given_as} has a name of {len(os.fsencode(long[0]))} bytes ({long[0][:40]}...), and "
            f"{longest} are the most there; give a shorter one"
        )
    if len(os.fsencode(whole)) > os.pathconf(anchor, "PC_PATH_MAX") - 2 * longest:
        raise UserError(f"{given_as} {str(whole)[:80]}... is too long; give a shorter path")
    return anchor


def _check_writable(place: Path, whole: Path, given_as: str, wanted: int) -> None:
    """Write some bytes under no name where a place is, or would be, and look at the free space."""
    anchor = _nearest(place, whole, given_as)
    try:
        with tempfile.TemporaryFile(dir=anchor) as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
    except OSError as error:
        if error.errno in FULL:
            raise NotSaved(write_failure(whole, error, wanted)) from None
        raise _refused(whole, given_as, error) from None
    if wanted > shutil.disk_usage(anchor).free:
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise NotSaved(write_failure(whole, full, wanted))


def _refused(whole: Path, given_as: str, error: OSError) -> UserError:
    return UserError(
        f"{given_as} {whole} cannot be written ({error.strerror}); give a place that may be written"
    )
