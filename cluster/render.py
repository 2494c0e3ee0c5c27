"""Print a file of this folder with ${NAME} replaced by values.env: python cluster/render.py FILE [NAME=VALUE ...]

`$NAME` without braces is left alone: it belongs to the shell. `!spec FILE` in YAML stands for the `spec` of another file.
"""

import re
import sys
from pathlib import Path

import yaml

HERE = Path(__file__).parent


def values(overrides: list[str] = ()) -> dict[str, str]:
    """values.env with NAME=VALUE on top. ValueError for a name that is not in it."""
    lines = [line for line in (HERE / "values.env").read_text("utf-8").splitlines() if line.strip() and not line.startswith("#")]
    found = dict(line.split("=", 1) for line in lines)
    for override in overrides:
        name, equals, value = override.partition("=")
        if not equals or name not in found:
            raise ValueError(f"{override!r} is not NAME=VALUE with a NAME of values.env; there: {', '.join(found)}")
        found[name] = value
    return found


def render(name: str, known: dict[str, str]) -> str:
    """The file's text with every ${NAME} replaced. ValueError for one that values.env lacks."""
    path = HERE / name
    if not path.is_file():
        files = sorted(str(p.relative_to(HERE)) for p in HERE.rglob("*") if p.suffix in (".yaml", ".sh"))
        raise ValueError(f"there is no {name} here; there are {', '.join(files)}")

    def value(match: re.Match) -> str:
        if match[1] not in known:
            raise ValueError(f"{name} asks for {match[1]}, which values.env lacks; add it there")
        return known[match[1]]

    text = re.sub(r"\$\{([A-Z][A-Z0-9_]*)\}", value, path.read_text("utf-8"))
    return _included(text, known, path.parent) if re.search(r": !spec \S", text) else text


def _included(text: str, known: dict[str, str], folder: Path) -> str:
    """The YAML with each `!spec FILE` replaced by that file's spec; comments are lost."""

    class Loader(yaml.SafeLoader):
        pass

    def spec(loader, node):
        return yaml.safe_load(render(str((folder / loader.construct_scalar(node)).relative_to(HERE)), known))["spec"]

    Loader.add_constructor("!spec", spec)
    return yaml.safe_dump_all(list(yaml.load_all(text, Loader)), sort_keys=False)  # noqa: S506 (a SafeLoader)


if __name__ == "__main__":
    try:
        print(render(sys.argv[1], values(sys.argv[2:])), end="")
    except IndexError:
        sys.exit(__doc__)
    except ValueError as problem:
        sys.exit(f"error: {problem}")
