"""Population-based training whose results are in a bucket."""

import json
import shutil

import pytest

from aml.errors import NotSaved, UserError
from orchestrator.search.populations import generations
from orchestrator.storage import paths, run as run_module, uploads
from orchestrator.storage.records import read_history
from orchestrator.storage.remote_folder import RemoteFolder
from orchestrator.storage.snapshot import TRIAL
from orchestrator.storage.synced_folder import SyncedFolder
from orchestrator.training.loop import restore_from_bucket
from tests.orchestrator.sweep.test_sweep import TINY
from tests.support.s3 import Machine, objects

MOVE = {
    "epoch": 2,
    "scores": {"bad": 0.1, "good": 0.3},
    "moves": {"bad": {"from": "good", "overrides": {"aml.tau": 0.25}}},
}


@pytest.fixture
def machines(bucket, tmp_path, monkeypatch):
    """Return a function: machines("a") puts this process on machine a and returns its folder."""
    monkeypatch.setenv("AMLRIS_HOME", bucket.uri)
    on = Machine(tmp_path, monkeypatch)
    return lambda name: on(name) / "pbt-01234567"


def train(folder, epoch: int, deliver: bool = True) -> None:
    """Train an epoch of a member: checkpoints hold its name and the epoch; the last is kept."""
    history = folder / "epochs.jsonl"
    for name in ("last", "best"):
        if (folder / name).exists():
            shutil.rmtree(folder / f"{name}.previous", ignore_errors=True)
            (folder / name).rename(folder / f"{name}.previous")
        (folder / name).mkdir(parents=True)
        (folder / name / "model.safetensors").write_text(f"{name} of {folder.name} at {epoch}")
    history.write_text(
        (history.read_text() if history.exists() else "")
        + json.dumps({"epoch": epoch, "of": folder.name})
        + "\n"
    )
    (folder / "notes.txt").write_text(f"notes of {folder.name}\n")
    snapshot = SyncedFolder(folder, TRIAL).snapshot()
    if deliver:
        SyncedFolder(folder, TRIAL).upload(snapshot)


def two_members(machines):
    """Train two members for two epochs, the bad one's first epoch on a third machine."""
    for epoch in (1, 2):
        train(machines("a") / "trials" / "good", epoch)
    train(machines("b") / "trials" / "bad", 1)
    uploads.download(there := machines("c") / "trials" / "bad", exact=True)
    train(there, 2)


def contents(folder) -> dict[str, str]:
    return {
        p.relative_to(folder).as_posix(): p.read_text()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and ".mirror" not in p.parts
    }


AFTER = {
    "best/model.safetensors": "best of good at 2",
    "epochs.jsonl": '{"epoch": 1, "of": "good"}\n{"epoch": 2, "of": "good"}\n',
    "generation.json": '{"epoch": 2, "from": "good"}',
    "last/model.safetensors": "last of good at 2",
    "notes.txt": "notes of bad\n",
}


@pytest.mark.parametrize("driver", ["driver", "c"])
def test_a_move_in_a_bucket_reaches_every_machine_and_is_made_once(machines, bucket, driver):
    two_members(machines)
    train(
        machines("b") / "trials" / "bad", 2, deliver=False
    )  # cut off: the member had gone on elsewhere by then
    run = machines(driver)
    run.mkdir(parents=True, exist_ok=True)
    generations.Generations(run).finish("aml/calibrated", MOVE)
    assert [e["of"] for e in read_history(run / "trials" / "bad")] == ["good", "good"]
    assert (run / "trials" / "bad" / "last").exists() is (driver == "c"), (
        "checkpoints stay in the bucket"
    )
    for name in ("new", "b", "c"):
        uploads.upload_from_this_node(paths.to_uri(machines(name)))
        restore_from_bucket(machines(name) / "trials" / "bad", exact=True).close()
        assert contents(machines(name) / "trials" / "bad") == AFTER
    names = {
        sha
        for entry in json.loads(bucket.get("pbt-01234567/trials/bad/trial.manifest.json")).values()
        for sha in entry["pieces"]
    }
    assert {k.rpartition("/")[2] for k in objects(bucket) if "trials/bad/objects/" in k} == names
    train(machines("c") / "trials" / "bad", 3)
    before = objects(bucket)
    generations.Generations(machines(driver)).resume()
    assert objects(bucket) == before, "made before: nothing is written"
    assert [e["of"] for e in read_history(machines(driver) / "trials" / "bad")] == [
        "good",
        "good",
        "bad",
    ]


