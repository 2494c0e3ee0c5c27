"""Find a class that a setting names: `package.module:ClassName` or `path/file.py:ClassName`.

Settings take such a name for a model (`model.name`) and for a masking method (`aml.mode`). Loading
a class runs its module, so a name is loaded only where an experiment or the person says so; a name
read from a checkpoint has to be allowed first, see `check_allowed`.

A relative path is looked up in the current folder and then in the folders of `sys.path`, to which
Ray adds the driver's current folder in every worker. The name itself stays as it was written, so
that a run has the same name wherever the project folder lies.

Nothing here imports torch.
"""

import hashlib
import importlib
import os
import re
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from aml.errors import UserError
from aml.files import home_expanded

ALLOWED_VARIABLE = "AMLRIS_ALLOW_CLASSES"
"""Environment variable: names of own classes that checkpoints may load, separated by commas."""

OWN_NAME = re.compile(r"[\w./~-]{1,500}:[A-Za-z_]\w{0,100}")

FORMS = "package.module:ClassName or path/file.py:ClassName"

_FILES: dict[tuple[Path, str], ModuleType] = {}
"""Modules made from files, by path and digest of their text.

They are kept here and not in `sys.modules`: Ray then sends their classes to a worker by value, and
the worker needs no file of the driver's to receive a model.
"""

_ALLOWED: set[str] = set()
"""Names that an experiment of this process asked for."""


def names_own_class(name: object) -> bool:
    """Return whether a setting's value names a class outside this project."""
    return isinstance(name, str) and bool(OWN_NAME.fullmatch(name))


def names_file(name: str) -> bool:
    """Return whether the name of an own class gives a file, not a module."""
    place = name.rpartition(":")[0]
    return "/" in place or place.endswith(".py")


def load_class(name: str, setting: str, base: type) -> type:
    """Return the class that a name stands for.

    Args:
        name: `package.module:ClassName`, or `path/file.py:ClassName`.
        setting: The setting's dotted key, which messages name.
        base: The class that it must be derived from.

    Raises:
        UserError: The file, the module or the class is missing, its module raises an exception, or
            the class is not derived from `base`.
    """
    place, _, class_name = name.rpartition(":")
    module = _module_of_file(find_file(name, setting), name, setting) if names_file(name) else None
    if module is None:
        module = _module(place, name, setting)
    found = getattr(module, class_name, None)
    if found is None:
        classes = sorted(
            key
            for key, value in vars(module).items()
            if isinstance(value, type) and issubclass(value, base) and value is not base
        )
        raise UserError(
            f"{setting} is {name}, but {place} has no {class_name}; "
            f"name a class that is there: {', '.join(classes) or f'it holds no {base.__name__}'}"
        )
    if not (isinstance(found, type) and issubclass(found, base)):
        raise UserError(
            f"{setting} is {name}, but {class_name} is not derived from "
            f"{base.__module__}.{base.__name__}; derive it from that class"
        )
    return found


def find_file(name: str, setting: str) -> Path:
    """Return the absolute path of the file in an own class's name; raise UserError for none."""
    place = home_expanded(name.rpartition(":")[0])
    folders = [Path.cwd(), *(Path(entry) for entry in sys.path)]
    for folder in folders:
        if (folder / place).is_file():
            return (folder / place).resolve()
    raise UserError(
        f"{setting} is {name}, but there is no file {folders[0] / place}; "
        "give its path from the current folder, or from /"
    )


def allow(name: str) -> None:
    """Let checkpoints of this process name the class `name`: an experiment names it too."""
    if names_own_class(name):
        _ALLOWED.add(name)


def check_allowed(name: str, checkpoint: object) -> None:
    """Refuse the own class that a checkpoint names unless somebody else names it as well.

    A checkpoint may come from anywhere, and loading a class runs its file. The name must be that of
    an experiment of this process (`allow`), or stand in AMLRIS_ALLOW_CLASSES.

    Args:
        name: The model's name in the checkpoint.
        checkpoint: The checkpoint's folder, which the message names.

    Raises:
        UserError: Nobody named this class.
    """
    named = {part.strip() for part in os.environ.get(ALLOWED_VARIABLE, "").split(",")}
    if names_own_class(name) and name not in _ALLOWED | named:
        raise UserError(
            f"checkpoint {checkpoint} has the model {name}, a class outside this project, and "
            f"loading it would run its file; if you trust it, set {ALLOWED_VARIABLE}={name}"
        )


def _module(place: str, name: str, setting: str) -> ModuleType:
    """Return an imported module; the current folder is searched last."""
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        missing = error.name or place
        if place == missing or place.startswith(f"{missing}."):
            raise UserError(
                f"{setting} is {name}, but there is no module {place}; install it, start where "
                "its package lies, or give path/file.py:ClassName"
            ) from None
        raise _failed(place, error, name, setting) from error
    except Exception as error:
        raise _failed(place, error, name, setting) from error


def _module_of_file(path: Path, name: str, setting: str) -> ModuleType:
    """Return the module made from a file, made anew when the file's text has changed."""
    key = path, hashlib.sha256(path.read_bytes()).hexdigest()
    if key in _FILES:
        return _FILES[key]
    spec = spec_from_file_location(f"{path.stem}_{key[1][:8]}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{setting} is {name}, but {path} is not a Python file; give a .py file")
    module = module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses look their module up while they are made
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise _failed(path, error, name, setting) from error
    finally:
        sys.modules.pop(module.__name__, None)
    _FILES[key] = module
    return module


def _failed(place: object, error: Exception, name: str, setting: str) -> UserError:
    line = ""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(place):
            line = f" in line {trace.tb_lineno}"
        trace = trace.tb_next
    what = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return UserError(
        f"{setting} is {name}, but importing {place} failed{line} with {what}; mend it"
    )
