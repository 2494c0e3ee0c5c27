"""Faults around a run, which cost it nothing or the current epoch.

Without Ray; test_faults has the cases with Ray.
"""

import contextlib
import json
import os
import threading
from pathlib import Path

import pytest

from aml.errors import NotSaved, UserError
from aml.training.learner import Learner
from orchestrator.config.loader import from_dict
from orchestrator.data import convert, shards
from orchestrator.data.decoded import ShardSelection, decode_shards
from orchestrator.storage import filesystem, records, run as run_module
from orchestrator.tracking.tracker import MemoryTracker
from orchestrator.training import loop
from orchestrator.training.epochs import EpochListener
from orchestrator.utils import files
from tests.aml.training.test_checkpoint import alter, damage, file_size_limit
from tests.support.hearing import hear

TREE = {
    "name": "little",
    "data": {"train": "x", "size": 64, "train_limit": 8, "val_limit": 4},
    "model": {"name": "small", "width": 16, "stem": 8, "heads": 2, "dropout": 0.1, "max_words": 12},
    "train": {"epochs": 4, "batch": 8},
    "evaluate": {"probe": 4, "pictures": 1},
}
NUMBERS = ("epoch", "train/loss", "val/mIoU", "val/oIoU", "aml/hidden")


def epochs_on_disk(folder: Path) -> list[int]:
    return [e["epoch"] for e in records.read_history(folder)]


# ---- checkpoints ---------------------------------------------------------------------------------


def test_a_damaged_checkpoint_costs_one_epoch_and_two_damaged_ones_the_run_which_starts_again(
    run_trial, whole, tmp_path
):
    folder = tmp_path / "run"
    assert run_trial(epochs=3) == whole[:3]
    alter(folder / "last" / "state.pt")
    assert run_trial(epochs=3) == whole[2:3], "the third epoch is done again, the same"
    damage(folder / "last" / "model.safetensors")
    alter(folder / "last.previous" / "model.safetensors")
    assert run_trial() == whole and epochs_on_disk(folder) == [1, 2, 3, 4]
    first, second = records.read_notes(folder)
    assert (
        "state.pt is not as it was written" in first
        and "goes on from the one before, after epoch 2" in first
    )
    assert (
        "no checkpoint of this run can be used" in second
        and "starts again from its first epoch" in second
    )


@pytest.mark.parametrize("select", [None, "best_oIoU"])
def test_the_best_checkpoint_is_that_of_the_selected_score(blocks, rows, tmp_path, select):
    from aml.data.refer_counts import vocabulary
    from aml.training import checkpoint_config, loop as epoch_loop

    scores = iter([(0.1, 0.3), (0.2, 0.2), (0.15, 0.4)])

    def validate(*_):
        miou, oiou = next(scores)
        return {"val/mIoU": miou, "val/oIoU": oiou}

    tree = TREE | {"train": {"epochs": 3, "batch": 8}}
    tree["evaluate"] = {"probe": 0, "pictures": 0, "select": select}
    heard = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(epoch_loop, "_validate", validate)
        loop.run_training(from_dict(tree), lambda: blocks, vocabulary(rows), tmp_path, heard.append)
    best, last = (checkpoint_config.read_checkpoint_config(tmp_path / n) for n in ("best", "last"))
    assert (last["epoch"], last["selected_by"]) == (3, "last epoch")
    expected = (3, "best val/oIoU") if select else (2, "best val/mIoU")
    assert (best["epoch"], best["selected_by"]) == expected
    assert [metrics["val/mIoU_best"] for metrics in heard] == [0.1, 0.2, 0.2]


def test_a_process_that_is_lost_before_it_tells_of_its_last_epoch_tells_when_it_is_started_again(
    run_trial, whole, blocks, rows, tmp_path
):
    from aml.data.refer_counts import vocabulary

    folder, heard = tmp_path / "run", []
    assert run_trial(epochs=2) == whole[:2]
    (folder / "epochs.jsonl").write_text(
        (folder / "epochs.jsonl").read_text().splitlines(keepends=True)[0]
    )  # lost between checkpoint and line
    context = loop.RunContext(stop_epoch=2)
    loop.run_training(
        from_dict(TREE), lambda: blocks, vocabulary(rows), folder, heard.append, context
    )
    assert [[metrics[n] for n in NUMBERS] for metrics in heard] == whole[1:2] and epochs_on_disk(
        folder
    ) == [1, 2]


