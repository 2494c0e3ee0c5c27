"""Options of the models, and what is known of a model before it is built.

The classes that compute are in aml.models; nothing here imports torch.
"""

from typing import Any

from aml.errors import UserError
from aml.models.options.base import WORDS as WORDS, Options as Options
from aml.models.options.compose import ComposeOptions as ComposeOptions
from aml.models.options.networks import (
    CarisOptions as CarisOptions,
    ClipSegOptions as ClipSegOptions,
    DetrisOptions as DetrisOptions,
    LavtOptions as LavtOptions,
    SmallOptions as SmallOptions,
)
from aml.models.options.sam3 import Sam3Options as Sam3Options
from aml.own_classes import names_own_class
from aml.schema import not_among, shown

MODELS: dict[str, type[Options]] = {
    cls.name: cls
    for cls in (
        SmallOptions,
        ComposeOptions,
        CarisOptions,
        LavtOptions,
        DetrisOptions,
        ClipSegOptions,
        Sam3Options,
    )
}


def options_class(name: Any) -> type[Options]:
    """Return the class of a registered model's options; name the nearest for one that is not."""
    if not isinstance(name, str) or name not in MODELS:
        raise not_among("model.name", name, [*MODELS, "package.module:ClassName"])
    return MODELS[name]


def options(name: str, **given) -> Options:
    """Return the options of a registered model, checked."""
    return options_class(name)(**given)


def resolved(given: Any) -> dict[str, Any]:
    """Return a model's name and all its options out of what was given.

    The options of a class outside this project stay as they were given: scalars and lists of them.
    """
    if given is None:
        given = {}
    if not isinstance(given, dict):
        raise UserError(
            f"model is {shown(given)}; it must be a mapping of a name and that model's options"
        )
    rest = dict(given)
    name = rest.pop("name", "small")
    if odd := [key for key in rest if not _may_name_option(key)]:
        raise UserError(f"model has the key {shown(odd[0])}; it must be the name of an option")
    if names_own_class(name):
        for key, value in rest.items():
            if not all(_scalar(item) for item in (value if isinstance(value, list) else [value])):
                raise UserError(
                    f"model.{key} is {shown(value)}; options of {name} are numbers, text, true, "
                    "false, null or lists of these"
                )
        return {"name": name, **rest}
    cls = options_class(name)
    return {"name": name, **cls(**rest).to_dict()}


def _may_name_option(key: Any) -> bool:
    """Return whether an option may have this name, beside the other arguments of a model."""
    return isinstance(key, str) and key.isidentifier() and key not in ("vocabulary", "assets")


def _scalar(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))
