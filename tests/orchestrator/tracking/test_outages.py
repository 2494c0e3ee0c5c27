"""Test the tracker's queue on disk and its leases.

Servers are away, processes die, and others change runs meanwhile.
"""

import errno
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time

import pytest

from orchestrator.tracking import delivery
from orchestrator.tracking.mlflow_server import reconcile, tracking_uri
from orchestrator.tracking.mlflow_tracker import Tracker
from tests.support.stores import mlflow_client

NOBODY = "http://127.0.0.1:9"  # the discard port: connections are refused at once
RUN = "quick-1a2b3c4d"


def abandon(tracker):
    """Leave what a killed process leaves: no thread, and nothing flushed or ended."""
    tracker._delivery.stop(20)
    assert not tracker._delivery.is_alive()


# ---- the queue -----------------------------------------------------------------------------------


def test_a_server_that_is_away_stops_nobody_and_gets_everything_later(
    root, tmp_path, monkeypatch, caplog
):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    t = Tracker(tmp_path / RUN, NOBODY, "away", root)
    t.run("a", "a", params={"aml.tau": 0.5})
    for step in range(1, 51):
        t.metrics("a", step, {"val/mIoU": step})
    t.end("a")
    assert not t.ready(20)
    assert NOBODY in t.problem and "does not answer" in t.problem
    assert t.pending == 52
    said = t.close(0.5)
    assert said.startswith("52 tracking operations stay in tracking.queue.jsonl") and NOBODY in said
    assert "kept on disk" in caplog.text
    with (tmp_path / RUN / "tracking.queue.jsonl").open("ab") as queue:
        queue.write(b'{"op": "metr')  # a crash in the middle of a line
    t = Tracker(tmp_path / RUN, None, "away", root)
    assert t.pending == 52
    t.run("a", "a")
    t.metrics("a", 51, {"val/mIoU": 51})
    assert t.flush(30) == 0
    api = mlflow_client(root)
    run_id = t.record("a")["run_id"]
    assert [(m.step, m.value) for m in api.get_metric_history(run_id, "val/mIoU")] == [
        (s, float(s)) for s in range(1, 52)
    ]
    assert api.get_run(run_id).data.params == {"aml.tau": "0.5"}
    assert t.close() == ""
    assert sorted(p.name for p in (tmp_path / RUN).iterdir()) == []


def test_a_queue_file_that_an_earlier_version_wrote_is_delivered_from_its_offset(root, tmp_path):
    folder = tmp_path / RUN
    folder.mkdir()
    now_ms = int(time.time() * 1000)
    opened = {"op": "run", "key": "a", "t": now_ms, "name": "a", "parent": None, "tags": {}}
    opened |= {"params": {"aml.tau": "0.5"}, "host": socket.gethostname(), "pid": os.getpid()}
    lines = [
        {"op": "run", "key": "delivered before", "t": now_ms},
        opened,
        {"op": "metrics", "key": "a", "t": now_ms, "step": 1, "values": {"x": 1.0}},
        {"op": "unknown", "key": "a", "t": now_ms},
        {"op": "end", "key": "a", "t": now_ms, "status": "FINISHED", "tags": {}},
    ]
    texts = [json.dumps(line) + "\n" for line in lines]
    (folder / "tracking.queue.jsonl").write_text("".join(texts))
    (folder / "tracking.queue.offset").write_text(str(len(texts[0])))
    t = Tracker(folder, None, "earlier", root)
    assert t.pending == 4 and t.flush(30) == 0
    run = mlflow_client(root).get_run(t.record("a")["run_id"])
    assert (run.info.status, run.data.params) == ("FINISHED", {"aml.tau": "0.5"})
    assert run.data.metrics == {"x": 1.0}
    assert "refused 1" in t.close()


