"""Load pickles of plain data: lists, tuples and dicts of texts, bytes, numbers, True, False, None.

The unpickler is the standard library's one in Python, without the instructions that make anything
else, and with one call: that by which Python 3 writes bytes for Python 2. Its memo is a dict, where
the one in C allocates as many places as a file names; it carries out a limited number of
instructions; and keys are texts, since the hash of nested tuples may take forever and that of
integers can be chosen. It reads about three million instructions a second.
"""

import gc
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from aml.errors import Unreadable
from aml.reading.files import read_bytes
from aml.reading.short_repr import describe

MAX_BYTES = 96 << 20
"""Largest pickle in bytes; REFER's have up to 50 MB."""

MAX_INSTRUCTIONS = 20_000_000
"""Instructions at most, each of which may take 140 bytes; a file of 46 MB has about 9 million."""

MAX_VALUES = 20_000_000
"""Values at most, where each counts as often as it is reached; REFER's files have 3 million."""

MAX_LETTERS = 1 << 28
"""Letters of all texts at most, where each text counts as often as it is reached."""

MAX_DEPTH = 32
"""Containers inside each other at most."""

MAX_BITS = 64
"""Bits of an integer at most, without its sign."""

ADMITTED = [
    *(pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.POP, pickle.POP_MARK),
    *(pickle.PUT, pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE),
    *(pickle.GET, pickle.BINGET, pickle.LONG_BINGET),
    *(pickle.EMPTY_LIST, pickle.LIST, pickle.APPEND, pickle.APPENDS),
    *(pickle.EMPTY_DICT, pickle.DICT, pickle.SETITEM, pickle.SETITEMS),
    *(pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3),
    *(pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.FLOAT, pickle.BINFLOAT),
    *(pickle.INT, pickle.BININT, pickle.BININT1, pickle.BININT2),
    *(pickle.LONG, pickle.LONG1, pickle.LONG4),
    *(pickle.STRING, pickle.BINSTRING, pickle.SHORT_BINSTRING),
    *(pickle.UNICODE, pickle.BINUNICODE, pickle.SHORT_BINUNICODE, pickle.BINUNICODE8),
    *(pickle.BINBYTES, pickle.SHORT_BINBYTES, pickle.BINBYTES8),
    *(pickle.GLOBAL, pickle.STACK_GLOBAL, pickle.INST),  # end in find_class, which names them
    pickle.REDUCE,  # for bytes alone
]
"""Instructions that are carried out."""

BYTES_OF_TEXT = ("_codecs", "encode")
"""Function whose call stands for bytes: Python 3 writes them so in protocols 0 to 2."""


def read_pickle(path: Path, what: str = "a pickle") -> Any:
    """Return the plain data of a pickle of any protocol; texts of Python 2 are read as UTF-8.

    Args:
        path: the file.
        what: what was wanted, with its article, for messages.

    Raises:
        Unreadable: the file cannot be read, is damaged, too large, or holds more than plain data,
            of which nothing was run.
    """
    content = read_bytes(path, what, MAX_BYTES)
    collected = gc.isenabled()
    gc.disable()  # looking for garbage among millions of new objects takes most of the time
    try:
        value = _PlainUnpickler(content).load()
        _check_size(value)
    except Exception as error:  # a damaged pickle may raise almost anything
        known = isinstance(error, Unreadable)
        why = str(error) if known else f"{type(error).__name__}: {describe(str(error))}"
        raise Unreadable(
            f"{path} cannot be read as {what} ({why}); get the file from its source again"
        ) from None
    finally:
        if collected:
            gc.enable()
    return value


class _BytesOfText:
    """Stand in a pickle for BYTES_OF_TEXT, which itself is never looked up."""


class _Instructions(dict):
    """Functions of the instructions by their code; other instructions are refused."""

    def __missing__(self, code: int) -> NoReturn:
        raise Unreadable(
            f"the pickle has the instruction {bytes([code])!r}, which makes no plain data; nothing "
            "of it was run"
        )


_Unpickler: Any = pickle._Unpickler  # type: ignore[attr-defined]
"""The unpickler that is written in Python: private, but in every CPython."""


