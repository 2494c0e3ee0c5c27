"""Generated settings: each is an experiment that reads back as itself, or refused in a sentence."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings, strategies as st

from aml.errors import UserError
from aml.schema import Leaf
from orchestrator.config.explain import every_leaf, show_settings
from orchestrator.config.loader import from_dict, from_text, load
from orchestrator.config.matrix import load_matrix
from orchestrator.config.schema import Experiment
from orchestrator.config.yaml_text import parse_yaml, write_yaml
from tests.support.fuzzing import VALUES, damaged, outcome, replaced

MINIMAL: dict[str, Any] = {"name": "x", "data": {"train": "shards"}}

WHOLE = from_dict(
    MINIMAL
    | {
        "search": {
            "method": "random",
            "trials": 3,
            "scheduler": {"name": "asha", "grace": 1},
            "space": {"aml.tau": {"low": 0.1, "high": 1}, "optim.warmup": [0, "1epochs"]},
        },
        "optim": {"schedule": "steps", "milestones": [2, 4]},
        "data": {"train": ["a", "b"], "val": "b", "augment": ["flip"]},
    }
)

LEAVES = every_leaf()

ODD = st.one_of(
    VALUES,
    st.sampled_from(["off", "no", "1e3", "1e-3", "010", "0x1f", "1:30", "2026-01-01", "~", "null"]),
    st.sampled_from([".nan", "!!int x", "&a [*a]", "<<", "=", "\u2028", "\x85", "\u202e", "# x"]),
    st.sampled_from([10**400, 2**32 - 1, 1e-320, 5e-324, {"name": "asha"}, {"low": 0, "high": 1}]),
).map(copy.deepcopy)
"""Values, and texts that YAML may read as something else."""


def tree_with(leaf: Leaf, value: Any) -> dict[str, Any]:
    """Return the settings of an experiment that sets a leaf."""
    tree: dict[str, Any] = json.loads(json.dumps(MINIMAL))
    section, _, key = leaf.key.rpartition(".")
    inner = tree
    for part in section.split(".") if section else []:
        inner = inner.setdefault(part, {})
    if leaf.within and key != "name":
        inner["name"] = leaf.within
    inner[key] = value
    return tree


def check(found: Experiment | UserError) -> None:
    """Check that an accepted experiment reads back as itself, and is plain JSON."""
    if isinstance(found, UserError):
        assert "\n" not in str(found)
        return
    assert from_text(found.to_yaml()) == found
    again = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert from_dict(again) == found


@pytest.mark.fuzz
@pytest.mark.parametrize("leaf", LEAVES, ids=lambda leaf: f"{leaf.key}-{leaf.within}")
@settings(max_examples=max(2, settings.default.max_examples // 20))
@given(value=ODD)
def test_any_value_of_a_leaf(leaf, value):
    tree = tree_with(leaf, value)
    check(outcome(from_dict, tree))
    name = [f"{leaf.key.rpartition('.')[0]}.name={leaf.within}"] if leaf.within else []
    overrides = [*name, f"{leaf.key}={value}"]
    check(outcome(from_text, write_yaml(MINIMAL), overrides))
    try:
        text = yaml.safe_dump(tree)
    except yaml.YAMLError:
        return
    check(outcome(from_text, text))


@pytest.mark.fuzz
@given(tree=replaced(WHOLE.to_dict(), ODD))
def test_any_tree(tree):
    check(outcome(from_dict, tree))


@pytest.mark.fuzz
@given(content=damaged(WHOLE.to_yaml().encode()))
def test_any_file(content, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "damaged.yaml"
    path.write_bytes(content)
    found = outcome(load, path)
    check(found)
    if not isinstance(found, UserError):
        shown = outcome(show_settings, path, [])
        assert from_text(shown) == found


@pytest.mark.fuzz
@given(override=st.text(max_size=40) | st.builds("{}={}".format, st.text(max_size=12), ODD))
def test_any_override(override):
    check(outcome(from_text, write_yaml(MINIMAL), [override]))


@pytest.mark.fuzz
@given(value=VALUES.filter(lambda v: v == v))
def test_plain_data_is_written_as_it_reads(value):
    try:
        text = write_yaml(value)
        json.dumps(value, allow_nan=False)
        text.encode()
    except (ValueError, TypeError, yaml.YAMLError):
        return
    found = outcome(parse_yaml, text, "it")
    assert isinstance(found, UserError) or found == value


def test_the_recipes_read_back_as_themselves():
    for path in sorted((Path(__file__).parents[3] / "experiments").glob("*.yaml")):
        matrix = load_matrix(path)
        for experiment in [c.experiment for c in matrix.cells] if matrix else [load(path)]:
            check(experiment)
