"""Build the wheel, unpack it elsewhere and run the project from there."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import yaml

import aml
from orchestrator.cluster import packaging

ROOT = Path(__file__).parents[2]
PACKAGES = ("aml", "orchestrator")
FOLDERS = "aml|orchestrator|tests|cluster|experiments|docs"
TINY = [
    "data.synth={images: 24, size: 48}",
    "data.train=data/tiny",
    "data.size=32",
    "model={name: small, width: 16, stem: 8, heads: 2, dropout: 0.0}",
]


def files_of(folder: Path) -> set[str]:
    """Return the paths of the two packages' files below a folder, without compiled ones."""
    return {
        path.relative_to(folder).as_posix()
        for name in PACKAGES
        for path in (folder / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def pip(*arguments: object) -> None:
    """Run pip, and show what it printed where it fails."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built without a network from a copy: a build leaves files in its folder."""
    if importlib.util.find_spec("pip") is None:
        pytest.skip("pip is not in this environment: make env has it")
    source = tmp_path_factory.mktemp("source")
    for name in PACKAGES:
        shutil.copytree(
            ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE", "requirements.txt"):
        shutil.copy(ROOT / name, source)
    out = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", out, source)
    (made,) = out.iterdir()
    return made


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory) -> Path:
    """The folder in which the wheel is installed, inside a git repository of something else."""
    outer = tmp_path_factory.mktemp("another_project")
    folder = outer / "site"
    pip("install", "--quiet", "--no-deps", "--no-index", "--target", folder, wheel)
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "--quiet"], [*who, "commit", "--quiet", "--allow-empty", "-m", "x"]):
        subprocess.run(["git", *command], cwd=outer, check=True)
    return folder


@pytest.fixture
def run(site, tmp_path):
    """run(*command, code=0): run the installed project in an empty folder; return its output."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("AMLRIS_", "MLFLOW_"))}
    environment["PYTHONPATH"] = str(site)

    def command(*arguments: object, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    return command


def test_the_wheel_holds_every_file_of_the_packages(wheel):
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.split("/")[0] in PACKAGES}
    assert packed == files_of(ROOT)
    assert {"aml/py.typed", "orchestrator/py.typed", "orchestrator/cli/__init__.pyi"} <= packed
    data = {"report.html.j2", "report.css", "report.js", "published.yaml", "demo.html"}
    assert data <= {name.rpartition("/")[2] for name in packed}


def test_the_wheel_describes_itself(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (info,) = {name.split("/")[0] for name in archive.namelist() if ".dist-info/" in name}
        metadata = Parser().parsestr(archive.read(f"{info}/METADATA").decode())
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
        assert f"{info}/licenses/LICENSE" in archive.namelist()
    assert metadata["Version"] == aml.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_all("Project-URL") == ["Paper, https://arxiv.org/abs/2602.22740"]
    assert "amlris = orchestrator.cli:main" in entry_points
    required = metadata.get_all("Requires-Dist")
    assert any(line.startswith("torch==") for line in required)
    assert not any(line.startswith(("pytest", "ruff", "moto", "mypy")) for line in required)


def test_the_installed_command_uses_the_installed_packages(run, site, tmp_path):
    assert "sweep" in run(site / "bin" / "amlris", "--help")
    said = run(site / "bin" / "amlris", "doctor")
    assert f"{aml.__version__}, installed: {site}" in said
    assert f"storage       {tmp_path}/runs" in said
    assert "workers" in run("-m", "aml.bench", "--help")


def test_an_experiment_is_named_by_its_path(run, site, tmp_path):
    experiment = ROOT / "experiments" / "quickstart.yaml"
    said = run(site / "bin" / "amlris", "config", "show", experiment, "aml.tau=0.3")
    assert "name: quickstart" in said and "0.3" in said
    said = run(site / "bin" / "amlris", "preview", experiment, *TINY, "--n", "2")
    assert f"wrote {tmp_path / 'preview.html'}" in said and (tmp_path / "preview.html").is_file()
    assert (tmp_path / "runs" / "data" / "tiny").is_dir()


def test_an_environment_inside_another_repository_is_not_taken_for_it(run):
    code = "from orchestrator.utils import git_state; print(git_state())"
    assert run("-c", code).strip() == "('unknown', False)"


def test_a_logged_model_requires_the_versions_in_use_where_nothing_pins_them(run, site):
    (site / "requirements.txt").write_text("torch==0.0.1\n")
    code = (
        "from orchestrator.tracking.mlflow_model import _requirements\n"
        "print(*_requirements(big=False))"
    )
    said = run("-c", code)
    assert re.search(r"torch==[1-9]", said) and "torch==0.0.1" not in said


def test_a_job_gets_the_installed_code_where_there_is_no_checkout(site, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    (work / "mine.yaml").write_text("name: mine\n")
    packed = packaging.package_working_dir(work).with_installed(site)
    assert packed.size > 10**5
    packed.copy_to(tmp_path / "job")
    assert files_of(tmp_path / "job") == files_of(ROOT)
    assert (tmp_path / "job" / "mine.yaml").is_file()


def test_one_place_states_the_version_and_the_others_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert "version" not in project["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == aml.__version__
    assert citation["license"] == project["project"]["license"]
    assert f"## [{aml.__version__}]" in (ROOT / "CHANGELOG.md").read_text("utf-8")
    paper = project["project"]["urls"]["Paper"]
    assert paper.endswith(citation["references"][0]["identifiers"][0]["value"].split(":")[1])


def test_nothing_empty_lies_at_the_root():
    """A program that takes None for a path leaves an empty file of that name."""
    assert [p.name for p in ROOT.iterdir() if p.is_file() and not p.stat().st_size] == []


def test_paths_that_the_documents_name_exist():
    pages = [f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")]
    for name in ("README.md", "CONTRIBUTING.md", *pages):
        text = (ROOT / name).read_text("utf-8")
        named = set(re.findall(rf"`((?:{FOLDERS})/(?:[\w./*]*[./*]\w*)?)`", text))
        missing = [path for path in sorted(named) if not list(ROOT.glob(path))]
        assert missing == [], name


def test_the_architecture_lists_the_packages_in_the_order_of_their_imports():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]
    layers = [line for c in contracts["contracts"] for line in reversed(c.get("layers", []))]
    ordered = [name for line in layers for name in line.split(" : ")]
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    layout = page.partition("## Packages\n")[2]
    rows = [line for line in layout.splitlines() if line.startswith("| `")]
    listed = [name for row in rows for name in re.findall(r"`([\w.]+)`", row.split("|")[1])]
    ordered.remove("orchestrator.__main__")
    assert sorted(listed) == sorted(ordered)
    place = {name: number for number, line in enumerate(layers) for name in line.split(" : ")}
    assert [place[name] for name in listed] == sorted(place[name] for name in listed)