def test_a_queue_delivered_twice_changes_nothing(root, tmp_path):
    folder = tmp_path / RUN
    t = Tracker(folder, None, "twice", root)
    t.run("p", "p")
    t.run("a", "a", "p", {"aml.rho": 0.3}, {"seed": 1})
    t.metrics("a", 1, {"x": 1})
    t.metrics("a", 2, {"x": 2})
    assert t.flush(30) == 0
    run_id = t.record("a")["run_id"]
    abandon(t)
    assert (
        int((folder / "tracking.queue.offset").read_text())
        == (folder / "tracking.queue.jsonl").stat().st_size
    )
    (folder / "tracking.queue.offset").unlink()  # the process died before it noted how far it was
    t = Tracker(folder, None, "twice", root)
    assert t.pending == 4
    t.metrics("a", 3, {"x": 3})
    assert t.flush(30) == 0
    assert t.record("a")["run_id"] == run_id
    assert [m.step for m in mlflow_client(root).get_metric_history(run_id, "x")] == [1, 2, 3]
    assert len(mlflow_client(root).search_runs([t.record("a")["experiment_id"]])) == 2
    assert t.close() == "" and t.rejected == 0


def test_an_outage_in_the_middle_loses_nothing(root, tmp_path, monkeypatch):
    from mlflow.exceptions import MlflowException

    t = Tracker(tmp_path / RUN, None, "outage", root)
    t.run("a", "a")
    assert t.flush(30) == 0
    gone = threading.Event()
    gone.set()
    tries = []
    whole = t._delivery.client.connection.client

    class Cable:
        def __getattr__(self, name):
            def call(*args, **kwargs):
                if gone.is_set():
                    tries.append(name)
                    raise MlflowException("API request to http://u:hunter2@host failed")
                return getattr(whole, name)(*args, **kwargs)

            return call

    t._delivery.client.connection.client = Cable()
    for step in (1, 2, 3):
        t.metrics("a", step, {"x": step})
    deadline = time.time() + 20
    while len(tries) < 6 and time.time() < deadline:
        t.flush(0.05)
    assert t.pending == 3 and "does not answer" in t.problem and "hunter2" not in t.problem
    gone.clear()
    assert t.flush(30) == 0
    assert [m.step for m in whole.get_metric_history(t.record("a")["run_id"], "x")] == [1, 2, 3]
    assert t.close() == "" and t.rejected == 0


def test_a_run_that_was_made_without_an_answer_is_there_once(root, tmp_path, monkeypatch):
    """A server that was stopped serves old requests when it goes on, here after the second try."""
    monkeypatch.setattr(delivery, "MAX_DELAY_S", 0.02)
    t = Tracker(tmp_path / RUN, None, "doubles", root)
    t.run("parent", "parent")
    assert t.flush(30) == 0
    api = t._delivery.client.connection.client
    late = []
    create = api.create_run

    def unanswered(*args, **kwargs):
        if not late:
            late.append((args, kwargs))
            raise TimeoutError("read timed out")
        made = create(*args, **kwargs)
        create(*late[0][0], **late[0][1])
        return made

    monkeypatch.setattr(api, "create_run", unanswered)
    t.run("a", "a", parent="parent")
    t.metrics("a", 1, {"x": 1})
    t.end("a")
    assert t.flush(30) == 0 and len(late) == 1
    found = api.search_runs([t.record("a")["experiment_id"]])
    assert sorted((r.info.run_name, r.info.status) for r in found) == [
        ("a", "FINISHED"),
        ("parent", "RUNNING"),
    ]
    assert next(r for r in found if r.info.run_name == "a").data.metrics == {"x": 1.0}
    assert t.close() == "" and t.rejected == 0


def test_an_operation_that_fails_for_ever_does_not_block_the_others(root, tmp_path, monkeypatch):
    monkeypatch.setattr(delivery, "MAX_DELAY_S", 0.02)
    t = Tracker(tmp_path / RUN, None, "poison", root)
    t.run("a", "a")
    assert t.flush(30) == 0
    (tmp_path / RUN / "a.txt").write_text("a")
    tries = []

    def no_store(run_id, path, to):
        tries.append(path)
        raise RuntimeError("no bucket at s3://key:hunter2@bucket")

    monkeypatch.setattr(t._delivery.client.connection.client, "log_artifact", no_store)
    t.artifact("a", tmp_path / RUN / "a.txt")
    t.artifact("a", tmp_path / RUN / "a.txt")
    t.metrics("a", 1, {"x": 1})
    assert t.flush(30) == 0
    assert len(tries) == delivery.MAX_ATTEMPTS + 1  # patience with the first, none with the second
    assert t._delivery.client.connection.client.get_run(t.record("a")["run_id"]).data.metrics == {
        "x": 1.0
    }
    assert "refused 2" in t.close()
    lines = [
        json.loads(line)
        for line in (tmp_path / RUN / "tracking.rejected.jsonl").read_text().splitlines()
    ]
    assert [line["path"] for line in lines] == ["a.txt", "a.txt"]
    assert "no bucket" in lines[0]["error"] and "hunter2" not in lines[0]["error"]


