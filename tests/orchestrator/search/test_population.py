"""Population-based training.

Exploits by hand; the same population on any number of machines and after a kill; a whole sweep.
"""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from aml.errors import NotSaved, UserError
from orchestrator.config.loader import from_text
from orchestrator.config.validation import check_sweep
from orchestrator.search import trial_spec
from orchestrator.search.plan import Plan
from orchestrator.search.populations import generations
from orchestrator.search.populations.population import Population, explore
from orchestrator.storage import paths, run as run_module, uploads
from orchestrator.storage.records import read_history
from orchestrator.storage.remote_folder import RemoteFolder
from orchestrator.storage.snapshot import TRIAL
from orchestrator.storage.synced_folder import SyncedFolder
from orchestrator.training.loop import restore_from_bucket
from tests.orchestrator.sweep.test_sweep import TINY
from tests.support.s3 import Machine, objects

BASE = "name: x\ndata: {train: shards}\ntrain: {epochs: 6}\n"
PBT = [
    "search.scheduler=pbt",
    "search.method=random",
    "search.trials=4",
    "search.arms=[off, aml/calibrated]",
    "search.seeds={confirm: 1}",
]
SPACE = (
    "search.space={aml.tau: {low: 0.2, high: 0.8}, optim.lr: {low: 1e-4, high: 1e-2, log: true}}"
)


def population(*overrides, members=4, epochs=6):
    found = Population(
        from_text(BASE, [*PBT, SPACE, *overrides]), "aml/calibrated", members, epochs
    )
    found.initial_configs = {
        f"m{k}": {"aml.tau": 0.2 + 0.1 * k, "optim.lr": 1e-3} for k in range(members)
    }
    return found


@pytest.mark.parametrize(
    ("modes", "best"), [("max", "m3"), ("min", "m0"), ("[max, min]", "m3"), ("[min, max]", "m0")]
)
def test_members_are_ranked_by_the_first_metric_of_a_search(modes, best):
    p = population("search.metric=[val/mIoU, train/loss]", f"search.mode={modes}")
    p.scores = {f"m{k}": float(k) for k in range(4)}
    moves = p.decide()["moves"]
    assert [move["from"] for move in moves.values()] == [best]


def test_the_worst_go_on_from_the_best_with_other_settings():
    p = population()
    assert (p.generation_start, p.generation_end) == (0, 2) and not p.is_complete()
    p.scores = {"m0": 0.1, "m1": 0.4, "m2": None, "m3": 0.3}
    assert p.is_complete()
    first = p.decide()
    assert (
        list(first["moves"]) == ["m2"]
        and first["moves"]["m2"]["from"] == "m1"
        and first["epoch"] == 2
    ), "one in four; no score is the worst"
    assert (
        p.config("m2") == first["moves"]["m2"]["overrides"] != p.initial_configs["m1"]
        and p.config("m1") == p.initial_configs["m1"]
    )
    assert p.config_history("m2") == [[0, p.initial_configs["m1"]], [2, p.config("m2")]] and (
        p.generation_start,
        p.generation_end,
    ) == (
        2,
        4,
    )
    p.scores = {"m0": 0.2, "m1": 0.1, "m2": 0.9, "m3": 0.3}
    second = p.decide()
    assert second["moves"]["m1"]["from"] == "m2"
    assert p.config_history("m1") == [
        [0, p.initial_configs["m1"]],
        [2, first["moves"]["m2"]["overrides"]],
        [4, second["moves"]["m1"]["overrides"]],
    ]
    assert p.generation_end == 6 and not p.is_complete(), (
        "the last generation ends with the training"
    )


@pytest.mark.parametrize("mode, worst", [("max", {"m0", "m1"}), ("min", {"m2", "m3"})])
def test_half_at_most_and_either_direction(mode, worst):
    p = population(f"search.mode={mode}", "search.scheduler.quantile=0.5")
    p.scores = {f"m{k}": k / 10 for k in range(4)}
    moves = p.decide()["moves"]
    assert (
        set(moves) == worst
        and {m["from"] for m in moves.values()} <= set(p.initial_configs) - worst
    )


def test_members_that_failed_are_not_waited_for():
    p = population()
    p.scores, p.terminated = {"m0": 0.3, "m1": 0.2, "m3": 0.1}, {"m2"}
    assert p.is_complete() and p.decide()["moves"]["m3"]["from"] == "m0"
    p = population(members=5)
    del p.initial_configs["m4"]
    p.scores = dict.fromkeys(p.initial_configs, 0.5)
    assert not p.is_complete() and p.is_complete(search_ended=True), (
        "a fifth is to come, unless no trial is started any more"
    )


