"""What a person is told: a command that works when it is typed again, where it was read."""

import subprocess
import sys
from pathlib import Path

from orchestrator.utils.messages import called_as

CHECKOUT = Path(__file__).parents[3]


def test_a_command_that_is_printed_can_be_typed_in_the_same_shell(tmp_path, monkeypatch):
    bin_folder = tmp_path / "a b" / "bin"
    bin_folder.mkdir(parents=True)
    (bin_folder / "python").symlink_to("/bin/true")
    monkeypatch.setattr(sys, "executable", str(bin_folder / "python"))
    monkeypatch.setenv("PATH", "/nowhere")
    assert called_as() == f"'{bin_folder}/python' -m orchestrator"
    monkeypatch.chdir(bin_folder.parent)
    assert called_as() == "bin/python -m orchestrator"
    monkeypatch.setenv("PATH", str(bin_folder))
    assert called_as() == "python -m orchestrator"
    monkeypatch.setattr(sys, "argv", ["/somewhere/amlris", "sweep"])
    assert called_as() == "amlris"


def test_a_python_without_the_packages_is_told_which_has_them():
    command = [sys.executable, "-S", "-m", "orchestrator", "ui"]  # without installed packages
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode == 2 and "source .venv/bin/activate" in done.stderr
    assert "Traceback" not in done.stderr and done.stderr.count("\n") == 1