def test_a_full_disk_refuses_nothing_and_ends_no_thread(root, tmp_path, monkeypatch):
    """Artifacts of a SQLite store lie on the same disk as the notes of refusals."""
    monkeypatch.setattr(delivery, "MAX_DELAY_S", 0.02)
    t = Tracker(tmp_path / RUN, None, "full", root)
    t.run("a", "a")
    assert t.flush(30) == 0
    (tmp_path / RUN / "a.txt").write_text("a")
    (tmp_path / RUN / "tracking.rejected.jsonl").mkdir()  # nothing can be written there
    log_it = t._delivery.client.connection.client.log_artifact
    tries = []

    def full(*args):
        tries.append(args)
        if len(tries) <= 2 * delivery.MAX_ATTEMPTS:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return log_it(*args)

    monkeypatch.setattr(t._delivery.client.connection.client, "log_artifact", full)
    t.artifact("a", tmp_path / RUN / "a.txt")
    assert t.flush(30) == 0 and len(tries) == 2 * delivery.MAX_ATTEMPTS + 1 and t.rejected == 0
    monkeypatch.setattr(
        t._delivery.client.connection.client,
        "log_artifact",
        lambda *_: (_ for _ in ()).throw(FileNotFoundError("a.txt")),
    )
    t.artifact("a", tmp_path / RUN / "a.txt")
    assert t.flush(30) == 0 and t._delivery.is_alive() and "refused 1" in t.close()


def test_one_bad_step_does_not_take_its_neighbours_along(root, tmp_path):
    t = Tracker(tmp_path / RUN, None, "neighbours", root)
    t.run("a", "a")
    for step, value in ((1, 1.0), (2, 2.0), (3, 3.0)):
        t.metrics("a" if step != 2 else "never opened", step, {"x": value})
    assert t.flush(30) == 0
    assert [
        m.step for m in mlflow_client(root).get_metric_history(t.record("a")["run_id"], "x")
    ] == [1, 3]
    assert t.rejected == 1
    t.close()


