"""The server behind `ui` ends with the command, however that is ended."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = """
import os
import signal
from orchestrator import utils
from orchestrator.cli import surroundings

signal.signal(signal.SIGTERM, utils.stop_at_once)
signal.signal(signal.SIGINT, signal.default_int_handler)
server = "trap '' TERM; sleep 600 & echo $$ $!; wait; sleep 600"
surroundings.END_S = 0.5
raise SystemExit(surroundings._run_until_interrupted(["sh", "-c", server], dict(os.environ)))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_no_process_of_the_server_outlives_the_command(number):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    command = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        processes = [int(pid) for pid in command.stdout.readline().split()]
        assert len(processes) == 2
        command.send_signal(number)
        assert command.wait(60) == 0
        deadline = time.monotonic() + 60
        while any(map(_is_alive, processes)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        command.kill()
        command.wait()
        command.stdout.close()


def _is_alive(pid):
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
