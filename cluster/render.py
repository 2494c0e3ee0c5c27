"""Print a file of this folder with each ${NAME} replaced by its value of values.env.

python cluster/render.py FILE [NAME=VALUE ...]

`$NAME` without braces is left alone: it belongs to the shell. `!spec FILE` in YAML stands for the
`spec` of another file. A value may name others.
"""

import re
import sys
from collections.abc import Iterable
from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
NAME = re.compile(r"\$\{([A-Z][A-Z0-9_]*)\}")
FILES = (
    "aws.yaml",
    *sorted(f"kubernetes/{path.name}" for path in (HERE / "kubernetes").glob("*.yaml")),
    "slurm.sh",
)


def values(overrides: Iterable[str] = ()) -> dict[str, str]:
    """Return the values of values.env, some of them replaced by NAME=VALUE.

    Raises:
        ValueError: A name is not in values.env, or is given an empty value where it has one there.
    """
    lines = [
        line
        for line in (HERE / "values.env").read_text("utf-8").splitlines()
        if line.strip() and not line.startswith("#")
    ]
    found = dict(line.split("=", 1) for line in lines)
    for override in overrides:
        name, equals, value = override.partition("=")
        if not equals or name not in found:
            raise ValueError(
                f"{override!r} is not NAME=VALUE with a NAME of values.env; "
                f"there: {', '.join(found)}"
            )
        if found[name] and not value:
            raise ValueError(
                f"{name} is given as nothing, where values.env has {found[name]!r}; give a value, "
                f"or leave {override!r} away"
            )
        found[name] = value
    return {
        name: NAME.sub(lambda match: found.get(match[1], match[0]), value)
        for name, value in found.items()
    }


def check_read(file: str, overrides: list[str]) -> None:
    """Check that the file reads every NAME=VALUE given.

    A file also reads what the files that it names by `!spec` read, and what its values name.

    Raises:
        ValueError: The file does not read one of them.
    """
    text = (HERE / named(file)).read_text("utf-8")
    asked = dict(override.split("=", 1) for override in overrides)
    text += "".join(
        (HERE / named(file)).with_name(other).read_text("utf-8")
        for other in re.findall(r": !spec (\S+)", text)
    )
    lines = (HERE / "values.env").read_text("utf-8").splitlines()
    read = set(NAME.findall(text))
    read |= {
        name
        for line in lines
        if line.partition("=")[0] in read - asked.keys()
        for name in NAME.findall(line)
    }
    if unread := [name for name in asked if name not in read]:
        raise ValueError(
            f"{named(file)} does not read {unread[0]}; it reads {', '.join(sorted(read))}"
        )


def render(file: str, known: dict[str, str]) -> str:
    """Return the file's text with every ${NAME} replaced.

    Args:
        file: Name of the file in this folder, or its path.
        known: Values by name.

    Raises:
        ValueError: The file is not filled in here, asks for a name without a value, or is no
            valid YAML with these values.
    """
    name = named(file)

    def value(match: re.Match) -> str:
        if match[1] not in known:
            raise ValueError(f"{name} asks for {match[1]}, which values.env lacks; add it there")
        return known[match[1]]

    text = NAME.sub(value, (HERE / name).read_text("utf-8"))
    if not name.endswith(".yaml"):
        return text
    try:
        documents = list(yaml.load_all(text, _loader(known, name)))  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as problem:
        raise ValueError(
            f"{name} is no YAML with these values: {' '.join(str(problem).split())}"
        ) from None
    return (
        yaml.safe_dump_all(documents, sort_keys=False) if re.search(r": !spec \S", text) else text
    )


def named(file: str) -> str:
    """Return the one of FILES that a name in this folder or a path means.

    Raises:
        ValueError: It means none of them.
    """
    for path in (HERE / file, Path(file).resolve()):
        if path.is_relative_to(HERE) and (name := path.relative_to(HERE).as_posix()) in FILES:
            return name
    raise ValueError(
        f"{file} is not filled in here; there are {', '.join(FILES)}, and docker compose fills in "
        "compose.yaml"
    )


def _loader(known: dict[str, str], name: str) -> type:
    """Return a YAML loader for which `!spec FILE`, beside the file `name`, is that file's spec."""

    class Loader(yaml.SafeLoader):
        pass

    def spec(loader, node):
        return yaml.safe_load(
            render(str((HERE / name).with_name(loader.construct_scalar(node))), known)
        )["spec"]

    Loader.add_constructor("!spec", spec)
    return Loader


if __name__ == "__main__":
    try:
        text = render(sys.argv[1], values(sys.argv[2:]))
        check_read(sys.argv[1], sys.argv[2:])
        print(text, end="")
    except IndexError:
        sys.exit(__doc__)
    except ValueError as problem:
        sys.exit(f"error: {problem}")
