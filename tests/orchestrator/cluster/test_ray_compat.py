"""Private interfaces of Ray: used in one module, with the version of Ray they were checked with."""

import functools
import importlib
import re
from pathlib import Path

import pytest
import ray

from orchestrator.cluster import ray_compat

ORCHESTRATOR = Path(ray_compat.__file__).parents[1]


def test_ray_is_the_version_that_the_private_interfaces_were_checked_with():
    assert ray.__version__ == ray_compat.CHECKED_WITH == "2.60.0"


@pytest.mark.parametrize("interface", ray_compat.PRIVATE)
def test_a_private_interface_exists(interface):
    module, _, attribute = interface.partition(":")
    functools.reduce(getattr, attribute.split("."), importlib.import_module(module))


def test_every_private_interface_that_is_used_is_listed():
    """Compare the imports of `ray_compat`, and the attributes they are used by, with its list."""
    text = Path(ray_compat.__file__).read_text("utf-8")
    imported = set(re.findall(r"^    +from (ray\.\S+) import (\w+)", text, re.MULTILINE))
    public = {
        ("ray.train.torch", "TorchTrainer"),
        ("ray.tune.experiment", "Trial"),
        ("ray.util.placement_group", "PlacementGroup"),
    }
    for module, name in imported - public:
        assert any(f"{module}:{name}" in p or f"{module}.{name}:" in p for p in ray_compat.PRIVATE)
    assert all(
        p.rpartition(":")[2].rpartition(".")[2] in text.partition('"""`module:attribute`')[2]
        for p in ray_compat.PRIVATE
    )


def test_no_other_module_uses_a_private_interface():
    private = (
        r"\bray\._|(?<!RAY)_raylet|internal_kv|ConsolePopen|class_cache|_internal\b"
        r"|temporary_state|_register_sigint"
    )
    found = {
        path.name: names
        for path in ORCHESTRATOR.rglob("*.py")
        if (names := re.findall(private, path.read_text("utf-8")))
    }
    assert found.keys() == {"ray_compat.py"}, found


def test_a_placement_group_is_rebuilt_from_its_id():
    from ray._raylet import PlacementGroupID

    group_id = PlacementGroupID.from_random()
    assert ray_compat.placement_group(group_id.binary()).id == group_id


def test_tune_keeps_aws_keys_to_itself(monkeypatch):
    from ray.tune.execution import class_cache

    monkeypatch.setattr(
        class_cache, "ENV_VARS_TO_PROPAGATE", {"AWS_ACCESS_KEY_ID", "NCCL_RAS_ADDR"}
    )
    ray_compat.keep_credentials_from_trials()
    left = class_cache.ENV_VARS_TO_PROPAGATE
    assert left == {"NCCL_RAS_ADDR"}


def test_a_trial_that_is_killed_is_not_started_again(monkeypatch):
    from ray.tune.experiment import Trial

    trial = Trial("anything", stub=True, max_failures=3)
    assert trial.temporary_state.ray_actor is None, "Tune sets it once the trial runs"
    trial.temporary_state.ray_actor = "its actor"
    trial.run_metadata.num_failures = 1  # as Tune counts it before it asks
    assert trial.should_recover()
    killed = []
    monkeypatch.setattr(ray, "kill", killed.append)
    ray_compat.kill_trial(trial)
    assert killed == ["its actor"] and not trial.should_recover()
