"""One list of dependencies, held to by everything that names a version."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
LINES = [
    line
    for line in (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    if line.partition("#")[0].strip()
]
NAMED = {(r := Requirement(line.partition("#")[0].strip())).name: r for line in LINES}


def test_every_requirement_is_pinned_and_named_once():
    assert len(NAMED) == len(LINES)
    assert [
        str(r)
        for r in NAMED.values()
        if {s.operator for s in r.specifier} != {"=="} or "*" in str(r.specifier)
    ] == []


def test_what_is_installed_is_what_is_required_and_fits_together():
    assert {
        name: version(name)
        for name, r in NAMED.items()
        if not r.specifier.contains(version(name), prereleases=True)
    } == {}
    uv = Path(sys.executable).parent / "uv"
    if not uv.exists():
        pytest.skip("uv is not in this environment: make env installs it")
    checked = subprocess.run(
        [uv, "pip", "check", "--python", sys.executable],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr


def test_the_package_reads_its_dependencies_from_the_list():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert (
        project["project"]["dynamic"] == ["dependencies"]
        and "dependencies" not in project["project"]
    )
    assert project["tool"]["setuptools"]["dynamic"]["dependencies"] == {
        "file": ["requirements.txt"]
    }


def test_files_of_clusters_install_the_list_and_name_no_other_version():
    texts = {
        p.relative_to(ROOT): p.read_text("utf-8")
        for p in (ROOT / "cluster").rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    }
    assert (
        "-r requirements.txt" in texts[Path("cluster/Dockerfile")]
        and "requirements.txt" in texts[Path("cluster/aws.yaml")]
    )
    for path, text in texts.items():
        for name, given in re.findall(r"\b([a-z][\w-]+)(?:\[[\w,]+\])?==(\d[\w.]*)", text):
            assert name not in NAMED or NAMED[name].specifier.contains(given), (
                f"{path}: {name}=={given}"
            )
