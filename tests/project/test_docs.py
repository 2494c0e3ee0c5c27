"""Hold the documents to the code: commands, settings, links, and what is generated."""

import argparse
import os
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer
from markdown.extensions.toc import slugify
from PIL import Image

from aml.bench import __main__ as bench
from aml.errors import UserError
from orchestrator.cli.app import app
from orchestrator.config import from_text, load, load_matrix
from tests.support.documents import (
    ROOT,
    START,
    block_lines,
    commands_after,
    documents,
    without_code,
)

DOCUMENTS = documents()
GROUP = typer.main.get_command(app)


def parsed(arguments: list[str]) -> tuple[str, dict]:
    """Return a command's name and its parameters, as the command line reads them."""
    command, name, rest = GROUP, "", list(arguments)
    while hasattr(command, "commands"):
        assert rest and rest[0] in command.commands, f"no command {' '.join(arguments)}"
        name = rest.pop(0)
        command = command.commands[name]
    return name, command.make_context(name, rest).params | {"rest": rest}


def problem(arguments: list[str]) -> str:
    """Return why a command cannot be meant, empty where it can.

    Options and settings are checked, and that the experiments it names are there.
    """
    arguments = [a for a in arguments if a != "..."]
    if not arguments or arguments[0].isupper():  # a placeholder, as COMMAND
        return ""
    if arguments[0] == "submit":
        names = [i for i, a in enumerate(arguments) if a in GROUP.commands and i]
        return problem(arguments[names[0] :]) if names else ""
    try:
        name, given = parsed(arguments)
        if name not in ("sweep", "train", "preview", "show") or "config" not in given:
            return ""
        if not given["config"].endswith(".yaml"):  # a placeholder, as EXPERIMENT
            return ""
        file, settings = ROOT / given["config"], given["overrides"] or []
        settings = [s for s in settings if ".py:" not in s]  # files that a reader writes
        if load_matrix(file, settings) is None:
            load(file, settings)
    except UserError as error:
        return str(error)
    except Exception as error:
        if not hasattr(error, "exit_code"):
            raise
        return f"{error}"
    return ""


@pytest.mark.parametrize("name", [n for n in DOCUMENTS if n != "CHANGELOG.md"])
def test_every_command_of_a_document_is_one(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    wrong = {
        " ".join(command): why
        for command in commands_after(DOCUMENTS[name], START)
        if (why := problem(command))
    }
    assert wrong == {}


def test_a_command_that_is_none_is_found(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert "No such option" in problem(["sweep", "experiments/smoke.yaml", "--dry"])
    assert "did you mean aml.tau" in problem(["sweep", "experiments/smoke.yaml", "aml.ta=1"])
    assert "cannot be read" in problem(["submit", "--follow", "sweep", "experiments/no.yaml"])


def test_targets_of_make_that_documents_name_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    for name, text in DOCUMENTS.items():
        lines = [*block_lines(text), *re.findall(r"`([^`]+)`", without_code(text))]
        calls = [re.match(r"make(?: \w+=\S+)* ([\w-]+)", line) for line in lines]
        named = {call[1] for call in calls if call}
        assert named <= targets, name


def test_every_command_of_the_bench_is_one(monkeypatch):
    class Parsed(Exception):
        pass

    parse = argparse.ArgumentParser.parse_args

    def only_parse(self, *arguments):
        parse(self, *arguments)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", only_parse)
    texts = [text for name, text in DOCUMENTS.items() if name != "CHANGELOG.md"]
    found = {c for text in texts for c in commands_after(text, "python -m aml.bench")}
    assert len(found) > 3
    for command in found:
        with pytest.raises(Parsed):
            bench.main(list(command))


def test_extras_that_documents_name_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    for name, text in DOCUMENTS.items():
        extras = set(re.findall(r"pip install '?\.\[(\w+)\]", text))
        assert extras <= set(project["optional-dependencies"]), name


# ---- links ---------------------------------------------------------------------------------------


def anchors(path: Path) -> set[str]:
    """Return the anchors of a page's headings that GitHub and the site agree on."""
    headings = re.findall(r"^#+ (.+)$", without_code(path.read_text("utf-8")), re.M)
    plain = [re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", text) for text in headings]
    on_github = {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in plain}
    return on_github & {slugify(text, "-") for text in plain}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_of_a_document_lead_somewhere(name):
    here = (ROOT / name).parent
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(DOCUMENTS[name])):
        if re.match(r"\w+:", link):
            assert link.startswith("https://"), link
            continue
        target, _, anchor = link.partition("#")
        path = here / target if target else ROOT / name
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(link)
    assert broken == []


def test_every_page_can_be_reached_from_the_readme():
    reached, waiting = set(), ["README.md"]
    while waiting:
        name = waiting.pop()
        if name in reached or not name.endswith(".md"):
            continue
        reached.add(name)
        folder = (ROOT / name).parent
        for link in re.findall(r"\]\(([^)\s#]+)", (ROOT / name).read_text("utf-8")):
            if "://" not in link:
                waiting.append((folder / link).resolve().relative_to(ROOT).as_posix())
    assert {n for n in DOCUMENTS if n.startswith("docs/")} - reached == set()


# ---- sizes, and what is generated ----------------------------------------------------------------


def test_the_readme_is_short():
    lines = DOCUMENTS["README.md"].splitlines()
    assert len(lines) <= 150
    assert [line for line in lines if len(line) > 120 and not line.startswith("|")] == []


def test_pictures_of_the_documentation_are_small():
    pictures = list((ROOT / "docs" / "pictures").iterdir())
    assert pictures
    assert [path.name for path in pictures if path.stat().st_size > 150_000] == []


def test_the_pictures_of_masks_can_be_drawn_again(data, tmp_path):
    script = runpy.run_path(str(ROOT / "docs" / "scripts" / "masks.py"))
    script["main"](data.checkpoint, tmp_path)
    for path in (ROOT / "docs" / "pictures").glob("*"):
        if (tmp_path / path.name).exists():
            assert Image.open(path).size == Image.open(tmp_path / path.name).size
    assert len(list(tmp_path.iterdir())) == 3


def test_the_command_reference_is_what_the_commands_say():
    script = ROOT / "docs" / "scripts" / "commands.py"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, script], env=environment, check=True, capture_output=True, text=True
    )
    written = (ROOT / "docs" / "commands.md").read_text("utf-8")
    assert written == done.stdout, "write it anew: make docs"


def test_the_first_page_names_every_command():
    table = DOCUMENTS["docs/index.md"].partition("## The commands")[2]
    named = set(re.findall(r"`([a-z]+)(?: [a-z]+)?`", table))
    assert named - {"amlris"} == set(GROUP.commands)


def test_fragments_of_experiments_are_settings():
    blocks = [
        block
        for text in DOCUMENTS.values()
        for block in re.findall(r"^```yaml\n(.*?)^```$", text, re.S | re.M)
        if not block.startswith("base:")
    ]
    assert blocks
    for block in blocks:
        from_text(f"name: x\ndata: {{train: shards}}\n{block}")
