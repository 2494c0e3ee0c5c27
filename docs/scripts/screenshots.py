"""Take the screenshots of docs/tutorial.md with a headless Chromium, and README's picture.

Run:   AMLRIS_HOME=RUNS PYTHONPATH=. python docs/scripts/screenshots.py SWEEP [FOLDER]
       SWEEP is a finished sweep below RUNS, as quickstart-849903bc; FOLDER is docs/pictures by
       default. The report is written anew by the code of the checkout, into a temporary folder.
Writes overview.png, report.png, report_arms.png, mlflow_runs.png and mlflow_compare.png.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from aml.inference.visualize import CAPTION, GAP, PANEL
from orchestrator import storage

CHROMIUM = os.environ.get("CHROMIUM", "chromium")
WIDTH = 1100
REPORT_WIDTH = 1060
TRAINING = "workflowType=machine_learning"
"""Makes MLflow show its pages for trainings, not those for language models."""

OVERVIEW = (3, 5)
"""Which sentences of a trial's picture README shows."""

MOVE_UP = """
const place = document.getElementById(location.search.slice(1));
if (place) document.body.style.marginTop = `${24 - place.getBoundingClientRect().top}px`;
"""
"""Shows a report from the place that stands behind the question mark of its address."""


def screenshot(
    address: str, path: Path, height: int, *, width: int = WIDTH, wait_ms: int = 3000
) -> None:
    """Write a picture of an address as a window of width x height pixels shows it."""
    with tempfile.TemporaryDirectory() as profile:
        command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--user-data-dir={profile}", f"--window-size={width},{height}"]
        command += [f"--virtual-time-budget={wait_ms}", f"--screenshot={path}", address]
        subprocess.run(command, check=True, capture_output=True, timeout=180)


def shrink(path: Path, box: tuple[int, int, int, int]) -> None:
    """Cut a picture to a box (left, top, right, bottom), and keep 128 of its colours."""
    cut = Image.open(path).convert("RGB").crop(box)
    cut.quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"wrote {path}, {path.stat().st_size // 1000} kB")


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def ask(address: str, question: dict | None = None) -> dict:
    """Return the JSON that an address of MLflow answers."""
    data = None if question is None else json.dumps(question).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
        return json.load(answer)


def picture_report(sweep: str, out: Path) -> None:
    """Take the top of a report, and its sections of baselines and arms."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "orchestrator", "report", sweep, "--out", folder]
        subprocess.run(command, check=True)
        page = Path(folder) / "index.html"
        # a headless window does not scroll: what stands before the wanted place is moved out of it
        text = re.sub(
            r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>", "", page.read_text("utf-8")
        )
        page.write_text(text.replace("</body>", f"<script>{MOVE_UP}</script></body>", 1), "utf-8")
        for name, place, height in (("report", "", 760), ("report_arms", "?baselines", 800)):
            path = out / f"{name}.png"
            screenshot(page.as_uri() + place, path, height, width=REPORT_WIDTH)
            shrink(path, (0, 0, REPORT_WIDTH, height))


def picture_overview(sweep: str, out: Path) -> None:
    """Cut two of the sentences out of a trial's picture of its last epoch."""
    trial = storage.storage_root() / sweep / "trials" / "aml_calibrated-confirm-000"
    whole = Image.open(max((trial / "pictures").glob("epoch-*.png")))
    row = PANEL + CAPTION + GAP
    cut = Image.new("RGB", (whole.width, CAPTION + 2 * row), "white")
    cut.paste(whole.crop((0, 0, whole.width, CAPTION)), (0, 0))
    for place, number in enumerate(OVERVIEW):
        top = CAPTION + number * row
        cut.paste(whole.crop((0, top, whole.width, top + row)), (0, CAPTION + place * row))
    path = out / "overview.png"
    cut.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"wrote {path}, {path.stat().st_size // 1000} kB")


def picture_mlflow(name: str, out: Path) -> None:
    """Take MLflow's list of a sweep's runs, and its comparison of all trials."""
    port = free_port()
    command = [sys.executable, "-m", "orchestrator", "ui", "--port", str(port)]
    server = subprocess.Popen(command, start_new_session=True)
    try:
        home = f"http://127.0.0.1:{port}"
        for _ in range(180):
            try:
                urllib.request.urlopen(f"{home}/health", timeout=5)  # noqa: S310
                break
            except OSError:
                time.sleep(1)
        api = f"{home}/api/2.0/mlflow"
        found = ask(f"{api}/experiments/get-by-name?experiment_name={name}")
        experiment = found["experiment"]["experiment_id"]
        runs = ask(f"{api}/runs/search", {"experiment_ids": [experiment], "max_results": 100})
        children = [
            run["info"]["run_id"]
            for run in runs["runs"]
            if any(tag["key"] == "mlflow.parentRunId" for tag in run["data"]["tags"])
        ]
        chosen = quote(json.dumps(children)), quote(json.dumps([experiment]))
        pages = {
            "mlflow_runs": (f"{home}/#/experiments/{experiment}/runs?{TRAINING}", 380),
            "mlflow_compare": (
                f"{home}/#/compare-runs?runs={chosen[0]}&experiments={chosen[1]}&{TRAINING}",
                640,
            ),
        }
        for title, (address, height) in pages.items():
            path = out / f"{title}.png"
            # a fresh profile sees MLflow's assistant on the right, which is cut off
            screenshot(address, path, 900, width=WIDTH + 376, wait_ms=40000)
            shrink(path, (0, 0, WIDTH, height))
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    pictures = Path(__file__).parents[1] / "pictures"
    target = Path(sys.argv[2]) if len(sys.argv) == 3 else pictures
    picture_overview(sys.argv[1], target)
    picture_report(sys.argv[1], target)
    picture_mlflow(sys.argv[1].rpartition("-")[0], target)
