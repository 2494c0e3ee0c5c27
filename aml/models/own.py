"""Options of models outside this project: a dataclass or a pydantic class beside the model."""

import dataclasses
from typing import Any, get_type_hints

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from aml.errors import UserError
from aml.models.base import Model
from aml.schema import Leaf, Settings, shown, unknown


def own_options(name: str, cls: type[Model], given: dict[str, Any]) -> Any:
    """Return the options of a model of one's own, checked.

    Args:
        name: The model's name in the settings.
        cls: Its class; `cls.Options` is a dataclass or a pydantic class.
        given: The settings `model.*` without the name.

    Raises:
        UserError: The class has no options class, knows no such option, or refuses a value.
    """
    kind = cls.Options
    fields = _fields(name, kind)
    for key in given:
        if key not in fields:
            raise unknown(f"model.{key}", list(fields), within=name)
    try:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind(**given)
        for key, value in given.items():
            Leaf(f"model.{key}", fields[key]).check(value)
        return kind(**given)  # type: ignore[misc]  # a dataclass, as _fields has seen
    except UserError:
        raise
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(["model", *map(str, first["loc"])])
        raise UserError(f"{key} is {shown(first['input'])}: {first['msg']}; change it") from None
    except (TypeError, ValueError) as error:
        what = " ".join(str(error).split())[:300]
        raise UserError(f"the options of model {name} are refused: {what}; change them") from None


def options_to_dict(options: Any) -> dict[str, Any]:
    """Return options as plain data that a checkpoint keeps."""
    if isinstance(options, Settings):
        return options.to_dict()
    if isinstance(options, BaseModel):
        return options.model_dump(mode="json")
    return dataclasses.asdict(options)


def _fields(name: str, kind: Any) -> dict[str, FieldInfo]:
    """Return the fields of a class of options by their names."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return dict(kind.model_fields)
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        raise UserError(
            f"model {name} has no options; give its class an attribute Options, a dataclass or a "
            "pydantic class whose fields are the settings model.*"
        )
    # annotations may be text, and the module of a file is not in sys.modules
    known = getattr(kind.__init__, "__globals__", {})
    hints = get_type_hints(kind, known, include_extras=True)
    return {
        field.name: FieldInfo.from_annotation(hints[field.name])
        for field in dataclasses.fields(kind)
        if field.init
    }
