"""One list of dependencies, held to by everything that names a version; and what the audit says of it."""

import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from orchestrator.audit import judged

ROOT = Path(__file__).parents[1]
LINES = [line for line in (ROOT / "requirements.txt").read_text("utf-8").splitlines() if line.partition("#")[0].strip()]
NAMED = {(r := Requirement(line.partition("#")[0].strip())).name: r for line in LINES}


def test_every_requirement_is_pinned_and_named_once():
    assert len(NAMED) == len(LINES)
    assert [str(r) for r in NAMED.values() if {s.operator for s in r.specifier} != {"=="} or "*" in str(r.specifier)] == []


def test_what_is_installed_is_what_is_required_and_fits_together():
    assert {name: version(name) for name, r in NAMED.items() if not r.specifier.contains(version(name), prereleases=True)} == {}
    uv = Path(sys.executable).parent / "uv"
    if not uv.exists():
        pytest.skip("uv is not in this environment: make env installs it")
    checked = subprocess.run([uv, "pip", "check", "--python", sys.executable], capture_output=True, text=True, timeout=60, check=False)
    assert checked.returncode == 0, checked.stderr


def test_the_package_reads_its_dependencies_from_the_list():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert project["project"]["dynamic"] == ["dependencies"] and "dependencies" not in project["project"]
    assert project["tool"]["setuptools"]["dynamic"]["dependencies"] == {"file": ["requirements.txt"]}


def test_files_of_clusters_install_the_list_and_name_no_other_version():
    texts = {p.relative_to(ROOT): p.read_text("utf-8") for p in (ROOT / "cluster").rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert "-r requirements.txt" in texts[Path("cluster/Dockerfile")] and "requirements.txt" in texts[Path("cluster/aws.yaml")]
    for path, text in texts.items():
        for name, given in re.findall(r"\b([a-z][\w-]+)(?:\[[\w,]+\])?==(\d[\w.]*)", text):
            assert name not in NAMED or NAMED[name].specifier.contains(given), f"{path}: {name}=={given}"


CLEAN, HOLED = {"name": "a", "version": "1", "vulns": []}, {"name": "b", "version": "2", "vulns": [{"id": "GHSA-1", "fix_versions": ["2.1"]}]}
AWAY = {"name": "c", "skip_reason": "Dependency not found on PyPI and could not be audited: c (3)"}


@pytest.mark.parametrize(
    "dependencies, complaint, code, says",
    [
        ([CLEAN], "", 0, "0 known holes in 1 packages"),
        ([CLEAN, HOLED, AWAY], "", 1, "b 2: GHSA-1, mended in 2.1\n1 known holes in 2 packages; 1 could not be looked up"),
        (
            [AWAY, AWAY],
            "",
            2,
            "the audit was not made: the index's vulnerability service told nothing of any of 2 packages; try from another network",
        ),
        (None, "Traceback\nConnectionError: pypi.org\n", 2, "the audit was not made: ConnectionError: pypi.org"),
    ],
)
def test_the_audit_names_holes_and_never_takes_silence_for_a_clean_bill(dependencies, complaint, code, says):
    answer = "" if dependencies is None else json.dumps({"dependencies": dependencies, "fixes": []})
    assert judged(answer, complaint) == (code, says)
