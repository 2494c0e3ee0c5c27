"""Print the reference of the commands, docs/commands.md.

Run:   PYTHONPATH=. python docs/scripts/commands.py > docs/commands.md
"""

from typer import Context
from typer.cli import get_docs_for_click
from typer.core import TyperGroup
from typer.main import get_command

from orchestrator.cli.app import app


def whole_sentences(group: TyperGroup) -> None:
    """Let lists of commands show the first paragraph of each help whole; typer would cut it."""
    for command in group.commands.values():
        command.short_help = " ".join((command.help or "").split("\n\n")[0].split())
        if isinstance(command, TyperGroup):
            whole_sentences(command)


def reference() -> str:
    """Return the reference as Markdown."""
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    whole_sentences(group)
    text = get_docs_for_click(
        obj=group, ctx=Context(group), name="python -m orchestrator", title="Commands"
    )
    return f"{text.strip()}\n"


if __name__ == "__main__":
    print(reference(), end="")
