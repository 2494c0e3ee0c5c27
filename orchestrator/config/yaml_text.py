"""YAML text and files, read within limits and as people mean them."""

import math
import os
import re
import stat
from pathlib import Path
from typing import Any

import yaml

from aml.errors import UserError
from aml.schema import shown

LARGEST_FILE = 2**20

DEEPEST, MOST_NODES = 32, 10_000
"""How deep YAML may nest, how many values it may hold (aliases count as what they stand for)."""

BIGGEST = 2**63
"""No setting is a whole number so large."""


class _Loader(yaml.SafeLoader):
    """Reads YAML as people mean it.

    YAML 1.1 reads 1e-3 as text, `off` as false, 010 as eight, 1:30 as ninety and 2026-01-01 as a
    date; here they are the number and the words that everybody means. A mapping's keys are text,
    each once.
    """

    yaml_implicit_resolvers = {
        first: [
            (tag, pattern)
            for tag, pattern in resolvers
            if tag.rpartition(":")[2] not in ("bool", "int", "float", "timestamp", "value")
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    yaml_constructors = {
        tag: construct
        for tag, construct in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in ("null", "bool", "int", "float", "str", "seq")
    }

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            line = f"line {key_node.start_mark.line + 1}"
            if not isinstance(key, str):
                raise UserError(f"the key {shown(key)} in {line} is not text; write it in quotes")
            if key in seen:
                raise UserError(f"the key {shown(key)} stands twice, again in {line}; remove one")
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def _construct_map(loader: _Loader, node):
    found: dict[str, Any] = {}
    yield found
    found.update(loader.construct_mapping(node))


_Loader.add_constructor("tag:yaml.org,2002:map", _construct_map)

_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|True|false|False)$"), list("tTfF")
)

_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?(0|[1-9][0-9_]*)$"), list("-+0123456789")
)

_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?"
        r"|[0-9][0-9_]*[eE][-+]?[0-9]+|\.(inf|Inf|INF))$|^\.(nan|NaN|NAN)$"
    ),
    list("-+.0123456789"),
)


class _Dumper(yaml.SafeDumper):
    """Writes YAML that `_Loader` and readers of YAML 1.1 read alike: what differs is quoted."""

    yaml_implicit_resolvers = {
        first: [
            *yaml.SafeDumper.yaml_implicit_resolvers.get(first, []),
            *_Loader.yaml_implicit_resolvers.get(first, []),
        ]
        for first in {*yaml.SafeDumper.yaml_implicit_resolvers, *_Loader.yaml_implicit_resolvers}
    }

    def ignore_aliases(self, data):
        """Write every value out: an alias helps no reader of settings."""
        return True

    def represent_str(self, data):
        """Quote text so that every character that is not printed is escaped."""
        style = None if data.isprintable() else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Dumper.add_representer(str, _Dumper.represent_str)


def write_yaml(value: Any, *, on_one_line: bool = False) -> str:
    """Return plain data as YAML text that `parse_yaml` reads back as the same."""
    width = 10**6 if on_one_line else None
    return yaml.dump(
        value,
        Dumper=_Dumper,
        default_flow_style=on_one_line,
        width=width,
        sort_keys=False,
        allow_unicode=True,
    )


def parse_yaml(text: str, where: str) -> Any:
    """Return what YAML text holds.

    Args:
        text: The text.
        where: What holds it, for the sentence.

    Raises:
        UserError: It is no YAML, or nests too deep, or holds too much.
    """
    if len(text) > LARGEST_FILE:
        raise UserError(f"{where} is longer than {LARGEST_FILE} characters; give less")
    try:
        _measure(text, where)
        return yaml.load(text, _Loader)  # noqa: S506 (a SafeLoader)
    except UserError as error:
        raise UserError(
            str(error) if str(error).startswith(where) else f"{where}: {error}"
        ) from None
    except yaml.YAMLError as error:
        said = " ".join(str(error).split())[:300]
        raise UserError(f"{where} is not valid YAML: {said}; correct it") from None
    except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError) as error:
        said = " ".join(str(error).split())[:100]
        raise UserError(
            f"{where} holds a value that is not what it says: {said}; correct it"
        ) from None


def _measure(text: str, where: str) -> None:
    """Refuse YAML that nests too deep or stands for too much, before anything is made of it."""
    sizes: dict[str, int] = {}
    total = 0
    open_: list[tuple[str | None, int]] = []
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            total += sizes.get(str(event.anchor), 1)
        elif isinstance(event, yaml.NodeEvent):
            total += 1
            if isinstance(event, yaml.CollectionStartEvent):
                open_.append((event.anchor, total))
            elif event.anchor:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_.pop()
            if anchor:
                sizes[anchor] = total - before + 1
        if len(open_) > DEEPEST:
            raise UserError(f"{where} nests deeper than {DEEPEST} levels; no setting lies so deep")
        if total > MOST_NODES:
            raise UserError(
                f"{where} holds more than {MOST_NODES} values, aliases counted as what they stand "
                "for; shorten it"
            )


def plain(value: Any, where: str, depth: int = 0) -> Any:
    """Return a copy of plain data; refuse anything else in it.

    Args:
        value: Mappings with text as keys, lists, and scalars.
        where: The dotted key it was found at.
        depth: How many mappings and lists it lies in.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        if not value.isprintable() and any(0xD800 <= ord(c) <= 0xDFFF for c in value):
            raise UserError(
                f"{where} is {shown(value)}, which is no text that can be written; mend it"
            )
        return value
    if isinstance(value, int):
        if abs(value) >= BIGGEST:
            raise UserError(f"{where} is {shown(value)}, which is too large; give a smaller number")
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise UserError(f"{where} is {value}; it must be a finite number")
        return value
    if depth > DEEPEST:
        raise UserError(f"{where[:80]} nests deeper than {DEEPEST} levels; no setting lies so deep")
    if isinstance(value, (list, tuple)):
        return [plain(item, where, depth + 1) for item in value]
    if isinstance(value, dict):
        found = {}
        for key, item in value.items():
            place = where or "the experiment"
            if not isinstance(key, str):
                raise UserError(f"{place} has the key {shown(key)}; write keys as text")
            name = key if key.isprintable() else shown(key)[1:-1]
            found[key] = plain(item, f"{where}.{name}" if where else name, depth + 1)
        return found
    raise UserError(f"{where} is {shown(value)}; give text, a number, true, false, null or a list")


def read_yaml_text(path: Path) -> str:
    """Return the text of a settings file: a regular one, not too large, in UTF-8."""
    want = "give the path of an experiment's YAML file"
    try:
        kind = os.stat(path).st_mode
        if not stat.S_ISREG(kind):
            what = "a folder" if stat.S_ISDIR(kind) else "a device, a pipe or a socket"
            raise UserError(f"{path_in_words(path)} is {what}, not a file; {want}")
        with open(path, "rb") as file:
            content = file.read(LARGEST_FILE + 1)
    except UserError:  # which is a ValueError
        raise
    except OSError as error:
        raise UserError(
            f"{path_in_words(path)} cannot be read ({error.strerror}); {want}"
        ) from None
    except ValueError:
        raise UserError(f"{path_in_words(path)} cannot be the path of a file; {want}") from None
    if len(content) > LARGEST_FILE:
        raise UserError(f"{path_in_words(path)} is larger than {LARGEST_FILE} bytes; {want}")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path_in_words(path)} is not UTF-8; save it as UTF-8") from None


def path_in_words(path: Path) -> str:
    text = str(path)
    return text if text.isprintable() and 0 < len(text) <= 200 else shown(text)