class _PlainUnpickler(_Unpickler):
    """Carry out the instructions of plain data alone."""

    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, content: bytes) -> None:
        file = io.BytesIO(content)
        super().__init__(file, encoding="utf-8", errors="replace")
        self.read = file.read
        self.readline = file.readline

    def load(self) -> Any:
        """Carry out the instructions and return what they made."""
        self.metastack: list[list] = []
        self.stack = []
        self.append = self.stack.append
        self.proto = 0
        self.encoded = 0
        try:
            for _ in range(MAX_INSTRUCTIONS):
                code = self.read(1)
                if not code:
                    raise Unreadable("the pickle ends early")
                self.dispatch[code[0]](self)
        except pickle._Stop as stop:  # type: ignore[attr-defined] # as the class
            return stop.value
        raise Unreadable(f"the pickle has more than {MAX_INSTRUCTIONS} instructions")

    def find_class(self, module: str, name: str) -> type[_BytesOfText]:
        """Refuse the class or function that the pickle names, before it is looked up."""
        if (module, name) == BYTES_OF_TEXT:
            return _BytesOfText
        raise Unreadable(
            f"the pickle names {describe(module)[1:-1]}.{describe(name)[1:-1]}, and only plain "
            "data is read; nothing of it was run"
        )

    def load_reduce(self) -> None:
        """Make bytes of a text in Latin-1, the only call that a pickle may have."""
        text = self.stack.pop()
        called = self.stack.pop()
        plain = type(text) is tuple and len(text) == 2 and text[1] in ("latin1", "latin-1")
        if called is not _BytesOfText or not plain or type(text[0]) is not str:
            raise Unreadable("the pickle calls a function, and only plain data is read")
        self.encoded += len(text[0])
        if self.encoded > MAX_LETTERS:
            raise Unreadable(f"the pickle holds bytes of more than {MAX_LETTERS} letters")
        self.append(text[0].encode("latin-1"))

    def load_frame(self) -> None:
        """Skip the length of a frame, which tells how much to read ahead."""
        self.read(8)

    def _set_items(self, target: Any, items: list) -> None:
        """Put [key, value, key, value, ...] into a dict whose keys are texts."""
        keys = items[::2]
        wrong = [key for key in keys if type(key) is not str]
        if type(target) is not dict or wrong:
            raise Unreadable(
                f"the pickle has a dict with the key {describe(wrong[0] if wrong else keys)}, and "
                "keys are texts"
            )
        target.update(zip(keys, items[1::2], strict=True))

    def load_setitem(self) -> None:
        """Put one key and value into the dict below them."""
        items = self.stack[-2:]
        del self.stack[-2:]
        self._set_items(self.stack[-1], items)

    def load_setitems(self) -> None:
        """Put keys and values above the mark into the dict below it."""
        items = self.pop_mark()
        self._set_items(self.stack[-1], items)

    def load_dict(self) -> None:
        """Make a dict of the keys and values above the mark."""
        items = self.pop_mark()
        found: dict[str, Any] = {}
        self._set_items(found, items)
        self.append(found)

    dispatch = _Instructions({code[0]: _Unpickler.dispatch[code[0]] for code in ADMITTED})
    dispatch[pickle.FRAME[0]] = load_frame
    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.DICT[0]] = load_dict


def _check_size(value: Any) -> None:
    """Raise Unreadable where containers are too deep, share too much, or an integer is too long.

    Lists that hold a list twice, forty levels deep, are small in memory, but no loop over their
    elements ends.
    """
    level: list = [[value]]
    values = letters = 0
    for _ in range(MAX_DEPTH + 1):
        below: list = []
        for container in level:
            values += len(container)
            if values > MAX_VALUES:
                break
            for inner in container.values() if type(container) is dict else container:
                kind = type(inner)
                if kind in (list, dict, tuple):
                    below.append(inner)
                elif kind in (str, bytes):
                    letters += len(inner)
                elif inner is _BytesOfText:
                    raise Unreadable("the pickle names a function, and only plain data is read")
                elif kind is int and inner.bit_length() > MAX_BITS:
                    raise Unreadable(f"the pickle holds {describe(inner)}")
        if values > MAX_VALUES or letters > MAX_LETTERS:
            raise Unreadable(
                f"the pickle holds more than {MAX_VALUES} values or {MAX_LETTERS} letters, where "
                "each counts as often as it is named"
            )
        if not below:
            return
        level = below
    raise Unreadable(f"the pickle has more than {MAX_DEPTH} lists and dicts inside each other")
