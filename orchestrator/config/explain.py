"""Explains settings to people and to editors, from the schema alone.

`show` prints an experiment with what set each leaf, `explain` says what a key means,
`json_schema` is for editors, `reference` renders docs/settings.md.
"""

from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from aml.errors import UserError
from aml.masking import PRESETS
from aml.models import MODELS
from aml.schema import Leaf, leaves_of, shown, unknown
from orchestrator.config.loader import (
    MATRIX,
    from_dict,
    layers_of_experiment,
    merge_layers,
    origins,
)
from orchestrator.config.matrix import MatrixConfig
from orchestrator.config.methods import METHODS, SCHEDULERS
from orchestrator.config.schema import Experiment
from orchestrator.config.yaml_text import write_yaml

MODEL_NAME = "model.name"


def every_leaf() -> list[Leaf]:
    """Return all settings in the order they are written, the options of every model too.

    Those of a matrix of experiments, which an experiment itself does not hold, come last.
    """
    found: list[Leaf] = []
    for leaf in leaves_of(Experiment):
        if leaf.key != "model":
            found.append(leaf)
            continue
        found.append(_model_name())
        for name, options in MODELS.items():
            found += leaves_of(options, "model.", name)
    return [*found, *leaves_of(MatrixConfig, f"{MATRIX}.")]


def defaults_of(experiment: Experiment) -> dict[str, Any]:
    """Return the default of each setting that an experiment has, by its dotted key."""
    name = experiment.leaves()["model.name"]
    search = experiment.search
    chosen = ("", name, search.method.name, search.scheduler.name)
    every = [*leaves_of(Experiment)]
    if name in MODELS:  # options of a model of one's own have no known defaults
        every += leaves_of(MODELS[name], "model.", name)
    found: dict[str, Any] = {}
    for leaf in every:
        if leaf.within in chosen or leaf.key.endswith(".name"):
            found.setdefault(leaf.key, leaf.default)  # the first of several sections is the default
    return found


def explain_settings(key: str | None = None) -> str:
    """Return what a setting means; of a section, or of nothing, a table of one line a setting."""
    every = every_leaf()
    if not key:
        return _table(every)
    if exact := [leaf for leaf in every if leaf.key == key]:
        return "\n\n".join(map(_entry, exact))
    if inside := [leaf for leaf in every if leaf.key.startswith(f"{key}.")]:
        return _table(inside)
    raise _near(key, every)


def show_settings(path: str | Path, overrides: list[str]) -> str:
    """Return the resolved settings as YAML, each with what set it as a comment."""
    found = layers_of_experiment(path, overrides)
    experiment = from_dict(merge_layers(found))
    set_by = origins(found)
    for name in PRESETS[experiment.aml.preset]:
        set_by.setdefault(f"aml.{name}", f"preset {experiment.aml.preset}")
    lines: list[str] = []
    _write(experiment.to_dict(), "", set_by, lines)
    return "\n".join(lines)


def json_schema() -> dict[str, Any]:
    """Return a JSON Schema of experiment files, for editors."""
    schema = Experiment.model_json_schema()
    schema |= {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Experiment",
        "description": "An experiment of amlris.",
    }
    schema["properties"]["base"] = {
        "type": "string",
        "description": "The file whose keys this one changes, relative to it.",
    }
    schema["properties"][MATRIX] = MatrixConfig.model_json_schema()
    schema["required"] = []  # a base may set them
    definitions = schema["$defs"]
    search = definitions["SearchConfig"]["properties"]
    for key, names in (
        ("method", [*METHODS]),
        ("scheduler", [*SCHEDULERS]),
    ):
        search[key] = {"anyOf": [{"enum": names}, search[key]]}
    models = []
    for name, options in MODELS.items():
        one = options.model_json_schema()
        one["properties"] = {"name": {"const": name}, **one["properties"]}
        models.append(one)
    own = {
        "type": "object",
        "properties": {"name": {"type": "string", "pattern": ":"}},
        "required": ["name"],
    }
    schema["properties"]["model"] = {
        "description": "The model: its name, and its options.",
        "anyOf": [*models, own],
    }
    return schema