@pytest.mark.parametrize("place", ["set-up", "a step", "validation"])
def test_who_is_asked_to_end_in_the_first_epoch_answers_where_it_stands(
    blocks, rows, tmp_path, monkeypatch, place
):
    """In set-up nothing is to be saved, later the run is saved and goes on the same."""
    from aml.data.refer_counts import vocabulary

    settings = {"train": {"epochs": 2, "batch": 2}, "evaluate": {"probe": 0, "batch": 2}}
    experiment, asked = from_dict(TREE | settings), []

    def run(folder, context=loop.RunContext()):  # noqa: B008 (frozen)
        heard = []
        loop.run_training(
            experiment, lambda: blocks, vocabulary(rows), folder, heard.append, context
        )
        return [[metrics[name] for name in NUMBERS] for metrics in heard]

    def asks(function):
        def called(*args, **options):
            asked.append("asked to end")
            return function(*args, **options)

        return called

    def killed():
        raise KeyboardInterrupt

    straight = run(tmp_path / "straight")
    owner, name = {
        "set-up": (loop, "make_learner"),
        "a step": (Learner, "step"),
        "validation": (Learner, "evaluate"),
    }[place]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(owner, name, asks(getattr(owner, name)))
        context = loop.RunContext(
            should_checkpoint=lambda: asked[-1] if asked else "", on_checkpoint=killed
        )
        run(tmp_path / "run", context)
    said = {
        "set-up": "asked to end: nothing is to be saved, as no step was done since the start",
        "a step": "asked to end: saved at step 1 of epoch 1",
        "validation": "asked to end: saved at step 4 of epoch 1",
    }
    assert records.read_notes(tmp_path / "run") == [said[place]]
    assert (tmp_path / "run" / "last").exists() == (place != "set-up")
    assert run(tmp_path / "run") == straight


def test_a_process_that_is_lost_while_it_writes_leaves_no_draft_and_no_gap_where_the_run_goes_on(
    run_trial, whole, tmp_path, monkeypatch
):
    """The process is lost at each of the writes of the second epoch, in turn."""

    class Lost(BaseException):
        pass

    def counted(name: str, at: int, count: list[int]):
        real = getattr(os, name)

        def call(source, target):
            count[0] += 1
            if count[0] == at:
                raise Lost
            return real(source, target)

        return call

    for at in range(1, 30):
        folder, count = tmp_path / f"{at}" / "run", [0]
        assert run_trial(epochs=1, folder=folder) == whole[:1]
        with monkeypatch.context() as patch, contextlib.suppress(Lost):
            for name in ("rename", "replace"):
                patch.setattr(f"os.{name}", counted(name, at, count))
            run_trial(epochs=2, folder=folder)
        if count[0] < at:
            break
        (folder / "best.amlris-draft").mkdir(
            exist_ok=True
        )  # where the epoch done again is not the best, as on a GPU it may be
        run_trial(epochs=3, folder=folder)
        assert [str(p) for p in folder.rglob("*") if p.name.endswith(".amlris-draft")] == []
        assert (
            epochs_on_disk(folder) == [1, 2, 3] and len(list((folder / "pictures").iterdir())) == 3
        )
    assert at > 4


def test_notes_of_a_worker_are_said_once_by_the_driver(tmp_path):
    records.add_note(tmp_path, "of an earlier attempt")
    said = hear([])
    listener = EpochListener(
        run_module.Run(tmp_path, "train"),
        from_dict(TREE),
        MemoryTracker(tmp_path),
        "train",
    )
    listener.start()
    records.add_note(tmp_path, "checkpoint last cannot be used")
    listener.close()
    assert said == ["note: checkpoint last cannot be used"]


# ---- a full disk ---------------------------------------------------------------------------------


