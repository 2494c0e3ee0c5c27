"""Run the commands of the README and of the pages that use the quickstart, on small data.

`test_docs.py` holds the commands of all documents to the command line without running them.
"""

import os
import re
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
from PIL import Image

from aml.training.losses import sample_losses
from tests.support.documents import ROOT, block_commands, documents

PAGES = (
    "README.md",
    *(f"docs/{n}.md" for n in ("data", "evaluating", "arms", "sweeps", "results")),
)
"""The documents whose commands are run; the tutorial's are among them."""

ELSEWHERE = ("ui", "demo", "train", "submit")
"""Commands that serve, need a cluster or train to the end: the first is run below, the others in
test_predict, test_train and test_jobs."""

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
    """Return the commands of the pages, each once."""
    texts = documents()
    found = [command for page in PAGES for command in block_commands(texts[page])]
    return [c for i, c in enumerate(found) if c not in found[:i] and c[0] not in ELSEWHERE]


def small(arguments: list[str]) -> list[str]:
    """Return a command's arguments with those that make it small.

    One sweep runs, the one that searches with TPE; of the others the plan is made.
    """
    if arguments[0] == "synth":
        return [a if a != "2000" else "16" for a in arguments]
    if arguments[0] not in ("sweep", "preview"):
        return arguments
    own = any(a.startswith("data.train=") for a in arguments) or "refcoco.yaml" in arguments[1]
    quick = [a for a in TINY if not (own and a.startswith("data."))]
    quick += ["data.size=32"] if own else []
    if arguments[0] == "preview":
        return [*arguments, *quick]
    quick += ["search.seeds={confirm: 1}"]
    if "search.method=tpe" in arguments:
        return [*arguments, *quick, "search.trials=2", "search.arms=[off, aml/calibrated]"]
    searched = [] if "search.trials=0" in arguments else ["search.space={aml.tau: [0.5]}"]
    return [*(a for a in arguments if a != "--dry-run"), *quick, *searched, "--dry-run"]


@pytest.fixture(scope="module")
def place(tmp_path_factory, scenes):
    """A working folder with the files that the README's commands read.

    They are REFER's files, COCO's pictures, a picture and a table of one's own.
    """
    folder = tmp_path_factory.mktemp("readme")
    (folder / "experiments").symlink_to(ROOT / "experiments")
    shutil.copytree(scenes, folder / "REFER")
    (folder / "COCO").symlink_to(folder / "REFER" / "images")
    (folder / "pictures").mkdir()
    for name in ("picture.jpg", "pictures/one.jpg"):
        shutil.copy(sorted((scenes / "images" / "train2014").iterdir())[0], folder / name)
    write_table(folder / "mine.csv")
    before = Path.cwd()
    home = os.environ.pop("AMLRIS_HOME", None)
    os.chdir(folder)
    yield folder
    os.chdir(before)
    if home is not None:
        os.environ["AMLRIS_HOME"] = home


def write_table(path: Path) -> None:
    """Write a table of expressions, with a picture and a mask file each."""
    lines = ["image,expression,mask,split"]
    for i in range(24):
        square = np.zeros((48, 48, 3), np.uint8)
        square[8 : 24 + i, 8:32] = 255
        Image.fromarray(square).save(path.parent / f"mine{i}.png")
        Image.fromarray(square[..., 0]).save(path.parent / f"mask{i}.png")
        split = "val" if i % 4 == 0 else "train"
        lines.append(f"mine{i}.png,the white square,mask{i}.png,{split}")
    path.write_text("\n".join(lines) + "\n")


def test_the_commands_of_the_documents(place, ray_session):
    todo = commands()
    assert len(todo) > 30
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
    page = documents()["docs/own_loop.md"]
    code = re.search(r"```python\n(.*?)```", page, re.S).group(1)
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
    exec(compile(code, "own_loop.md", "exec"), names)  # noqa: S102 (the page's own snippet)
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
