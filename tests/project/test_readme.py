"""Run every command of the README on small data, and train with its snippet."""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch

from aml.training.losses import sample_losses

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
TINY = [
    "data.synth={images: 48, size: 48}",
    "data.train=data/quickstart",
    "data.size=32",
    "data.val_limit=16",
    "model={name: small, width: 16, stem: 8, heads: 2, dropout: 0.0}",
    "train={epochs: 2, batch: 16}",
    "evaluate={probe: 8, pictures: 2}",
]
"""Overrides that make a README command small; the command itself stays as it is printed."""


def commands() -> list[list[str]]:
    """Return the argument lists of the README's `python -m orchestrator` lines."""
    blocks = re.findall(r"```bash\n(.*?)```", README, re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    return [
        shlex.split(line, comments=True)[3:]
        for line in lines
        if line.startswith("python -m orchestrator")
    ]


def small(arguments: list[str]) -> list[str]:
    """Return a command's arguments with those that make it small."""
    if arguments[0] in ("train", "sweep", "preview"):
        quick = [
            a
            for a in TINY
            if not (arguments[1].endswith("refcoco.yaml") and a.startswith("data.train"))
        ]
        more = (
            ["search.seeds={confirm: 1}", "search.space={aml.tau: [0.5]}"]
            if arguments[0] == "sweep" and "search.method=tpe" not in arguments
            else []
        )
        more += (
            ["search.trials=2", "search.arms=[off, aml/calibrated]"]
            if "search.method=tpe" in arguments
            else []
        )
        more += (
            ["--dry-run"]
            if arguments[1].endswith("refcoco.yaml") and arguments[0] == "sweep"
            else []
        )  # one whole sweep is enough
        return [*arguments, *quick, *more]
    if arguments[0] == "synth":
        return [a if a != "2000" else "16" for a in arguments]
    return arguments


@pytest.fixture(scope="module")
def place(tmp_path_factory, scenes):
    """A working folder with the files that the README's commands read.

    They are REFER's files, COCO's pictures, and a picture of one's own.
    """
    folder = tmp_path_factory.mktemp("readme")
    (folder / "experiments").symlink_to(ROOT / "experiments")
    shutil.copytree(scenes, folder / "REFER")
    (folder / "COCO").symlink_to(folder / "REFER" / "images")
    (folder / "pictures").mkdir()
    for name in ("picture.jpg", "pictures/one.jpg"):
        shutil.copy(sorted((scenes / "images" / "train2014").iterdir())[0], folder / name)
    before = Path.cwd()
    home = os.environ.pop("AMLRIS_HOME", None)
    os.chdir(folder)
    yield folder
    os.chdir(before)
    if home is not None:
        os.environ["AMLRIS_HOME"] = home


def test_the_commands_of_the_readme(place, ray_session):
    # ui and demo serve until interrupted: they are tested below and in test_predict; test_train
    # trains on two workers
    skipped = ("ui", "demo", "train")
    todo = [c for c in commands() if c[0] not in skipped]
    assert len(todo) > 12
    # a reader has a sweep called quickstart from `make sweep`; here the one that searches with TPE
    # makes it, so it comes first
    todo.sort(key=lambda c: "search.method=tpe" not in c)
    for arguments in todo:
        code, text = ray_session(small(arguments))
        assert code == 0, (arguments, text)
    for made in (
        "scores/metrics.json",
        "scores/per_sentence.jsonl",
        "robust/metrics.json",
        "shared/metrics.json",
        "predictions/one.jpg.2.mask.png",
        "mask.png",
        "overlay.png",
        "preview.html",
        "data.html",
        "page/index.html",
    ):
        assert (place / made).exists(), made


def test_the_snippet_trains(make_model, items):
    code = re.search(r"```python\n(.*?)```", README, re.S).group(1)
    model = make_model(dropout=0.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    every = items["train"].batch(np.arange(16), model)
    losses = []

    def criterion(logits, truth):
        losses.append(sample_losses(logits, truth, "ce").mean())
        return losses[-1]

    batches = [(every.image, every.tokens, every.token_mask, every.mask, every.item)]
    names = {
        "model": model,
        "optimizer": optimizer,
        "criterion": criterion,
        "batches": batches,
        "epochs": 6,
    }
    exec(compile(code, "README.md", "exec"), names)  # noqa: S102 (the README's own snippet)
    assert losses[-1] < losses[0]


def test_the_mlflow_ui_serves_the_store(place):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestrator", "ui", "--port", str(port)],
        env=environment,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                assert (
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).read()
                    == b"OK"
                )
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(1)
        command = ["ps", "-A", "-o", "pgid=,args="]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        lines = [s for s in shown.splitlines() if s.split()[0] == str(process.pid)]
        assert lines and not [line for line in lines if "mlflow.db" in line], (
            "everybody reads command lines, and the address of a store may hold a password"
        )
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()
