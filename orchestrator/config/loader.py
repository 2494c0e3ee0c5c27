"""Plain data to dataclasses, strictly: YAML as people mean it, files built on others, types checked and never guessed.

Nothing here knows what an experiment is.
"""

import functools
import re
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml

from aml.errors import UserError


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-3 as text and `off` as false; here they are the number and the word everybody means."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|True|false|False)$"), list("tTfF")
)

_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*)(\.[\d_]*)?([eE][-+]?\d+)$"),
    list("-+0123456789"),
)


def parsed(text: str, where: str):
    """What YAML text holds."""
    try:
        return yaml.load(text, _Loader)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as error:
        raise UserError(
            f"{where} is not valid YAML: {' '.join(str(error).split())}; correct it"
        ) from None


def with_base(path: Path, top, base: Path | None = None, above: tuple = ()) -> dict:
    """The file's keys on top of those of `base`, or of the base it names.   top: as in `tree_of`"""
    try:
        tree = tree_of(path.read_text("utf-8"), str(path), top)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); give the path of an experiment's YAML file"
        ) from None
    named = tree.pop("base", None)
    if base is None and named is None:
        return tree
    base = base or path.parent / str(named)
    if base.resolve() in above:
        raise UserError(
            f"{path} names the base {named}, which is built on it in turn; remove one of the two"
        )
    return _merged(with_base(base, top, above=(*above, path.resolve())), tree)


def _merged(base: dict, top: dict) -> dict:
    """Sections merge key by key; a search space, lists and a model of another name replace what was there."""
    found = dict(base)
    for key, value in top.items():
        old = base.get(key)
        whole = (
            key == "space"
            or not (isinstance(old, dict) and isinstance(value, dict))
            or ("name" in value and value["name"] != old.get("name"))
        )
        found[key] = value if whole else _merged(old, value)
    return found


def tree_of(text: str, where: str, top) -> dict:
    """The mapping that YAML text holds.   top: the dataclass whose fields are its keys"""
    tree = parsed(text, where)
    if not isinstance(tree, dict):
        raise UserError(
            f"{where} holds {type(tree).__name__}, not a mapping; its top-level keys are {', '.join(names(top))}"
        )
    return tree


def plain(tree, where: str) -> dict:
    if not isinstance(tree, dict):
        raise UserError(f"{where} is {tree!r}; it must be a mapping")
    return tree


def build(cls, tree: dict, where: str):
    """A dataclass out of a mapping, nested ones too; types are checked, never guessed."""
    hints, values = _hints(cls), {}
    for f in fields(cls):
        if f.name in tree:
            values[f.name] = _value(hints[f.name], tree[f.name], f"{where}{f.name}")
        elif f.default is f.default_factory:  # both MISSING: no default
            raise UserError(f"{where}{f.name} is missing; set it")
    return cls(**values)


@functools.cache
def _hints(cls) -> dict:
    """Types of a dataclass's fields; resolving them takes longer than all the checking, and a sweep builds thousands of experiments."""
    return get_type_hints(cls)


def _value(hint, value, where: str):
    section = next((t for t in (hint, *get_args(hint)) if is_dataclass(t)), None)
    if section and isinstance(value, dict):
        check_keys(section, value, f"{where}.")
        return build(section, value, f"{where}.")
    kinds = [_generic(t) or t for t in ([hint] if _generic(hint) else get_args(hint))]
    kinds = [t for t in kinds if isinstance(t, type)] or [hint]
    if section and not isinstance(value, section) and not (value is None and type(None) in kinds):
        raise UserError(
            f"{where} is {value!r}; it must be a mapping of {', '.join(names(section))}"
        )
    if float in kinds and isinstance(value, int) and not isinstance(value, bool):
        return float(value) if int not in kinds else value
    if isinstance(value, bool) and bool not in kinds or not isinstance(value, tuple(kinds)):
        wanted = " or ".join(
            "null"
            if k is type(None)
            else {
                "str": "text",
                "int": "a whole number",
                "float": "a number",
                "list": "a list",
            }.get(k.__name__, k.__name__)
            for k in kinds
        )
        raise UserError(f"{where} is {value!r}; it must be {wanted}")
    return value


def _generic(hint):
    """list[str] -> list; dict[str, Any] -> dict; None for anything else."""
    origin = getattr(hint, "__origin__", None)
    return origin if origin in (list, dict) else None


def check_keys(cls, tree, where: str) -> None:
    known = names(cls)
    for key in tree:
        if key not in known:
            near = get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {where}{near[0]}?" if near else ";"
            raise UserError(f"unknown key {where}{key}{hint} known here: {', '.join(known)}")


def leaves(tree: dict, prefix: str) -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat |= (
            leaves(value, f"{name}.")
            if isinstance(value, dict) and name != "search.space"
            else {name: value}
        )
    return flat


def put(tree: dict, dotted: str, value) -> None:
    *path, last = dotted.split(".")
    for part in path:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise UserError(f"override {dotted}: {part} is not a section; its keys cannot be set")
    tree[last] = value


def choice(name: str, value, known) -> None:
    if value not in known:
        near = get_close_matches(str(value), known, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(f"{name} is {value!r}{hint}; known: {', '.join(known)}")


def names(cls) -> list[str]:
    return [f.name for f in fields(cls)]
