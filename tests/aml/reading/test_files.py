"""Test that only regular files are read, up to a size."""

import os
import socket

import pytest

from aml.errors import UserError
from aml.reading import read_bytes, read_text


def a_socket(path):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


OTHERS = {
    "a named pipe": os.mkfifo,
    "a folder": os.mkdir,
    "a socket": a_socket,
    "a device": lambda path: os.symlink("/dev/zero", path),
    "missing": lambda path: None,
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_file_is_refused_without_being_opened(tmp_path, kind):
    OTHERS[kind](tmp_path / "x")
    with pytest.raises(UserError, match=rf"/x cannot be read \(it is {kind}\); give a table$"):
        read_bytes(tmp_path / "x", "a table")


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "\ud800"])
def test_a_name_that_no_file_can_have_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="cannot be read"):
        read_bytes(tmp_path / name)


def test_a_file_larger_than_the_limit_is_refused_whatever_size_it_states(tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(b"12345")
    assert read_bytes(tmp_path / "x", limit=5) == b"12345"
    with pytest.raises(UserError, match="is larger than .* MiB, the most for a table"):
        read_bytes(tmp_path / "x", "a table", limit=4)
    # files under /proc say that they are empty
    with pytest.raises(UserError, match="is larger than"):
        read_bytes("/proc/self/status", limit=4)


def test_text_is_utf_8_with_or_without_a_byte_order_mark(tmp_path):
    (tmp_path / "x").write_bytes("\ufeffé".encode())
    assert read_text(tmp_path / "x") == "é"
    (tmp_path / "x").write_bytes(b"ab\xe9")
    with pytest.raises(UserError, match="is not UTF-8 text .*at byte 2.; save it as UTF-8"):
        read_text(tmp_path / "x")