def test_settings_move_a_step_within_their_range_or_are_drawn_anew():
    search = from_text(
        BASE,
        [
            *PBT,
            "search.space={aml.tau: {low: 0.2, high: 0.8}, aml.rho: [0.2, 0.5, 1.0], "
            "optim.lr: [1e-3]}",
        ],
    ).search
    settings, rng = {"aml.tau": 0.7, "aml.rho": 0.5, "train.epochs": 9}, np.random.default_rng(0)
    found = [explore(search, settings, rng) for _ in range(400)]
    steps = [f["aml.tau"] for f in found]
    up, down = sum(x == 0.8 for x in steps), sum(x == 0.7 * 0.8 for x in steps)
    assert min(up, down) > 100 and all(0.2 <= x <= 0.8 for x in steps), (
        "0.7 * 1.2 is cut off at 0.8"
    )
    assert 60 < 400 - up - down < 140, "a quarter is drawn anew"
    assert {f["aml.rho"] for f in found} == {0.2, 0.5, 1.0} and all(
        f["train.epochs"] == 9 and "optim.lr" not in f for f in found
    )


# ---- through the plan


def score(trial, weights):
    """Return weights after an epoch: better the higher tau is, and they remember the past."""
    return weights + trial.overrides.get("aml.tau", 0.5) / 10


def run_through(experiment, stop_after=None, together=3, members=None):
    """Run a sweep without Ray, in an order of its own.

    Args:
        experiment: The settings of the sweep.
        stop_after: The turn after which the sweep is killed and continued.
        together: Trials that run at a time.
        members: The number of an arm's members that a budget lets join.

    Returns:
        {trial: record}, {arm: [decision]}.
    """
    weights, epochs, records, decisions, specs = {}, {}, [], {}, []
    made = Plan(experiment)
    if members:
        made.budget_check = lambda stage, arm: (
            "trials"
            if stage == "search" and made.counts.num_suggested[arm]["search"] >= members
            else ""
        )

    def end_generations():
        ended = False
        while found := made.finish_generation():
            ended = True
            decisions.setdefault(found[0], []).append(found[1])
            for member, move in found[1]["moves"].items():
                weights[member], epochs[member] = weights[move["from"]], epochs[move["from"]]
        return ended

    for turn in range(1000):
        if turn == stop_after:
            reached = {t: {"epoch": n, "val/mIoU": weights[t]} for t, n in epochs.items()}
            made = Plan(
                experiment,
                records,
                [trial_spec.trial_from_json(text) for text in specs],
                None,
                decisions,
                reached,
            )
        live = []
        while len(made.running) < together and (
            trial := made.suggest() or (end_generations() and made.suggest())
        ):
            live.append(trial)
        if not live:
            assert made.done
            return {r["trial"]: r for r in records}, decisions
        for trial in reversed(live):
            specs += (
                []
                if any(json.loads(s)["id"] == trial.id for s in specs)
                else [trial_spec.trial_to_json(trial)]
            )
            for settings, end in trial.config_schedule(experiment):
                while epochs.get(trial.id, 0) < end:
                    now = replace(
                        trial,
                        overrides={"aml.tau": settings.aml.tau} if "aml/" in trial.arm else {},
                    )
                    weights[trial.id] = score(now, weights.get(trial.id, 0.0))
                    epochs[trial.id] = epochs.get(trial.id, 0) + 1
            epoch = {"epoch": epochs[trial.id], "val/mIoU": weights[trial.id]}
            if epoch["epoch"] < experiment.train.epochs:
                made.pause_trial(trial, epoch)
            else:
                facts = {
                    "trial": trial.id,
                    "arm": trial.arm,
                    "stage": trial.stage,
                    "seed": trial.seed,
                    "overrides": trial.overrides,
                }
                path = trial.config_history or made.config_history(trial.id)
                records.append(
                    facts
                    | {"state": "done", "stopped_by": "", "epochs": 6, "history": [epoch]}
                    | ({"path": path} if path else {})
                )
                made.on_trial_complete(records[-1])
            end_generations()


def test_a_population_finds_better_settings_and_its_path_is_confirmed():
    experiment = from_text(
        BASE,
        [*PBT, SPACE, "search.scheduler={name: pbt, interval: 1, resample: 0.0, quantile: 0.5}"],
    )
    records, decisions = run_through(experiment)
    assert (
        len(records) == 2 * (4 + 1)
        and len(decisions["off"]) == len(decisions["aml/calibrated"]) == 5
    )
    best = max(
        (r for r in records.values() if r["arm"] == "aml/calibrated" and r["stage"] == "search"),
        key=lambda r: r["history"][-1]["val/mIoU"],
    )
    confirmed = records["aml_calibrated-confirm-000"]
    assert (
        confirmed["path"] == best["path"]
        and len(best["path"]) > 1
        and confirmed["overrides"] == best["overrides"]
    )
    assert confirmed["history"][-1]["val/mIoU"] == pytest.approx(best["history"][-1]["val/mIoU"]), (
        "the same settings at the same epochs"
    )
    assert all(set(o) == {"optim.lr"} for _, o in records["off-confirm-000"].get("path", [])), (
        "an arm keeps to its own dimensions"
    )
    seeds = [r["seed"] for r in records.values() if r["arm"] == "off" and r["stage"] == "search"]
    assert sorted(seeds) == [0, 1, 2, 3], "members with one setting differ in their seed"