def test_sqlite_may_be_used_by_others_meanwhile(root, tmp_path):
    t = Tracker(tmp_path / RUN, None, "shared", root)
    t.run("a", "a")
    assert t.flush(30) == 0
    other = sqlite3.connect(root / "mlflow.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    t.metrics("a", 1, {"x": 1})
    assert t.flush(0.5) == 1
    other.execute("COMMIT")
    other.close()
    assert t.flush(30) == 0
    assert mlflow_client(root).get_run(t.record("a")["run_id"]).data.metrics == {"x": 1.0}
    assert t.close() == "" and t.rejected == 0


# ---- leases --------------------------------------------------------------------------------------


def statuses(root, experiment):
    api = mlflow_client(root)
    found = api.search_runs([api.get_experiment_by_name(experiment).experiment_id])
    return {run.info.run_name: (run.info.status, run.data.tags.get("stopped_by")) for run in found}


def test_reconcile_kills_what_died_and_nothing_else(root, tmp_path):
    api = mlflow_client(root)
    now = int(time.time())
    host = socket.gethostname()
    experiment = api.create_experiment("leases", (root / "artifacts").as_uri())
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    leases = {
        "live here": f"{host} {os.getpid()} {now}",
        "dead here": f"{host} {dead.pid} {now}",
        "live elsewhere": f"another-host {dead.pid} {now - 60}",
        "silent elsewhere": f"another-host {os.getpid()} {now - 150}",
        "not ours": None,
    }
    for name, lease in leases.items():
        api.create_run(experiment, run_name=name, tags={"lease": lease} if lease else {})
    assert sorted(reconcile(tracking_uri(None, root), "leases")) == [
        "dead here",
        "silent elsewhere",
    ]
    assert statuses(root, "leases") == {
        "live here": ("RUNNING", None),
        "dead here": ("KILLED", "lost"),
        "live elsewhere": ("RUNNING", None),
        "silent elsewhere": ("KILLED", "lost"),
        "not ours": ("RUNNING", None),
    }
    assert reconcile(tracking_uri(None, root)) == []


def test_reconcile_makes_no_store_and_names_one_that_is_away(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert reconcile(tracking_uri(None, tmp_path)) == [] and list(tmp_path.iterdir()) == []
    with pytest.raises(ConnectionError, match="does not answer") as caught:
        reconcile("http://me:hunter2@127.0.0.1:9", "x")
    assert "hunter2" not in str(caught.value) and caught.value.__suppress_context__


def test_runs_ends_what_a_killed_command_left_in_mlflow(root, capsys, monkeypatch):
    from orchestrator.cli import app
    from orchestrator.storage import run as run_module

    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    api = mlflow_client(root)
    experiment = api.create_experiment("killed-command", (root / "artifacts").as_uri())
    api.create_run(
        experiment,
        run_name="left",
        tags={"lease": f"{socket.gethostname()} {dead.pid} {time.time():.0f}"},
    )
    run = run_module.Run(root / "killed-command-01234567", "sweep")
    run.update(run=run.name, name="killed-command", kind="sweep", state="running", started=1.0)
    monkeypatch.setenv("AMLRIS_HOME", str(root))
    with pytest.raises(SystemExit):
        app.main(["runs"])
    shutil.rmtree(run.folder)
    assert "lost (the same command continues it)" in capsys.readouterr().out
    assert statuses(root, "killed-command") == {"left": ("KILLED", "lost")}


def test_a_new_tracker_reconciles_and_a_live_one_renews(root, tmp_path, monkeypatch):
    monkeypatch.setenv("AMLRIS_LEASE_S", "1")
    lost = Tracker(tmp_path / "lost-00000000", None, "renewal", root)
    lost.run("a", "lost")
    assert lost.flush(30) == 0
    abandon(lost)
    api = mlflow_client(root)
    api.set_tag(lost.record("a")["run_id"], "lease", f"another-host 1 {time.time() - 100:.0f}")
    t = Tracker(tmp_path / RUN, None, "renewal", root)
    t.run("p", "parent")
    t.run("c", "child", "p")
    t.run("e", "ended", "p")
    t.end("e")
    assert t.flush(30) == 0
    leases = {key: set() for key in "pce"}
    deadline = time.time() + 15
    while time.time() < deadline and min(len(leases["p"]), len(leases["c"])) < 2:
        for key in leases:
            leases[key].add(api.get_run(t.record(key)["run_id"]).data.tags["lease"])
        time.sleep(0.2)
    assert len(leases["p"]) >= 2 and len(leases["c"]) >= 2 and len(leases["e"]) == 1
    again = Tracker(tmp_path / "again-00000000", None, "renewal", root)
    again.run("a", "again")
    assert again.flush(30) == 0
    assert statuses(root, "renewal") == {
        "lost": ("KILLED", "lost"),
        "parent": ("RUNNING", None),
        "child": ("RUNNING", None),
        "ended": ("FINISHED", None),
        "again": ("RUNNING", None),
    }
    assert again.close() == "" and t.close() == ""


def test_a_process_that_was_asleep_takes_its_runs_back(root, tmp_path):
    t = Tracker(tmp_path / RUN, None, "asleep", root)
    t.run("a", "a")
    assert t.flush(30) == 0
    api = mlflow_client(root)
    run_id = t.record("a")["run_id"]
    api.set_tag(run_id, "stopped_by", "lost")
    api.set_terminated(run_id, "KILLED")
    t._delivery.client.leases.renewed -= 1000
    t.metrics("a", 1, {"awake": 1})
    assert t.flush(30) == 0
    t.metrics("a", 2, {"awake": 1})
    assert t.flush(30) == 0
    assert statuses(root, "asleep") == {"a": ("RUNNING", None)}
    assert t.close() == ""


def test_a_run_deleted_in_the_store_is_given_up(root, tmp_path):
    t = Tracker(tmp_path / RUN, None, "deleted run", root)
    t.run("a", "a")
    t.run("b", "b")
    assert t.flush(30) == 0
    mlflow_client(root).delete_run(t.record("a")["run_id"])
    t._delivery.client.leases.renewed -= 1000
    t.metrics("a", 1, {"x": 1})
    t.metrics("b", 1, {"x": 1})
    assert t.flush(30) == 0
    assert mlflow_client(root).get_run(t.record("b")["run_id"]).data.metrics == {"x": 1.0}
    t.close()