def settings_reference() -> str:
    """Return the settings reference, docs/settings.md, as Markdown."""
    lines = [
        "# Settings",
        "",
        "Generated from the schema: `python -m orchestrator config reference > docs/settings.md`.",
        "",
        "An experiment is a YAML file of these keys; `key=value` on the command line sets one, as",
        "`optim.lr=1e-4`. `base: OTHER.yaml` names a file whose keys this one changes.",
        "`python -m orchestrator config show EXPERIMENT` prints what an experiment resolves to,",
        "`config explain KEY` one of the entries below.",
    ]
    section = None
    for leaf in every_leaf():
        here = _heading(leaf)
        if here != section:
            lines += ["", f"## {here}", "", "| Key | Meaning | Values | Unit | Default |"]
            lines += ["|---|---|---|---|---|"]
            section = here
        cells = [
            f"`{leaf.key}`",
            leaf.info.description or "",
            leaf.wanted,
            leaf.unit,
            _default(leaf),
        ]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _model_name() -> Leaf:
    names = Literal[tuple(MODELS)]  # type: ignore[valid-type]

    class Named(BaseModel):
        name: names = "small"  # type: ignore[valid-type]

    info = Named.model_fields["name"]
    info.description = (
        "Which model is trained; package.module:ClassName or path/file.py:ClassName names a "
        "class of "
        "your own."
    )
    return Leaf(MODEL_NAME, info)


def _near(key: str, every: list[Leaf]) -> UserError:
    section = key.rpartition(".")[0]
    among = sorted(
        {leaf.key.rpartition(".")[2] for leaf in every if leaf.key.startswith(f"{section}.")}
    )
    if among:
        return unknown(key, among)
    ends = {leaf.key.rpartition(".")[2]: leaf.key for leaf in reversed(every)}
    if get_close_matches(key[:80], list(Experiment.model_fields), n=1):
        return unknown(key, list(Experiment.model_fields))
    if "." not in key and (found := get_close_matches(key[:80], list(ends), n=1)):
        return UserError(
            f"unknown key {shown(key)}; did you mean {ends[found[0]]}? `config explain` lists "
            "all keys"
        )
    return unknown(key.split(".")[0], list(Experiment.model_fields))


def _heading(leaf: Leaf) -> str:
    section = leaf.key.rpartition(".")[0] or "Top level"
    return f"{section} ({leaf.within})" if leaf.within else section


def _default(leaf: Leaf) -> str:
    return "required" if leaf.default is PydanticUndefined else f"`{_flow(leaf.default)}`"


def _table(found: list[Leaf]) -> str:
    keys = [f"{leaf.key} ({leaf.within})" if leaf.within else leaf.key for leaf in found]
    width = max(map(len, keys))
    return "\n".join(
        f"{key:{width}}  {_default(leaf).strip('`'):14}  {leaf.info.description}"
        for key, leaf in zip(keys, found, strict=True)
    )


def _entry(leaf: Leaf) -> str:
    lines = [f"{leaf.key}{f' (of {leaf.within})' if leaf.within else ''}: {leaf.info.description}"]
    lines.append(f"  values   {leaf.wanted}")
    if leaf.unit:
        lines.append(f"  unit     {leaf.unit}")
    lines.append(f"  default  {_default(leaf).strip('`')}")
    return "\n".join(lines)


def _flow(value: Any) -> str:
    text = write_yaml(value, on_one_line=True)
    return text.removesuffix("\n").removesuffix("\n...")


def _write(tree: dict[str, Any], prefix: str, set_by: dict[str, str], lines: list[str]) -> None:
    indent = "  " * prefix.count(".")
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value and name != "search.space":
            lines.append(f"{indent}{key}:")
            _write(value, f"{name}.", set_by, lines)
        else:
            lines.append(f"{indent}{key}: {_flow(value)}  # {set_by.get(name, 'default')}")