@pytest.mark.parametrize("together", [1, 2, 4, 5])
def test_a_budget_that_lets_fewer_join_leaves_a_smaller_population_and_its_best_is_confirmed(
    together,
):
    records, decisions = run_through(from_text(BASE, [*PBT, SPACE]), members=3, together=together)
    search = [r for r in records.values() if r["stage"] == "search"]
    assert (
        len(search) == 6
        and {r["history"][-1]["epoch"] for r in records.values()} == {6}
        and len(decisions["aml/calibrated"]) == 2
    )
    best = max(
        (r for r in search if r["arm"] == "aml/calibrated"),
        key=lambda r: r["history"][-1]["val/mIoU"],
    )
    assert records["aml_calibrated-confirm-000"]["overrides"] == best["overrides"]


def test_a_cut_search_is_confirmed_when_its_last_member_has_ended_and_not_before():
    made = Plan(from_text(BASE, [*PBT, SPACE, "search.arms=[aml/calibrated]"]))
    first, second = made.suggest(), made.suggest()
    made.search_end_reason = "trials"
    for trial, following in ((first, None), (second, "aml_calibrated-confirm-000")):
        facts = {
            "trial": trial.id,
            "arm": trial.arm,
            "stage": "search",
            "seed": trial.seed,
            "overrides": trial.overrides,
            "epochs": 6,
        }
        made.on_trial_complete(
            facts | {"state": "done", "stopped_by": "", "history": [{"epoch": 6, "val/mIoU": 0.5}]}
        )
        assert getattr(made.suggest(), "id", None) == following


@pytest.mark.parametrize("stop_after", [1, 2, 3, 4, 6])
def test_killed_anywhere_and_on_any_number_of_machines_it_is_the_same_population(stop_after):
    experiment = from_text(BASE, [*PBT, SPACE])
    whole = run_through(experiment)
    assert run_through(experiment, stop_after) == whole
    assert {
        t: r["path"] for t, r in run_through(experiment, together=1)[0].items() if "path" in r
    } == {t: r["path"] for t, r in whole[0].items() if "path" in r}


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["resources.workers=2"], "between light trials"),
        (["search.method=tpe"], "method random or grid"),
        (
            ["search.space={model.width: [32, 64]}"],
            "model.width cannot change while a model trains",
        ),
        (["search.scheduler.interval=6"], "no generation would end"),
        (["search.scheduler.quantile=0.6"], r"in \(0, 0\.5\]"),
    ],
)
def test_a_population_that_cannot_be_is_refused(overrides, words):
    with pytest.raises(UserError, match=words):
        check_sweep(from_text(BASE, [*PBT, SPACE, *overrides]))


def test_moves_are_made_once_however_often_the_sweep_is_opened(tmp_path):
    for name in ("good", "bad"):
        (tmp_path / "trials" / name / "last").mkdir(parents=True)
        (tmp_path / "trials" / name / "best").mkdir()
        (tmp_path / "trials" / name / "last" / "weights").write_text(name)
        (tmp_path / "trials" / name / "epochs.jsonl").write_text(f'{{"of": "{name}"}}\n')
    (tmp_path / "trials" / "bad" / "last.previous").mkdir()
    decision = {
        "epoch": 2,
        "scores": {"bad": 0.1, "good": 0.3},
        "moves": {"bad": {"from": "good", "overrides": {"aml.tau": 0.25}}},
    }
    (said,) = generations.Generations(tmp_path).finish("aml/calibrated", decision)
    assert "bad" in said and "goes on from good at epoch 2 with aml.tau 0.25" in said
    last = tmp_path / "trials" / "bad" / "last"
    assert (last / "weights").read_text() == "good" and (
        tmp_path / "trials" / "bad" / "epochs.jsonl"
    ).read_text() == '{"of": "good"}\n'
    assert not (tmp_path / "trials" / "bad" / "last.previous").exists(), (
        "nothing to fall back to that is not the donor's"
    )
    (last / "weights").write_text("trained on")
    again = generations.Generations(tmp_path)
    again.resume()
    assert again.decisions["aml/calibrated"][0]["moves"] == decision["moves"]
    assert (last / "weights").read_text() == "trained on"
    (tmp_path / "trials" / "bad" / generations.DONE).unlink()  # as after a crash before the move
    generations.Generations(tmp_path).resume()
    assert (last / "weights").read_text() == "good"


# ---- in a bucket

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
