"""Reads experiments: YAML files built on one another, key=value overrides, and stored run folders.

What is read is bounded before anything is made of it: the kind and size of a file, how deep it
nests, how much its aliases stand for. Old spellings are refused with the new one, and converted
only where a run folder holds them.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from aml.errors import UserError
from aml.schema import shown, unknown
from orchestrator.config.old_spellings import refuse_old_spellings, upgraded
from orchestrator.config.schema import Experiment, leaves, put
from orchestrator.config.yaml_text import parse_yaml, path_in_words, plain, read_yaml_text

Layer = tuple[str, dict[str, Any]]
"""Where settings came from, and what was set there."""

MATRIX = "matrix"
"""The section that makes a file a matrix of experiments; `load_matrix` reads it."""


def read_layers(path: Path, base: Path | None = None, above: tuple[Path, ...] = ()) -> list[Layer]:
    """Return what a file and the files it is built on set, the lowest first.

    Args:
        path: The file.
        base: The file to build it on, instead of the one it names.
        above: The files that are built on this one.
    """
    tree = tree_of(read_yaml_text(path), path_in_words(path))
    named = tree.pop("base", None)
    if named is not None and (not isinstance(named, str) or not named):
        raise UserError(
            f"{path_in_words(path)}: base is {shown(named)}; it must be the path of a YAML file"
        )
    top = ("file" if not above else "base") + f" {os.path.normpath(path)}"
    if base is None and named is None:
        return [(top, tree)]
    base = base or path.parent / str(named)
    here = _resolved(path)
    if _resolved(base) in (*above, here):
        raise UserError(
            f"{path_in_words(path)} names the base {path_in_words(base)}, which is built on it in "
            "turn; remove one of the two"
        )
    if len(above) >= 16:
        raise UserError(
            f"{path_in_words(path)} is the base of a base 16 times over; name fewer files"
        )
    return [*read_layers(base, above=(*above, here)), (top, tree)]


def tree_of(text: str, where: str) -> dict[str, Any]:
    """Return the mapping that YAML text holds, its shorthands written out."""
    tree = parse_yaml(text, where)
    if not isinstance(tree, dict):
        keys = ", ".join(Experiment.model_fields)
        raise UserError(
            f"{where} holds {shown(tree)}, not a mapping; its top-level keys are {keys}"
        )
    return written_out(tree)


def merged(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with what `top` sets.

    Sections merge key by key; a search space, lists, and a section whose name changes replace what
    was there.
    """
    found = dict(base)
    for key, value in top.items():
        old: Any = base.get(key)
        whole = key == "space" or not isinstance(old, dict) or not isinstance(value, dict)
        if whole or ("name" in value and value["name"] != old.get("name")):
            found[key] = value
        else:
            found[key] = merged(old, value)
    return found


def written_out(tree: dict[str, Any]) -> dict[str, Any]:
    """Return settings with `search.method: name` written as a mapping, as `search.scheduler`."""
    search = tree.get("search")
    if not isinstance(search, dict):
        return tree
    bare = {
        k: {"name": search[k]} for k in ("method", "scheduler") if isinstance(search.get(k), str)
    }
    return {**tree, "search": {**search, **bare}}


def _resolved(path: Path) -> Path:
    """Return the real path; the path itself where it cannot be that of a file."""
    try:
        return path.resolve()
    except (OSError, ValueError, RuntimeError):
        return path


def load(path: str | Path, overrides: Iterable[str] = ()) -> Experiment:
    """Return an experiment from a YAML file and key=value overrides.

    `base: OTHER.yaml` (relative to the file, or base=OTHER.yaml among the overrides, relative to
    here) names the file whose keys this one changes.
    """
    return from_dict(merge_layers(layers_of_experiment(path, overrides)))


def layers_of_experiment(path: str | Path, overrides: Iterable[str] = ()) -> list[Layer]:
    """Return what the files and each override set, the lowest first."""
    overrides = list(overrides)
    given = [o.partition("=")[2] for o in overrides if o.startswith("base=")]
    found = read_layers(Path(path), Path(given[-1]) if given else None)
    return found + [_override(o) for o in overrides if not o.startswith("base=")]


def merge_layers(found: list[Layer]) -> dict[str, Any]:
    """Return the settings of all layers together."""
    tree: dict[str, Any] = {}
    for label, layer in found:
        tree = _overridden(tree, layer) if label == "override" else merged(tree, layer)
    return tree


def from_text(
    text: str, overrides: Iterable[str] = (), where: str = "the experiment"
) -> Experiment:
    """Return an experiment from YAML text and key=value overrides."""
    return from_dict(
        merge_layers([(where, tree_of(text, where)), *(_override(o) for o in overrides)])
    )


def from_dict(tree: dict[str, Any]) -> Experiment:
    """Return a checked experiment out of plain data."""
    tree = plain(tree, "")
    if not isinstance(tree, dict):
        raise UserError(f"the experiment is {shown(tree)}; it must be a mapping of its sections")
    refuse_old_spellings(tree)
    if MATRIX in tree:
        raise UserError(
            "these settings are a matrix of experiments, which `sweep` runs; name a file without "
            f"the section {MATRIX}"
        )
    if odd := [key for key in tree if key not in Experiment.model_fields]:
        raise unknown(odd[0], list(Experiment.model_fields))
    return Experiment(**tree)


def stored_settings(path: Path) -> dict[str, Any]:
    """Return what the settings file of a run folder sets, old spellings brought up to date.

    Raises:
        UserError: The file cannot be read, or holds no mapping.
    """
    return upgraded(tree_of(read_yaml_text(path), path_in_words(path)))


def from_stored(text: str, where: str) -> Experiment:
    """Return the experiment of a run folder, old spellings included."""
    return from_dict(upgraded(tree_of(text, where)))


def _override(text: str) -> Layer:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"override {shown(text)} is not key=value, as in optim.lr=1e-4")
    return "override", {key: parse_yaml(value, f"override {path_in_words(Path(text))}")}


def _overridden(tree: dict[str, Any], override: dict[str, Any]) -> dict[str, Any]:
    (key, value), *_ = override.items()
    bare = isinstance(value, str) and key in ("search.method", "search.scheduler")
    if bare:
        search = tree.get("search")
        old = search.get(key.split(".")[1]) if isinstance(search, dict) else None
        same = isinstance(old, dict) and old.get("name") == value
        value = old if same else {"name": value}
    put(tree, key, value)
    return written_out(tree)


def origins(found: list[Layer]) -> dict[str, str]:
    """Return which layer set each dotted key last."""
    set_by: dict[str, str] = {}
    tree: dict[str, Any] = {}
    for label, layer in found:
        before = leaves(tree)
        tree = _overridden(tree, layer) if label == "override" else merged(tree, layer)
        after = leaves(tree)
        said = leaves(layer)
        for key, value in after.items():
            told = any(key == k or key.startswith(f"{k}.") for k in said)
            if told or before.get(key, before) != value:
                set_by[key] = label
        set_by = {key: label for key, label in set_by.items() if key in after}
    return set_by