def test_a_move_that_was_cut_off_is_made_by_the_next_start(machines, monkeypatch):
    two_members(machines)
    run = machines("driver")
    run.mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.setattr(
            RemoteFolder, "replace_manifest", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            generations.Generations(run).finish("aml/calibrated", MOVE)
    uploads.download(machines("new") / "trials" / "bad", exact=True)
    assert (
        contents(machines("new") / "trials" / "bad")["last/model.safetensors"] == "last of bad at 2"
    )
    generations.Generations(machines("driver")).resume()
    uploads.download(machines("new") / "trials" / "bad", exact=True)
    assert contents(machines("new") / "trials" / "bad") == AFTER


def test_a_move_waits_for_what_its_members_have_not_delivered(machines, monkeypatch):
    two_members(machines)
    train(machines("c") / "trials" / "bad", 3, deliver=False)
    train(machines("a") / "trials" / "good", 3, deliver=False)
    run, asked = machines("driver"), []
    run.mkdir(parents=True)

    def everywhere(folder):
        asked.append(folder.name)
        for name in ("a", "c") if len(asked) > 2 else ():
            uploads.upload_from_this_node(paths.to_uri(machines(name)))
        machines("driver")

    monkeypatch.setattr(uploads, "upload_from_every_node", everywhere)
    generations.Generations(run).finish("aml/calibrated", MOVE | {"epoch": 3})
    uploads.download(machines("new") / "trials" / "bad")
    found = contents(machines("new") / "trials" / "bad")
    assert (
        found["last/model.safetensors"] == "last of good at 3"
        and "last.previous/model.safetensors" not in found
    )
    monkeypatch.setattr(generations, "DELIVERY_S", 0.0)
    with pytest.raises(
        NotSaved,
        match="bad could not be given what good has in the bucket "
        ".of good it has 3 epochs, not 4.; the same command makes",
    ):
        generations.Generations(machines("driver")).finish("aml/calibrated", MOVE | {"epoch": 4})


def test_a_member_does_not_go_on_with_an_older_copy_while_the_bucket_is_away(machines, monkeypatch):
    two_members(machines)
    run, real, away = machines("driver"), SyncedFolder.download, [OSError("no route")] * 2
    run.mkdir(parents=True)
    generations.Generations(run).finish("aml/calibrated", MOVE)
    monkeypatch.setattr(
        SyncedFolder,
        "download",
        lambda *args, **how: (_ for _ in ()).throw(away.pop()) if away else real(*args, **how),
    )
    monkeypatch.setattr(uploads, "ANSWER_S", 0.0)
    with pytest.raises(UserError, match="cannot be read .no route"):
        restore_from_bucket(machines("c") / "trials" / "bad", exact=True)
    monkeypatch.setattr(uploads, "ANSWER_S", 60.0)
    restore_from_bucket(machines("c") / "trials" / "bad", exact=True).close()
    assert contents(machines("c") / "trials" / "bad") == AFTER and not away


def test_a_decision_is_in_the_bucket_before_its_moves(machines):
    two_members(machines)
    run = machines("driver")
    run.mkdir(parents=True)
    with pytest.raises(
        NotSaved,
        match="generations.jsonl could not be delivered to s3://.*; "
        "the same command delivers it and makes the moves",
    ):
        generations.Generations(run, lambda: False).finish("aml/calibrated", MOVE)
    assert SyncedFolder(run / "trials" / "bad", TRIAL).remote.read(generations.DONE) is None


PBT_OF_THREE = [
    "name=pbt",
    "evaluate.pictures=0",
    "search.arms=[aml/calibrated]",
    "search.method=random",
    "search.trials=3",
    "search.scheduler={name: pbt, interval: 1, quantile: 0.4}",
    "search.space={aml.tau: {low: 0.3, high: 0.9}, optim.lr: {low: 1e-4, high: 1e-2, log: true}}",
]


def test_a_sweep_by_generations_ends_confirmed_and_its_confirmation_reproduces(
    tmp_path, ray_session, monkeypatch
):
    from mlflow.tracking import MlflowClient

    (tmp_path / "pbt.yaml").write_text(TINY)
    code, text = ray_session(
        ["sweep", str(tmp_path / "pbt.yaml"), f"storage.root={tmp_path}", *PBT_OF_THREE]
    )
    assert code == 0, text
    run = run_module.list_runs(tmp_path)[0]
    records = {r["trial"]: r for r in run.ledger()}
    assert len(records) == 4 and all(
        r["state"] == "done" and [e["epoch"] for e in r["history"]] == [1, 2, 3]
        for r in records.values()
    )
    lines = [json.loads(line) for line in (run.folder / generations.FILE).read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2] and all(
        len(line["moves"]) == 1 for line in lines
    )
    moved, move = next(iter(lines[-1]["moves"].items()))
    assert f"goes on from {move['from']} at epoch 2" in text
    assert (
        records[moved]["history"][1]["val/mIoU"] == records[move["from"]]["history"][1]["val/mIoU"]
    ), "its past is its donor's"
    assert (
        records[moved]["path"][-1] == [2, move["overrides"]]
        and records[moved]["overrides"] == move["overrides"]
    )
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "pbt"]
    (of,) = [
        r
        for r in client.search_runs([experiment.experiment_id])
        if r.data.tags.get("trial_id") == moved
    ]
    assert [m.step for m in client.get_metric_history(of.info.run_id, "setting/optim.lr")] == [
        1,
        2,
        3,
    ]
    assert (
        of.data.metrics["setting/optim.lr"] == pytest.approx(move["overrides"]["optim.lr"])
        and of.info.status == "FINISHED"
    )
    monkeypatch.setenv("AMLRIS_HOME", str(tmp_path))
    code, text = ray_session(["reproduce", f"{run.name}:aml_calibrated-confirm-000"])
    assert code == 0 and "agree bit for bit" in text
    code, text = ray_session(["reproduce", f"{run.name}:{moved}"])
    assert code == 2 and "other trials' weights" in text
