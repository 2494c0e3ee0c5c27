"""The drivers of a sweep and of `train` without a Ray cluster.

Timeouts, ends of trials, and what the next command continues.
"""

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from aml.errors import NotSaved, UserError
from aml.training.learner import ENDED
from orchestrator import storage
from orchestrator.cluster import placement
from orchestrator.config.loader import from_dict
from orchestrator.storage import run as run_module
from orchestrator.sweep.command import fit, has_cut_trials
from orchestrator.sweep.driver import Sweep
from orchestrator.sweep.tune.arm_schedulers import GO_ON, STOP, Verdict, in_order
from orchestrator.sweep.tune.callbacks import LostTrialCallback, ProgressCallback
from orchestrator.tracking.tracker import MemoryTracker
from orchestrator.training.epochs import EpochListener
from orchestrator.utils import files, signals
from tests.orchestrator.storage.test_survival import TREE
from tests.support.hearing import hear


def make_sweep(
    folder: Path,
    said: list[str],
    scheduler: str = "none",
    search: dict | None = None,
    epochs: int = 4,
    **resources,
) -> Sweep:
    chosen = {"name": scheduler, "grace": 1, "reduction": 2} if scheduler == "asha" else scheduler
    tree = TREE | {
        "search": {
            "arms": ["off"],
            "space": {"optim.lr": [1e-3, 2e-3, 3e-3]},
            "seeds": {"confirm": 0},
            "scheduler": chosen,
        }
        | (search or {}),
        "train": {"epochs": epochs},
        "resources": resources,
        "tracking": {"uri": "none"},
        "storage": {"root": str(folder)},
    }
    experiment = from_dict(tree)
    manifest = {"fingerprint": "f", "dataset": "d", "split_by": "s", "splits": {}}
    run = storage.start_run(experiment, "sweep", manifest, fresh=False)
    storage.begin_run(run, experiment, manifest, "x")
    run.update(epochs_by_arm={"off": epochs}, metric="val/mIoU", mode="max")
    hear(said)
    sweep = Sweep(
        run,
        experiment,
        MemoryTracker(run.folder),
        placement.plan_placement(experiment, [{"CPU": 2, "GPU": 0, "memory": 1e9}]),
    )
    sweep.start()
    return sweep


def suggest(sweep: Sweep) -> dict | None:
    """Return the next trial's config as Tune gets it; None for none."""
    config = sweep.searcher.suggest("")
    return config if isinstance(config, dict) else None


def start(sweep: Sweep, config: dict) -> str:
    """Start a suggested trial as Tune does, and return its id."""
    trial = SimpleNamespace(config=config)
    for callback in sweep.callbacks:
        callback.on_trial_start(0, [], trial)
    return config["trial"]


def begin(sweep: Sweep) -> str:
    """Start the next trial, and return its id."""
    return start(sweep, suggest(sweep))


def report(sweep: Sweep, trial_id: str, metrics: dict) -> tuple[str, str] | None:
    """Report a result of a trial; return how it ended the trial, if it did."""
    return sweep.scheduler.handle_result(trial_id, metrics)


def lost_trials(sweep: Sweep) -> LostTrialCallback:
    (callback,) = [c for c in sweep.callbacks if isinstance(c, LostTrialCallback)]
    return callback


def progress_callback(sweep: Sweep) -> ProgressCallback:
    (callback,) = [c for c in sweep.callbacks if isinstance(c, ProgressCallback)]
    return callback


def tick(sweep: Sweep, *pending: str) -> None:
    """Do a step of Tune, in which these trials have no room."""
    trials = [
        SimpleNamespace(config={"trial": name}, status="PENDING", PENDING="PENDING", RUNNING="")
        for name in pending
    ]
    for callback in sweep.callbacks:
        callback.on_step_begin(0, trials)


def epoch(number: int) -> dict:
    return {
        "epoch": number,
        "train/loss": 0.5,
        "val/mIoU": 0.1,
        "val/mIoU_best": 0.1,
        "val/oIoU": 0.1,
        "time/epoch_s": 1.0,
    }


