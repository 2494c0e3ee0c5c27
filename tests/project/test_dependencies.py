"""Requirements: pinned, complete, and held to by everything that names a version."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
BROUGHT = {
    "aiohttp": "ray[default]",
    "huggingface_hub": "transformers",
    "markupsafe": "jinja2",
    "pandas": "mlflow",
    "pydantic_core": "pydantic",
    "tokenizers": "transformers",
    "typing_extensions": "pydantic",
    "peft": "the extra lora, which the model sam3 says where it is missing",
    "moto": "`bench data`, which says that it is missing",
}
"""Imported packages that requirements.txt does not list, and what brings them."""


def requirements(name: str) -> list[Requirement]:
    """Return the requirements that a file lists itself, without those of `-r` lines."""
    lines = (ROOT / name).read_text("utf-8").splitlines()
    texts = [line.partition("#")[0].strip() for line in lines]
    return [Requirement(text) for text in texts if text and not text.startswith("-r ")]


RUNTIME = requirements("requirements.txt")
DEVELOPMENT = requirements("requirements-dev.txt")
NAMED = {r.name: r for r in RUNTIME + DEVELOPMENT}


def test_every_requirement_is_pinned_and_named_once():
    assert len(NAMED) == len(RUNTIME) + len(DEVELOPMENT)
    loose = [
        str(r)
        for r in NAMED.values()
        if {s.operator for s in r.specifier} != {"=="} or "*" in str(r.specifier)
    ]
    assert loose == []


def test_development_builds_on_what_running_needs():
    lines = (ROOT / "requirements-dev.txt").read_text("utf-8").splitlines()
    assert "-r requirements.txt" in lines
    tools = {"pytest", "pytest-timeout", "ruff", "moto", "import-linter", "mypy"}
    assert tools <= {r.name for r in DEVELOPMENT}
    assert not tools & {r.name for r in RUNTIME}


def test_what_the_packages_import_is_required():
    imported = set()
    for path in [*(ROOT / "aml").rglob("*.py"), *(ROOT / "orchestrator").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(str(node.module).partition(".")[0])
    imported -= {*sys.stdlib_module_names, "aml", "orchestrator"}
    listed = {canonicalize_name(r.name) for r in RUNTIME}
    distributions = packages_distributions()
    missing = [
        name
        for name in sorted(imported - BROUGHT.keys())
        if not listed & set(map(canonicalize_name, distributions.get(name, [])))
    ]
    assert missing == []


def test_what_is_installed_is_what_is_required_and_fits_together():
    others = {
        name: version(name)
        for name, r in NAMED.items()
        if not r.specifier.contains(version(name), prereleases=True)
    }
    assert others == {}
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
    assert "dependencies" in project["project"]["dynamic"]
    assert "dependencies" not in project["project"]
    dynamic = project["tool"]["setuptools"]["dynamic"]
    assert dynamic["dependencies"] == {"file": ["requirements.txt"]}


def test_make_installs_both_lists_and_lints_with_every_tool():
    rules = (ROOT / "Makefile").read_text("utf-8")
    assert ".venv/.complete: requirements.txt requirements-dev.txt\n" in rules
    assert "-r requirements-dev.txt\n" in rules
    recipe = rules.partition("lint: env\n")[2].partition("\n\n")[0]
    for tool in ("ruff check", "ruff format --check", "lint-imports", "mypy"):
        assert tool in recipe, tool
    assert "make lint\nmake test\nmake sweep\n" in (ROOT / ".ci" / "run").read_text("utf-8")


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
    assert not any("requirements-dev" in text for text in texts.values())
    for path, text in texts.items():
        for name, given in re.findall(r"\b([a-z][\w-]+)(?:\[[\w,]+\])?==(\d[\w.]*)", text):
            assert name not in NAMED or NAMED[name].specifier.contains(given), (
                f"{path}: {name}=={given}"
            )
