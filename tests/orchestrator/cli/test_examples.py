"""What a newcomer is shown: how to begin, an example of every command, completion."""

import os
import shlex
import subprocess
import sys

import pytest
import typer.main

from orchestrator.cli.app import app, main
from orchestrator.cli.examples import EXAMPLES, FIRST
from orchestrator.utils import called_as


def commands(group, above=()):
    """Yield (name, command, group that it is in) of every command, groups left out."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*above, name))
        else:
            yield " ".join((*above, name)), command, group


def said(arguments, capsys):
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert not left.value.code
    return capsys.readouterr().out


def test_every_command_has_an_example_that_parses(capsys):
    found = list(commands(typer.main.get_command(app)))
    assert {name for name, _, _ in found} == set(EXAMPLES), "each has one, and none is left over"
    for name, command, _ in found:
        words = name.split()
        given = shlex.split(EXAMPLES[name])
        assert given[: len(words)] == words
        command.make_context(name, given[len(words) :])  # raises a usage error
        shown = " ".join(said([*words, "--help"], capsys).split())
        assert f"Example: python -m orchestrator {EXAMPLES[name]}" in shown
    for group in ([], ["data"], ["config"], ["bench"]):
        assert "Example: python -m orchestrator" in said([*group, "--help"], capsys)


def test_without_a_command_three_examples_are_shown(capsys):
    text = said([], capsys)
    for command, _ in FIRST:
        assert f"  {called_as()} {command}\n" in text
        group = typer.main.get_command(app)
        name, *given = shlex.split(command)
        group.commands[name].make_context(name, given)
    assert len(FIRST) == 3 and "--help lists all commands" in text


def test_a_shell_completes_commands_and_options():
    called = "import sys; sys.argv = ['amlris']; from orchestrator.cli import main; main()"
    for words, wanted in (("amlris swe", "sweep"), ("amlris demo --bes", "--beside")):
        asked = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        found = subprocess.run(
            [sys.executable, "-c", called],
            env=os.environ | asked | {"_AMLRIS_COMPLETE": "complete_bash"},
            capture_output=True,
            text=True,
        )
        assert found.stdout.split() == [wanted], found.stderr


def test_completion_of_what_no_shell_completes_is_refused(capsys):
    with pytest.raises(SystemExit) as left:
        main(["--install-completion", "bash"])
    assert left.value.code == 2 and "pip install ." in capsys.readouterr().err