def test_a_sweep_that_is_built_has_written_nothing_before_it_starts(tmp_path):
    sweep = make_sweep(tmp_path, [])
    begin(sweep)
    files_before = {p: p.read_bytes() for p in sweep.run.folder.rglob("*") if p.is_file()}
    tracker = MemoryTracker(sweep.run.folder)
    built = Sweep(sweep.run, sweep.experiment, tracker, sweep.placement)
    assert tracker.runs == {}
    assert files_before == {p: p.read_bytes() for p in sweep.run.folder.rglob("*") if p.is_file()}
    built.start()
    assert list(tracker.runs) == ["sweep"]


def test_a_trial_that_hangs_fails_alone_and_the_sweep_goes_on(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("orchestrator.sweep.trial_table.time.monotonic", lambda: now[0])
    sweep = make_sweep(tmp_path, [], epoch_timeout_s=60)
    hanging, lively = begin(sweep), begin(sweep)
    now[0] += 50
    assert report(sweep, lively, epoch(1)) is None
    now[0] += 11
    assert lost_trials(sweep).check_timeout(hanging) and not lost_trials(sweep).check_timeout(
        lively
    )
    lost_trials(sweep).fail_trial(
        hanging, "the actor was killed"
    )  # as Tune tells of it after the kill
    (record,) = sweep.run.ledger()
    assert (record["trial"], record["state"], record["stopped_by"]) == (
        hanging,
        "failed",
        "timeout",
    )
    assert record["error"].startswith(
        "no epoch was finished in 60 s (resources.epoch_timeout_s), so it was killed"
    )
    mine = sweep.tracker.runs[hanging]
    assert (
        mine["status"] == "FAILED"
        and mine["tags"]["stopped_by"] == "timeout"
        and "60 s" in mine["tags"]["error"]
    )
    assert not lost_trials(sweep).check_timeout(hanging) and begin(sweep) not in (hanging, lively)


def test_workers_of_a_training_that_hang_are_killed_once_for_each_limit(tmp_path, monkeypatch):
    """Ray Train starts others. While it waits for a node, none is killed and nothing is logged."""
    now, there, said, killed = [100.0], [True], hear([]), []
    monkeypatch.setattr("orchestrator.training.command.time.monotonic", lambda: now[0])
    monkeypatch.setattr(
        "orchestrator.cluster.placement_groups.remove_placement_groups",
        lambda names: killed.append(names) or there[0],
    )
    listener = EpochListener(
        run_module.Run(tmp_path, "train"),
        from_dict(TREE | {"resources": {"epoch_timeout_s": 60}}),
        MemoryTracker(tmp_path),
        "train",
    )
    listener.start()
    listener.close()
    now[0] += 1000
    listener.end_silent_workers()
    assert killed == [], "its workers were not asked for yet"
    listener.last_report_time = now[0]
    for seconds, deaths in ((60, 0), (1, 1), (60, 1), (1, 2)):
        now[0] += seconds
        listener.end_silent_workers()
        assert len(said) == deaths
    assert set(map(tuple, killed)) == {(tmp_path.name,)}
    assert said[0].startswith(
        "no epoch was finished in 60 s (resources.epoch_timeout_s), so the workers were killed, "
        "to start again after epoch 0"
    )
    there[0] = False
    now[0] += 100
    listener.end_silent_workers()
    assert len(said) == 2


def test_what_a_training_and_a_sweep_wait_for_is_said_once_for_each_wait(tmp_path, monkeypatch):
    now, waits, said = [100.0], [True], hear([])
    monkeypatch.setattr("orchestrator.sweep.trial_table.time.monotonic", lambda: now[0])
    monkeypatch.setattr("orchestrator.cluster.placement_groups.is_pending", lambda name: waits[0])
    monkeypatch.setattr(
        "orchestrator.cluster.placement_groups.available_resources",
        lambda resources: "0.5 of 2 CPU",
    )
    placed = [False]
    monkeypatch.setattr("orchestrator.cluster.placement_groups.has_place", lambda r: placed[0])
    listener = EpochListener(
        run_module.Run(tmp_path, "train"),
        from_dict(TREE),
        MemoryTracker(tmp_path),
        "train",
    )
    listener.start()
    listener.close()
    listener.last_report_time = now[0]
    for seconds, sayings in (
        (1000, 0),
        (60, 0),
        (1, 1),
        (100, 1),
    ):  # since it was first seen without, however long the epoch before had taken
        now[0] += seconds
        listener.log_pending()
        assert len(said) == sayings
    assert said[0].startswith("waiting for 1 worker(s) x 1 CPU: the cluster has 0.5 of 2 CPU free")
    waits[0] = False
    for _ in range(2):
        listener.log_pending()
        assert said[1:] == ["the workers have started"]
    waits[0] = placed[0] = True
    for seconds, sayings in ((1000, 2), (61, 3)):
        now[0] += seconds
        listener.log_pending()
        assert len(said) == sayings, "another wait"
    assert said[2].startswith("1 worker(s) x 1 CPU have their place and are starting")
    said.clear()
    sweep = make_sweep(tmp_path / "sweep", said)
    config = suggest(sweep)
    name = config["trial"]
    for sayings in (0, 1, 1):
        now[0] += 61
        tick(sweep, name)
        assert (
            sum(
                "1 trial(s) wait: each needs 1 worker(s) x 1 CPU, and the cluster has "
                "0.5 of 2 CPU free" in text
                for text in said
            )
            == sayings
        )
    start(sweep, config)
    now[0] += 61
    tick(sweep)
    assert not progress_callback(sweep).pending.is_logged
    said.clear()
    spread = make_sweep(
        tmp_path / "spread", said, workers=2, cpus_per_worker=0.5, memory_gb=0.1
    )  # its trials run in Tune's eyes before they have room
    begin(spread)
    for sayings in (0, 1):
        now[0] += 61
        tick(spread)
        assert (
            sum(
                "1 trial(s) wait: each needs 2 worker(s) x 0.5 CPU and 0.1 GiB" in text
                for text in said
            )
            == sayings
        )


def test_without_a_limit_no_trial_hangs(tmp_path, monkeypatch):
    sweep = make_sweep(tmp_path, [])
    name = begin(sweep)
    monkeypatch.setattr("orchestrator.sweep.trial_table.time.monotonic", lambda: 1e12)
    assert not lost_trials(sweep).check_timeout(name)
    with pytest.raises(UserError, match="resources.epoch_timeout_s is 0"):
        from_dict(TREE | {"resources": {"epoch_timeout_s": 0}})


@pytest.mark.parametrize(
    "kind, goes_on", [("memory", False), ("disk", True), ("away", True), ("non-finite", False)]
)
def test_a_trial_that_cannot_go_on_fails_alone_and_only_what_the_world_lacked_is_tried_again(
    tmp_path, kind, goes_on
):
    sweep = make_sweep(tmp_path, [])
    first, second = begin(sweep), begin(sweep)
    report(sweep, first, epoch(1))
    assert report(sweep, first, {"epoch": -1, "failed": "because", "kind": kind})[0] == "failed"
    assert [report(sweep, second, epoch(n)) for n in (1, 2, 3, 4)] == [
        None,
        None,
        None,
        ("done", ""),
    ]
    assert [(r["state"], r["stopped_by"]) for r in sweep.run.ledger()] == [
        ("failed", kind),
        ("done", ""),
    ]
    again = make_sweep(tmp_path, [])
    assert has_cut_trials(again.run) is goes_on
    names = [begin(again)]
    while config := suggest(again):
        names.append(config["trial"])
    assert (first in names) is goes_on and second not in names


def test_epochs_that_a_stopped_trials_workers_went_on_with_are_none_of_its_result(tmp_path):
    """Workers of Ray Train train on until they are ended, by a varying number of epochs."""
    sweep = make_sweep(tmp_path, [])
    arms = sweep.scheduler.arms
    arms.on_result = lambda trial_id, arm, metrics: (
        Verdict(STOP) if metrics["epoch"] == 2 else GO_ON
    )
    name = begin(sweep)
    assert report(sweep, name, epoch(1)) is None
    files.atomic_write(
        sweep.run.folder / "trials" / name / "epochs.jsonl",
        "".join(json.dumps(epoch(n)) + "\n" for n in (1, 2, 3)).encode(),
    )
    assert report(sweep, name, epoch(2))[0] == "stopped" and report(sweep, name, epoch(3)) is None
    (record,) = sweep.run.ledger()
    assert record["epochs"] == 2 and [e["epoch"] for e in record["history"]] == [1, 2]


def test_the_rungs_a_trial_had_passed_stand_when_it_goes_on(tmp_path):
    """The driver was lost after an epoch; the next one judges the others against that epoch."""
    sweep = make_sweep(tmp_path, [], scheduler="asha")
    good = begin(sweep)
    report(sweep, good, epoch(1) | {"val/mIoU": 0.9})
    files.atomic_write(
        sweep.run.folder / "trials" / good / "epochs.jsonl",
        (json.dumps(epoch(1) | {"val/mIoU": 0.9}) + "\n").encode(),
    )
    again = make_sweep(tmp_path, [], scheduler="asha")
    assert begin(again) == good
    assert report(again, begin(again), epoch(1)) == ("stopped", "asha")


def test_a_rung_judges_the_last_epoch_before_an_interruption(tmp_path):
    sweep = make_sweep(tmp_path, [], scheduler="asha")
    good, bad = begin(sweep), begin(sweep)
    report(sweep, good, epoch(1) | {"val/mIoU": 0.9})
    sweep.interrupt()
    assert report(sweep, bad, epoch(1)) == ("stopped", "asha")
    assert [(r["trial"], r["epochs"], r["stopped_by"]) for r in sweep.run.ledger()] == [
        (bad, 1, "asha")
    ]


def test_an_epoch_that_a_lost_driver_did_not_hear_is_judged_by_the_next(tmp_path):
    sweep = make_sweep(tmp_path, [], scheduler="asha")
    good, bad = begin(sweep), begin(sweep)
    for name, score in ((good, 0.9), (bad, 0.1)):
        line = json.dumps(epoch(1) | {"val/mIoU": score}) + "\n"
        files.atomic_write(sweep.run.folder / "trials" / name / "epochs.jsonl", line.encode())
    again = make_sweep(tmp_path, [], scheduler="asha")
    assert begin(again) == good and begin(again) not in (good, bad), (
        "nothing of the other is left to train"
    )
    (record,) = again.run.ledger()
    assert (record["trial"], record["state"], record["stopped_by"]) == (bad, "stopped", "asha")
    assert [e["epoch"] for e in record["history"]] == [1] and again.plan.results.epochs_trained == 1
    mine = again.tracker.runs[bad]
    assert (mine["status"], mine["metrics"]["val/mIoU"]) == ("FINISHED", [(1, 0.1)])


def test_rungs_are_told_again_in_the_order_in_which_epochs_ended(tmp_path):
    """The next driver does not stop a trial that the first one let go on.

    The first trial at a rung goes on, whoever comes after it; then its driver was interrupted.
    """
    sweep = make_sweep(tmp_path, [], scheduler="asha")
    first, good = begin(sweep), begin(sweep)
    lines = {
        name: epoch(1) | {"val/mIoU": score, ENDED: ended}
        for name, score, ended in ((first, 0.2, 100.5), (good, 0.9, 101.0))
    }
    for name, line in lines.items():
        files.atomic_write(
            sweep.run.folder / "trials" / name / "epochs.jsonl", (json.dumps(line) + "\n").encode()
        )
        assert report(sweep, name, line) is None
    assert (
        all(report(sweep, good, epoch(n) | {"val/mIoU": 0.9}) is None for n in (2, 3))
        and report(sweep, good, epoch(4))[0] == "done"
    )
    again = make_sweep(tmp_path, [], scheduler="asha")
    assert begin(again) == first and again.searcher.ended_on_replay == {}
    assert report(again, begin(again), epoch(1) | {"val/mIoU": 0.5}) == ("stopped", "asha")


def test_the_epochs_of_a_trial_stay_in_their_order_though_clocks_differ():
    """A trial continued on a machine whose clock is behind."""
    histories = {
        "a": [epoch(1) | {ENDED: 50.0}, epoch(2) | {ENDED: 20.0}],
        "b": [epoch(1) | {ENDED: 30.0}],
        "from before": [epoch(1)],
    }
    assert [(name, one["epoch"]) for name, one in in_order(histories)] == [
        ("from before", 1),
        ("b", 1),
        ("a", 1),
        ("a", 2),
    ]


def test_the_places_of_stopped_distributed_trials_are_handed_to_one_that_starts_each_once(tmp_path):
    sweep = make_sweep(tmp_path, [], workers=2, cpus_per_worker=0.5)
    sweep.scheduler.arms.on_result = lambda *_: Verdict(STOP)
    first = begin(sweep)
    report(sweep, first, epoch(1))
    assert [suggest(sweep)["release"]] == [[first]]
    assert sweep.trials.take_released() == []


def test_what_a_trial_lost_for_good_was_writing_is_taken_away(tmp_path):
    sweep = make_sweep(tmp_path, [])
    folder = sweep.run.folder / "trials" / begin(sweep)
    for kept in ("last/model.safetensors", "pictures/epoch-0001.png", "epochs.jsonl"):
        files.atomic_write(folder / kept, b"x")
    before = sorted(folder.rglob("*"))
    for half in (
        "best.amlris-draft/model.safetensors",
        "pictures/epoch-0002.png.amlris-draft",
        "epochs.jsonl.amlris-draft",
    ):
        (folder / half).parent.mkdir(exist_ok=True)
        (folder / half).write_bytes(b"x")
    lost_trials(sweep).drop_drafts(folder.name)
    assert sorted(folder.rglob("*")) == before


def test_a_run_whose_report_was_not_written_yet_has_not_finished(tmp_path):
    run = run_module.Run(tmp_path, "sweep")
    run.update(state="done", concluded=False)
    assert not run_module.Run(tmp_path, "sweep").finished
    run.update(concluded=True)
    assert run_module.Run(tmp_path, "sweep").finished


def test_mlflow_hears_of_an_end_before_the_ledger_does(tmp_path):
    """A driver that is lost between the two trains the trial again.

    The other way round nobody would end the trial's MLflow run.
    """
    sweep = make_sweep(tmp_path, [])
    name = begin(sweep)

    def lost(record):
        raise KeyboardInterrupt

    sweep.run.append = lost
    with pytest.raises(KeyboardInterrupt):
        report(sweep, name, epoch(4))
    assert (
        sweep.tracker.runs[name]["status"] == "FINISHED" and begin(make_sweep(tmp_path, [])) == name
    )


@pytest.mark.parametrize("file", ["ledger.jsonl", "trial.json"])
def test_a_disk_that_takes_nothing_of_the_driver_ends_the_sweep_and_the_next_command_goes_on(
    tmp_path, monkeypatch, file
):
    """An error raised where Tune calls would come out as a traceback."""

    def full(*_):
        raise NotSaved(f"{file} could not be written")

    sweep = make_sweep(tmp_path, [])
    name = begin(sweep)
    with monkeypatch.context() as patch:
        patch.setattr(
            *(
                (sweep.run, "append")
                if file == "ledger.jsonl"
                else ("orchestrator.utils.files.atomic_write",)
            ),
            full,
        )
        if file == "ledger.jsonl":
            assert report(sweep, name, epoch(4)) == ("done", "")
        assert suggest(sweep) is None and suggest(sweep) is None
        with pytest.raises(NotSaved, match=file):
            fit(sweep, None, [], {})
    assert sweep.run.ledger() == [] and begin(make_sweep(tmp_path, [])) == name


def test_what_a_killed_driver_had_spent_is_known_to_the_next(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("orchestrator.sweep.trial_table.time.monotonic", lambda: now[0])
    monkeypatch.setattr("orchestrator.sweep.trial_table.time.time", lambda: now[0])
    sweep = make_sweep(tmp_path, [])
    begin(sweep)
    now[0] += 100
    tick(sweep)
    assert make_sweep(tmp_path, []).budget.spent() == {"seconds": 100, "trial_seconds": 100}


@pytest.mark.parametrize(
    "ticks", [0, 2], ids=["just before an epoch is heard", "in the middle of one"]
)
def test_an_interrupted_sweep_says_so_ends_trials_at_their_epoch_and_loses_nothing(tmp_path, ticks):
    said = []
    sweep = make_sweep(tmp_path, said)
    first, second = begin(sweep), begin(sweep)
    assert report(sweep, first, epoch(1)) is None
    sweep.interrupt()
    for _ in range(ticks):
        tick(sweep)
    assert said.count(signals.INTERRUPTED) == min(ticks, 1)
    assert report(sweep, first, epoch(2)) == ("stopped", "interrupt") and report(
        sweep, second, epoch(4)
    ) == ("done", "")
    assert said.count(signals.INTERRUPTED) == 1
    lost_trials(sweep).fail_trial(first, "stopped before its last epoch")  # as Tune tells of it
    assert suggest(sweep) is None and not sweep.plan.done
    assert [(r["trial"], r["state"]) for r in sweep.run.ledger()] == [(second, "done")]
    sweep.tracker.close()
    assert sweep.tracker.runs[first]["status"] == "KILLED"
    assert begin(make_sweep(tmp_path, [])) == first


def test_hyperband_pauses_trials_that_go_on_later_and_stops_others_with_a_record(tmp_path):
    """Its first bracket has 3 trials of 9 epochs, its second compares trials at epoch 3.

    The driver is lost while two of them are paused.
    """
    search = {
        "scheduler": {"name": "hyperband", "reduction_factor": 3},
        "method": "random",
        "trials": 8,
        "space": {"optim.lr": {"low": 1e-4, "high": 1e-3}},
    }

    def train(name: str, first: int, last: int) -> tuple[str, str] | None:
        end = None
        for number in range(first, last + 1):
            one = epoch(number) | {"val/mIoU": int(name[-1]) / 10, ENDED: time.time()}
            path = sweep.run.folder / "trials" / name / "epochs.jsonl"
            before = path.read_bytes() if path.exists() else b""
            files.atomic_write(path, before + json.dumps(one).encode() + b"\n")
            end = report(sweep, name, one)
        return end

    sweep = make_sweep(tmp_path, [], search=search, epochs=9)
    for _ in range(3):
        assert train(begin(sweep), 1, 9) == ("done", "")
    third, fourth = begin(sweep), begin(sweep)
    assert suggest(sweep) is None
    assert train(third, 1, 3) == ("stopped", "pause")
    fifth = begin(sweep)
    assert train(fifth, 1, 3) == ("stopped", "pause")
    sweep = make_sweep(tmp_path, [], search=search, epochs=9)
    assert sorted(sweep.plan.held) == [third, fifth]
    assert begin(sweep) == fourth
    sixth = begin(sweep)
    assert train(fourth, 1, 3) == train(sixth, 1, 3) == ("stopped", "pause")
    seventh = begin(sweep)
    assert train(seventh, 1, 3) is None  # the last and best to come to the rung: of 5 two go on
    stopped = [r for r in sweep.run.ledger() if r["stopped_by"] == "hyperband"]
    assert {r["trial"] for r in stopped} == {third, fourth, fifth}
    assert [r["epochs"] for r in stopped] == [3, 3, 3]
    config = suggest(sweep)
    assert (config["trial"], config["segment"]) == (sixth, f"{sixth}-from-3")
    start(sweep, config)
    assert train(sixth, 4, 9) == train(seventh, 4, 9) == ("done", "")
    assert sweep.plan.done and not sweep.plan.held
