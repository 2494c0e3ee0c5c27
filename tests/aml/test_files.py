"""Places of results: refused before anything is written, and somebody else's files left alone."""

import contextlib
import errno
import os
import shutil
import subprocess

import pytest

from aml import files
from aml.errors import NotSaved, UserError


@contextlib.contextmanager
def mounted(folder, options):
    """Mount a file system of memory on a folder; skip the test where that is not allowed."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("file systems may not be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def held(tmp_path):
    """A folder with one thing of each kind, and what it holds."""
    (tmp_path / "file").write_text("a thesis")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "broken").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    before = sorted(tmp_path.rglob("*"))
    yield tmp_path
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "file").read_text() == "a thesis"


NO_PLACE = [
    ("", "--out is empty"),
    ("a\0b", "holds a NUL character"),
    ("s3://bucket/x", "is an address"),
    ("gs:/bucket/x", "is an address"),
    ("/proc/x", "cannot be written"),
    ("/dev/null/x", "/dev/null is a device or a pipe, not a folder"),
    ("HERE/file/x", "file is a file, not a folder"),
    ("HERE/broken/x", "broken is a link, not a folder"),
    ("HERE/" + "n" * 300, "has a name of 300 bytes"),
    ("HERE/" + "n/" * 2500, "is too long"),
    ("HERE/pipe", "is a device or a pipe"),
    ("HERE/broken", "is a link"),
]


@pytest.mark.parametrize(("place", "says"), [*NO_PLACE, ("HERE/file", "is a file, and a folder")])
def test_no_place_for_a_folder(held, place, says):
    with pytest.raises(UserError, match=says):
        files.check_folder(place.replace("HERE", str(held)), "--out")


@pytest.mark.parametrize(
    ("place", "says"),
    [
        *NO_PLACE,
        ("HERE/folder", "is a folder, and a file"),
        ("HERE/link", "is a link, and a file"),
        ("HERE/file", "was not made by this program"),
        ("/dev/null", "is a device"),
    ],
)
def test_no_place_for_a_file(held, place, says):
    with pytest.raises(UserError, match=says):
        files.check_file(place.replace("HERE", str(held)), "--out")


def test_an_own_file_and_an_empty_one_are_written_again_but_no_input(tmp_path):
    (tmp_path / "page.html").write_text(f"<!doctype html>{files.MADE_BY}")
    (tmp_path / "empty").touch()
    for name in ("page.html", "empty", "new", "made/on/the/way"):
        files.check_file(tmp_path / name, "--out")
    with pytest.raises(UserError, match="is what this command reads"):
        files.check_file(tmp_path / "page.html", "--out", inputs=[tmp_path / "page.html"])
    assert not (tmp_path / "made").exists(), "a check makes nothing"


def test_a_folder_belongs_to_the_command_that_filled_it(tmp_path):
    (tmp_path / ".gitkeep").touch()
    files.check_own_folder(tmp_path, "--out", "report")
    files.mark_folder(tmp_path, "report")
    (tmp_path / "metrics.json").write_text("{}")
    files.check_own_folder(tmp_path, "--out", "report")
    with pytest.raises(UserError, match=r"holds metrics.json \(2 files and folders\)"):
        files.check_own_folder(tmp_path, "--out", "evaluation")
    (tmp_path / files.MARKER).rename(tmp_path / ".elsewhere")
    (tmp_path / files.MARKER).symlink_to(".elsewhere")
    with pytest.raises(UserError, match="did not write; give a new or an empty folder"):
        files.check_own_folder(tmp_path, "--out", "report")


def test_a_read_only_file_system_is_no_place(tmp_path):
    with (
        mounted(tmp_path / "disk", "ro,size=64k") as disk,
        pytest.raises(UserError, match="Read-only file system"),
    ):
        files.check_folder(disk / "new", "AMLRIS_HOME")


def test_a_full_disk_is_said_with_place_size_and_free_space(tmp_path):
    with mounted(tmp_path / "disk", "size=64k") as disk:
        with pytest.raises(NotSaved, match=r"new could not .*: it takes 9.5 MB, and 0.1 MB"):
            files.check_folder(disk / "new", "--out", wanted=10**7)
        (disk / "fill").write_bytes(bytes(2**16))
        with pytest.raises(NotSaved, match="page.html could not be written .* 0 bytes are free"):
            files.check_file(disk / "page.html", "--out")
        with (
            pytest.raises(NotSaved, match="x could not .*: it takes 3 bytes, .* make room"),
            files.writing(disk / "x", 3),
        ):
            (disk / "x").write_bytes(b"abc")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EISDIR])
def test_only_a_full_disk_is_told_to_be_made_room_on(tmp_path, number):
    with pytest.raises(NotSaved) as said, files.writing(tmp_path / "x", 5):
        raise OSError(number, os.strerror(number))
    assert os.strerror(number) in str(said.value) and "make room" not in str(said.value)
