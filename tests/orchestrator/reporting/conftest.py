"""Fixtures of several files: commands as a user types them, and a finished sweep."""

import json

import pytest

from orchestrator.cli.app import main
from orchestrator.reporting import report
from tests.orchestrator.reporting.test_report import SWEEP, folder_of, ledger


@pytest.fixture
def command(capsys):
    def run(*arguments) -> tuple[int, str]:
        with pytest.raises(SystemExit) as left:
            main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return left.value.code, captured.out + captured.err

    return run


@pytest.fixture
def result(command):
    """Return a function that runs a command and returns its JSON result and all of its output."""

    def run(*arguments) -> tuple[dict, str]:
        code, text = command(*arguments, "--json")
        assert code == 0, text
        return json.loads(text.splitlines()[-1]), text

    return run


@pytest.fixture
def refused(command):
    def run(*arguments, said: str) -> None:
        code, text = command(*arguments)
        assert (
            code == 2 and text.splitlines()[-1].startswith("error: ") and "Traceback" not in text
        ), text
        assert said in text, text

    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = folder_of(tmp_path_factory.mktemp("finished"), SWEEP, ledger())
    page = report.write_report(folder)
    return page, page.read_text(encoding="utf-8")
