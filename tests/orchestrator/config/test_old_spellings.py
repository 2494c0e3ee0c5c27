"""Old spellings of settings, and runs and checkpoints that were written with them."""

import json

import pytest
import yaml

from aml.errors import UserError
from orchestrator import storage
from orchestrator.config import (
    code_version,
    from_stored,
    from_text,
    load,
    upgrade_overrides,
)
from tests.orchestrator.config.test_config import MINIMAL
from tests.support.hearing import hear


@pytest.mark.parametrize(
    ("override", "new"),
    [
        ("search.asha={grace: 1}", "search.scheduler={name: asha"),
        ("search.pbt.interval=3", "search.scheduler={name: pbt"),
        ("search.time_limit_s=60", "search.budget.trial_hours"),
        ("optim.warmup_steps=5", "optim.warmup=500steps"),
        ("optim.warmup_epochs=0", "optim.warmup=1.5epochs"),
        ("search.space={optim.warmup_epochs: [1]}", "optim.warmup=1.5epochs"),
        ("resources.trial_timeout_s=60", "resources.epoch_timeout_s"),
    ],
)
def test_an_old_spelling_is_refused_with_the_new_one(override, new):
    with pytest.raises(UserError, match="is spelled otherwise now") as caught:
        from_text(MINIMAL, [override])
    assert new in str(caught.value)


STORED = """
name: old
data: {train: shards}
optim: {lr: 0.001, warmup_epochs: 0.5, warmup_steps: 0}
search:
  method: random
  trials: 4
  scheduler: %s
  asha: {grace: 4, reduction: 2}
  pbt: {interval: 3, quantile: 0.5, resample: 0.1}
  space: {optim.warmup_epochs: [0, 1.5], aml.tau: [0.5]}
  time_limit_s: 1800
  budget: {trials: null, epochs: null, hours: 2, cost: null}
resources: {trial_timeout_s: 60}
"""


def test_the_settings_of_an_old_run_folder_are_read_in_the_new_spelling():
    asha, pbt = (from_stored(STORED % name, "config.yaml") for name in ("asha", "pbt"))
    assert asha.search.scheduler.to_dict() == {"name": "asha", "grace": 4, "reduction": 2}
    assert pbt.search.scheduler.to_dict() == {
        "name": "pbt",
        "interval": 3,
        "quantile": 0.5,
        "resample": 0.1,
    }
    assert from_stored(STORED % "none", "config.yaml").search.scheduler.name == "none"
    assert (
        asha.optim.warmup == "0.5epochs"
        and asha.search.budget.to_dict()["trial_hours"] == 0.5
        and asha.search.budget.limits == {"hours": 2}
    )
    assert (
        asha.search.space["optim.warmup"] == [0, "1.5epochs"]
        and asha.resources.epoch_timeout_s == 60
    )
    assert from_stored(asha.to_yaml(), "config.yaml") == asha
    assert upgrade_overrides({"optim.warmup_steps": 5, "aml.tau": 0.5}) == {
        "optim.warmup": "5steps",
        "aml.tau": 0.5,
    }


def test_the_warm_up_is_counted_as_before():
    counted = {
        text: from_text(MINIMAL, [f"optim.warmup={text}"]).optim.warmup_steps(steps=25)
        for text in ("0", "7steps", "0.5epochs", "1.5 epochs")
    }
    assert counted == {
        "0": 0,
        "7steps": 7,
        "0.5epochs": round(0.5 * 25),
        "1.5 epochs": round(1.5 * 25),
    }


def test_a_bare_name_keeps_the_settings_of_the_same_scheduler_and_drops_those_of_another(tmp_path):
    (tmp_path / "base.yaml").write_text(MINIMAL + "search: {scheduler: {name: asha, grace: 4}}\n")
    top = tmp_path / "top.yaml"
    for text, overrides, grace in [
        ("", [], 4),
        ("search: {scheduler: asha}", [], 4),
        ("", ["search.scheduler=asha"], 4),
        ("", ["search.scheduler.grace=7"], 7),
        ("search: {scheduler: none}", [], None),
        ("", ["search.scheduler=none"], None),
        ("search: {scheduler: {name: asha, grace: 5}}", [], 5),
    ]:
        top.write_text(f"base: base.yaml\n{text}\n")
        assert getattr(load(top, overrides).search.scheduler, "grace", None) == grace


@pytest.mark.parametrize(
    ("change", "state", "named"),
    [
        ([], {}, True),
        (["resources.workers=2", "search.budget={hours: 1}", "tracking.uri=none"], {}, True),
        (["aml.tau=0.4"], {}, False),
        ([], {"state": "done"}, False),
        ([], {"data": {"fingerprint": "other"}}, False),
        ([], {"name": "y"}, False),
    ],
)
def test_an_unfinished_run_of_another_version_of_the_numerics_is_named(
    change, state, named, tmp_path
):
    now = from_text(MINIMAL, [f"storage.root={tmp_path}"])
    old = from_text(MINIMAL, change)
    folder = tmp_path / "x-0badc0de"
    folder.mkdir()
    stored = yaml.safe_load(old.to_yaml())
    stored["search"] |= {
        "scheduler": "none",
        "asha": {"grace": 2, "reduction": 3},
        "method": "grid",
    }
    stored["optim"] |= {"warmup_steps": 0, "warmup_epochs": 0.0}
    del stored["optim"]["warmup"]
    (folder / "config.yaml").write_text(yaml.safe_dump(stored))
    given = {
        "name": "x",
        "state": "running",
        "code_version": "0123456789ab",
        "data": {"fingerprint": "f"},
        "started": 1,
    } | state
    (folder / "sweep.json").write_text(json.dumps(given))
    said = hear([])
    run = storage.start_run(now, "sweep", {"fingerprint": "f"}, fresh=False)
    assert run.name == now.run_name("f") != folder.name
    assert [("x-0badc0de" in text and "--resume x-0badc0de" in text) for text in said] == (
        [True] if named else []
    )
    said.clear()
    storage.start_run(now, "sweep", {"fingerprint": "f"}, fresh=True)
    storage.start_run(now, "train", {"fingerprint": "f"}, fresh=False)
    assert said == []


@pytest.mark.parametrize(
    ("kind", "change", "same"),
    [
        ("train", [], True),
        ("sweep", [], True),
        ("sweep", ["search.seeds.confirm=5"], True),
        ("train", ["search.seeds.confirm=5"], False),
        ("sweep", ["aml.tau=0.4"], False),
    ],
)
def test_a_run_is_found_by_its_settings_where_later_ones_were_added(kind, change, same, tmp_path):
    folder = tmp_path / "x-0badc0de"
    folder.mkdir()
    stored = yaml.safe_load(from_text(MINIMAL).to_yaml())
    del stored["data"]["augment"], stored["evaluate"]["corrupt"]  # as a version without them wrote
    (folder / "config.yaml").write_text(yaml.safe_dump(stored))
    state = {"name": "x", "state": "interrupted", "code_version": code_version()}
    state |= {"data": {"fingerprint": "f"}, "started": 1}
    (folder / f"{kind}.json").write_text(json.dumps(state))
    now = from_text(MINIMAL, [f"storage.root={tmp_path}", *change])
    run = storage.start_run(now, kind, {"fingerprint": "f"}, fresh=False)
    assert (run.folder == folder) is same
    assert storage.start_run(now, kind, {"fingerprint": "f"}, fresh=True).folder != folder
