"""Test the command reproduce as a user sees it."""

import json
import math
import shutil
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from aml.data.decode import decode_row, rows_of_block
from aml.data.refer import read_refer
from aml.synthetic.refer_files import generate_dataset
from orchestrator import storage
from orchestrator.config.loader import from_text
from orchestrator.config.schema import code_version
from orchestrator.data import shards
from orchestrator.search import trial_spec
from orchestrator.storage import records as records_module, run as run_module, start
from orchestrator.training import loop
from orchestrator.utils import processor
from tests.support.stores import write_store

TINY = """
name: again
data: {train: data/again, size: 32, val_limit: 12}
model: {name: small, width: 16, stem: 8, heads: 2, dropout: 0.1, max_words: 12}
train: {epochs: 2, batch: 16}
evaluate: {probe: 8, pictures: 2}
search: {arms: [off, aml/calibrated], space: {aml.tau: [0.5]}, seeds: {confirm: 1}}
"""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Train a run, and a sweep of one trial, in a root of their own.

    The rows are divided into other blocks than reproduce will read.
    """
    root = tmp_path_factory.mktemp("reproduce")
    generate_dataset(root / "scenes", "refcoco", images=30, size=48, seed=1, workers=1)
    rows = [
        r | {"jpeg": Path(r["path"]).read_bytes()}
        for r in read_refer(root / "scenes", root / "scenes" / "images", "refcoco", "unc")
    ]
    store = write_store(root / "data" / "again", rows)
    experiment, torch_version = from_text(TINY), version("torch")
    state = {
        "data": {"fingerprint": shards.read_manifest(store)["fingerprint"]},
        "code_version": code_version(),
        "versions": {"torch": torch_version},
    }
    blocks = [rows_of_block([decode_row(r, 32) for r in part]) for part in (rows[20:], rows[:20])]

    def made(name, kind, spec, **more):
        run = run_module.Run(root / name, kind)
        run.folder.mkdir()
        (run.folder / "config.yaml").write_text(experiment.to_yaml())
        loop.run_training(
            spec, lambda: blocks, shards.words(store), run.folder / "work", lambda metrics: None
        )
        history = records_module.read_history(run.folder / "work")
        run.update(
            run=name,
            name="again",
            state="done",
            started=1.0,
            **state,
            **more | ({"history": history} if kind == "train" else {}),
        )
        return run, history

    train, _ = made("again-00000001", "train", experiment)
    spec = trial_spec.TrialSpec(
        "aml_calibrated-search-000", "aml/calibrated", "search", 3, {"aml.tau": 0.25}
    )
    sweep, history = made("again-00000002", "sweep", spec.experiment(experiment))
    sweep.append(
        {
            **spec.describe(experiment),
            "overrides": spec.overrides,
            "state": "stopped",
            "epochs": 1,
            "history": history[:1],
        }
    )
    return SimpleNamespace(root=root, train=train, sweep=sweep)


@pytest.fixture
def there(recorded, monkeypatch):
    monkeypatch.setenv("AMLRIS_HOME", str(recorded.root))
    return recorded


def test_a_training_gives_the_same_bits_again(there, command):
    torch.manual_seed(77)
    code, text = command("reproduce", "again-00000001", "--json")
    found = json.loads(text.splitlines()[-1])
    assert (
        code == 0
        and found["agrees"]
        and found["epochs"] == 2
        and found["values"] > 20
        and found["differ"] == []
    ), text
    assert "agree bit for bit" in text and Path(found["folder"]).is_dir()
    assert (
        records_module.read_history(Path(found["folder"]))[-1]["val/mIoU"]
        == there.train.state["history"][-1]["val/mIoU"]
    )


@pytest.mark.parametrize(
    ("processors", "said"),
    [
        (None, ""),  # a run older than the record
        (["HERE"], ""),
        (
            ["Abacus with BEADS"],
            "note: again-00000001 was made on Abacus with BEADS, here is HERE; "
            "another processor may round otherwise",
        ),
        (
            ["HERE", "Abacus", "Quipu"],
            "note: again-00000001 was made on Abacus and Quipu, here is HERE; another processor",
        ),
    ],
)
def test_another_processor_is_named(there, command, processors, said):
    here = processor()
    kept = dict(there.train.state)
    if processors:
        there.train.update(processors=[here if name == "HERE" else name for name in processors])
    try:
        _, text = command("reproduce", "again-00000001")
    finally:
        there.train.state = kept
        there.train.update()
    assert said.replace("HERE", here) in text and text.count("was made on") == bool(said), text


def test_a_run_notes_every_processor_that_it_was_begun_or_continued_on(
    there, tmp_path, monkeypatch
):
    run = run_module.Run(tmp_path / "noted", "train")
    manifest = {"fingerprint": "0123456789abcdef", "splits": {}}
    for name in ("Abacus with BEADS", "Quipu with KNOTS", "Abacus with BEADS"):
        monkeypatch.setattr(start, "processor", lambda name=name: name)
        run.folder.mkdir(exist_ok=True)
        storage.begin_run(run, there.train.experiment(), manifest, "data/again")
    assert run.state["processors"] == ["Abacus with BEADS", "Quipu with KNOTS"]


def test_a_processor_is_named_by_its_model_and_torchs_instructions():
    model, _, instructions = processor().rpartition(" with ")
    assert model and instructions == torch.backends.cpu.get_cpu_capability()


def test_one_bit_of_difference_is_found_and_named(there, command):
    kept = there.train.state["history"]
    altered = [dict(epoch) for epoch in kept]
    altered[1]["train/loss"] = math.nextafter(altered[1]["train/loss"], 9)
    there.train.update(history=altered)
    try:
        code, text = command("reproduce", there.train.folder)
    finally:
        there.train.update(history=kept)
    assert (
        code == 1
        and "does not reproduce: 1 of" in text
        and "the first is train/loss of epoch 2" in text
    ), text


def test_a_trial_of_a_sweep_is_repeated_to_the_epoch_at_which_it_was_stopped(there, command):
    code, text = command("reproduce", "again:aml_calibrated-search-000")
    assert code == 0 and "metrics of 1 epochs agree bit for bit" in text, text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"code_version": "0123456789ab"}, "it was made by code version 0123456789ab"),
        ({"code_version": None}, "it was made by code version unrecorded"),
        ({"versions": {"torch": "1.0"}}, "it was made with torch 1.0, here is"),
        (
            {"data": {"dataset": "refcoco", "split_by": "unc", "fingerprint": "beef"}},
            "it was made with data beef, but data/again now holds 0123456789abcdef",
        ),
        ({"init": "/nowhere.pth"}, "it started from /nowhere.pth, which is gone"),
    ],
)
def test_where_it_cannot_be_told_the_reason_is_said_and_nothing_runs(there, refused, change, said):
    kept, before = dict(there.train.state), sorted(there.root.glob("reproduced/*"))
    there.train.update(**change)
    try:
        refused("reproduce", "again-00000001", said=said)
    finally:
        there.train.state = kept
        there.train.update()
    assert sorted(there.root.glob("reproduced/*")) == before


def test_a_run_older_than_the_record_of_its_code_is_known_by_its_name(there, command):
    name = there.train.experiment().run_name("0123456789abcdef")
    shutil.copytree(there.train.folder, there.root / name)
    run_module.Run(there.root / name, "train").update(code_version=None)
    code, text = command("reproduce", there.root / name)
    shutil.rmtree(there.root / name)
    assert code == 0 and "agree bit for bit" in text, text


@pytest.mark.parametrize(
    ("setting", "said"),
    [("workers: 2", "it ran on 2 workers"), ("gpus_per_worker: 1", "it ran on a GPU")],
)
def test_machines_that_add_in_another_order_are_refused(there, refused, setting, said):
    path = there.train.folder / "config.yaml"
    kept = path.read_text()
    path.write_text(
        kept.replace("workers: 1" if "workers: 2" in setting else "gpus_per_worker: 0", setting)
    )
    try:
        refused("reproduce", "again-00000001", said=said)
    finally:
        path.write_text(kept)


def test_a_sweep_needs_one_of_its_trials(there, refused):
    refused(
        "reproduce",
        "again-00000002",
        said="name one of its trials as again-00000002:TRIAL; it has aml_calibrated-search-000",
    )
    refused("reproduce", f"{there.train.folder}:x", said="which has no trials")