def test_a_full_disk_costs_the_epoch_under_way_and_the_same_call_goes_on_where_there_is_room(
    run_trial, whole, tmp_path
):
    folder = tmp_path / "run"
    assert run_trial(epochs=2) == whole[:2]
    size = (folder / "last" / "model.safetensors").stat().st_size
    with (
        file_size_limit(size // 2),
        pytest.raises(
            NotSaved, match=r"could not be written .* make room and give the same command again"
        ),
    ):
        run_trial()
    assert (
        epochs_on_disk(folder) == [1, 2]
        and not list(folder.glob("*.amlris-draft"))
        and not list(folder.rglob("*.amlris-draft"))
    )
    assert run_trial() == whole[2:]


def test_a_state_file_that_does_not_fit_leaves_the_one_before(tmp_path):
    files.atomic_write(tmp_path / "train.json", b"before")
    with (
        file_size_limit(1000),
        pytest.raises(
            NotSaved, match=r"train.json could not be written \(File too large\): it takes 0.1 MB"
        ),
    ):
        files.atomic_write(tmp_path / "train.json", bytes(100_000))
    assert [p.name for p in tmp_path.iterdir()] == ["train.json"] and (
        tmp_path / "train.json"
    ).read_bytes() == b"before"


def finished(trial, **more):
    return {"trial": trial, "arm": "off", "stage": "search", "state": "done", "history": []} | more


def test_a_ledger_line_that_does_not_fit_or_was_cut_off_spoils_no_other(tmp_path):
    heard = hear([])
    run = run_module.Run(tmp_path, "sweep")
    run.append(finished("a"))
    with file_size_limit(300), pytest.raises(NotSaved, match="ledger.jsonl could not be written"):
        run.append(finished("b", error="x" * 1000))
    run.append(finished("c"))
    assert [r["trial"] for r in run.ledger()] == ["a", "c"] and heard == []
    with open(run.folder / "ledger.jsonl", "a") as file:
        file.write('{"trial": "d", "hist')  # a crash in the middle of a line
    run.append(finished("e"))
    for _ in range(2):
        assert [r["trial"] for r in run.ledger()] == ["a", "c", "e"]
    (said,) = heard
    assert "ledger.jsonl, line 3: it is not valid JSON" in said and "left out" in said


def test_a_disk_that_is_full_elsewhere_is_said_in_one_sentence(capsys, monkeypatch):
    import errno

    from orchestrator.cli import app

    def fail(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/page.html")

    monkeypatch.setattr(run_module, "list_runs", fail)
    with pytest.raises(SystemExit) as left:
        app.main(["runs"])
    said = capsys.readouterr().err
    assert (
        left.value.code == 1
        and said.startswith("error: /data/page.html could not be written (No space left on device)")
        and said.endswith("make room and give the same command again\n")
        and " MB are free there; " in said
    )


# ---- shards --------------------------------------------------------------------------------------


def test_a_truncated_shard_is_named_before_anything_reads_it(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name in ("part-0.parquet", "part-1.parquet"):
        pq.write_table(
            pa.table({"image_id": [1], "splits": ["train"], "jpeg": [b"x" * 1000], "meta": ["{}"]}),
            tmp_path / name,
        )
    (tmp_path / shards.COMPLETE_MARKER).write_text(
        json.dumps({"format": shards.FORMAT, "files": ["part-0.parquet", "part-1.parquet"]})
    )
    store = filesystem.Filesystem(tmp_path)
    assert list(shards.files_with(store, {"train"})) == [
        "part-0.parquet",
        "part-1.parquet",
    ] and not shards.files_with(store, {"val"})
    damage(tmp_path / "part-1.parquet")
    for read in (
        lambda s: shards.files_with(s, {"val"}),
        shards.splits_of,
        lambda s: shards.picture_places(s, ["train"]),
        lambda s: decode_shards(ShardSelection(s, frozenset({"train"}), {}), 64, "square"),
    ):
        with pytest.raises(
            UserError, match=r"part-1.parquet is damaged \(Arrow.*\); write the shards again$"
        ):
            read(store)


# ---- two at once ---------------------------------------------------------------------------------


def test_two_runs_that_make_the_same_data_at_once_make_them_once(tmp_path, monkeypatch):
    from orchestrator.data import mixture

    data, made, together = (
        from_dict(TREE | {"data": {"train": "d", "synth": {"images": 8}}}).data,
        [],
        threading.Barrier(2),
    )

    def make(synth, store, root):
        made.append(store.uri)
        store.write(shards.COMPLETE_MARKER, b"{}")

    monkeypatch.setattr(convert, "make_synthetic", make)
    monkeypatch.setattr(
        mixture, "check_sources", lambda data, root: type("Found", (), {"stores": [1]})()
    )
    read = filesystem.Filesystem.read

    def late(self, name):  # both see nothing at first
        found = read(self, name)
        if threading.current_thread() not in seen:
            seen.add(threading.current_thread())
            together.wait()
        return found

    seen = set()
    monkeypatch.setattr(filesystem.Filesystem, "read", late)
    threads = [
        threading.Thread(target=mixture.prepare_sources, args=(data, tmp_path)) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
