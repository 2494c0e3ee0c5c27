"""The project's documents, and the commands in them."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]

START = "python -m orchestrator"
"""Begins every command of the command line."""

GENERATED = ("docs/settings.md", "docs/commands.md")


def documents() -> dict[str, str]:
    """Return the Markdown documents that people write, by their paths from the root."""
    patterns = ("*.md", "docs/*.md", "cluster/README.md", "experiments/results/*.md")
    paths = [path for pattern in patterns for path in sorted(ROOT.glob(pattern))]
    names = [path.relative_to(ROOT).as_posix() for path in paths]
    return {
        name: path.read_text("utf-8")
        for name, path in zip(names, paths, strict=True)
        if name not in GENERATED
    }


def without_code(text: str) -> str:
    """Return a document without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M)


def block_lines(text: str) -> list[str]:
    """Return the lines of a document's bash blocks, those that go on with a backslash joined."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", text, re.S | re.M)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]


def block_commands(text: str) -> list[list[str]]:
    """Return the arguments of the command line's commands in a document's bash blocks."""
    lines = [line for line in block_lines(text) if line.startswith(START)]
    return [shlex.split(line, comments=True)[3:] for line in lines]


def commands_after(text: str, start: str) -> list[tuple[str, ...]]:
    """Return the arguments of every command of a document that begins with three words.

    They stand in bash blocks, indented blocks and between backticks.
    """
    prose = without_code(text).replace("\\\n", " ")
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    indented = [line.strip() for line in prose.splitlines() if line.startswith("    ")]
    lines = [line for line in [*block_lines(text), *spans, *indented] if line.startswith(start)]
    return [tuple(shlex.split(line, comments=True)[3:]) for line in lines]
