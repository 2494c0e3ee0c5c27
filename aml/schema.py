"""Holds the base class of all settings, and says in one sentence what is wrong with a value.

A setting is a field of a class on `Settings`: its type has the bounds, `leaf` gives it a sentence
of meaning and a unit. Text is never taken for a number or a boolean, numbers are finite, and a key
that no class has is refused with the nearest one. What pydantic finds wrong becomes a `UserError`.

Nothing here imports torch: a command line checks its settings before it loads anything heavy.
"""

from collections.abc import Iterator
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Literal,
    NamedTuple,
    Self,
    Union,
    cast,
    get_args,
    get_origin,
)

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from aml.errors import UserError

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)

LONGEST = 80
"""Characters of a value that a sentence shows."""

Whole = Annotated[int, Field(ge=0, le=10**9)]

Count = Annotated[int, Field(ge=1, le=10**9)]

Width = Annotated[int, Field(ge=1, le=2**20)]

Layers = Annotated[int, Field(ge=1, le=1000)]

Epochs = Annotated[int, Field(ge=0, le=100_000)]

Seed = Annotated[int, Field(ge=0, lt=2**32)]

Share = Annotated[float, Field(ge=0, le=1)]

Threshold = Annotated[float, Field(gt=0, lt=1)]

Side = Annotated[int, Field(ge=1, le=16384)]
"""Side of a network image."""

Fit = Literal["square", "letterbox"]

ShareBelowOne = Annotated[float, Field(ge=0, lt=1)]

Positive = Annotated[float, Field(gt=0, le=1e9)]

NotNegative = Annotated[float, Field(ge=0, le=1e9)]

Text = Annotated[
    str, Field(min_length=1, max_length=4096, pattern=r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]+$")
]


class Wanted(NamedTuple):
    """Words for what a type admits, where its parts do not say it."""

    words: str


def leaf(meaning: str, default: Any = PydanticUndefined, *, unit: str = "") -> Any:
    """Return the field of a setting.

    Args:
        meaning: One plain sentence, shown by `config explain` and in the settings reference.
        default: The value where none is given; without one the setting must be given.
        unit: What a number counts, as seconds or pixels.
    """
    extra: Any = {"unit": unit} if unit else None
    return Field(default, description=meaning, json_schema_extra=extra)


class _Told(ModelMetaclass):
    """Makes a class raise `UserError` where pydantic would raise its own exception."""

    def __call__(cls, /, *args: Any, **values: Any) -> Any:
        try:
            return super().__call__(*args, **values)
        except ValidationError as error:
            raise told(error, cast(type[Settings], cls), values) from None


class Settings(BaseModel, metaclass=_Told):
    """Settings that belong together: frozen, strict, without unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=False
    )

    section: ClassVar[str] = ""
    """The dotted place of these settings in an experiment."""

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain data, nested ones too."""
        return self.model_dump()

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some settings replaced, checked again."""
        return type(self)(**{**dict(self), **changes})


def told(error: ValidationError, cls: type[Settings], given: dict) -> UserError:
    """Return the sentence for the first thing that pydantic found wrong.

    Args:
        error: What pydantic raised.
        cls: The class that was to be made.
        given: What it was given, by the names of its fields.
    """
    first = error.errors(include_url=False)[0]
    kind, context = first["type"], first.get("ctx", {})
    if isinstance(context.get("error"), UserError):
        return context["error"]
    place = _place(cls, first["loc"])
    if kind == "extra_forbidden":
        return unknown(place.dotted, list(place.owner.model_fields), within=place.tag)
    if kind == "missing":
        return UserError(f"{place.dotted} is missing; set it")
    if kind == "union_tag_not_found":
        return UserError(f"{place.dotted} has no name; give it one of {', '.join(place.tags)}")
    if kind == "union_tag_invalid":
        return not_among(f"{place.dotted}.name", context["tag"], place.tags)
    value = _found(given, place.path, first["input"])
    return wrong(place.dotted, value, place.info.annotation, place.info.metadata)


def wrong(name: str, value: Any, annotation: Any, metadata: Any = ()) -> UserError:
    """Return the sentence for a value that the type of the setting does not admit.

    Args:
        name: The setting's dotted key.
        value: What was given.
        annotation: The setting's type.
        metadata: The bounds that stand beside it.
    """
    known = choices(annotation)
    if known and isinstance(value, str):
        return not_among(name, value, known)
    if get_origin(annotation) is list and isinstance(value, list):
        among = choices(get_args(annotation)[0])
        if odd := [item for item in value if among and isinstance(item, str) and item not in among]:
            return not_among(name, odd[0], among)
    return UserError(f"{name} is {shown(value)}; it must be {wanted(annotation, metadata)}")


def not_among(name: str, value: Any, known: Any) -> UserError:
    """Return the sentence for a value that is none of the known ones, with the nearest of them."""
    near = get_close_matches(str(value)[:LONGEST], [str(k) for k in known], n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return UserError(f"{name} is {shown(value)}{hint}; known: {', '.join(map(str, known))}")


def unknown(dotted: str, known: list[str], within: str = "") -> UserError:
    """Return the sentence for a key that nobody knows, with the nearest one.

    Args:
        dotted: The key, with the section it was found in.
        known: The keys of that section.
        within: The name that decides which keys the section has; nothing where none does.
    """
    section, _, key = dotted.rpartition(".")
    place = f"{section}." if section else ""
    near = get_close_matches(key[:LONGEST], known, n=1)
    hint = f"; did you mean {place}{near[0]}?" if near else ";"
    of = f" with name {within}" if within else ""
    name = f"{place}{key}" if _plain_key(key) else shown(dotted)
    return UserError(f"unknown key {name}{of}{hint} known here: {', '.join(known)}")


def shown(value: Any) -> str:
    """Return a value as a sentence shows it: on one line and not too long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # digits beyond what Python writes out
        text = "a whole number of thousands of digits" if isinstance(value, int) else "too large"
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 4]} ..."


def wanted(annotation: Any, metadata: Any = ()) -> str:
    """Return in words what a type admits, as "a number in [0, 1] or null"."""
    if get_origin(annotation) is Annotated:
        annotation, *more = get_args(annotation)
        metadata = [*metadata, *more]
    if words := [m.words for m in metadata if isinstance(m, Wanted)]:
        return words[-1]
    if get_origin(annotation) in (Union, UnionType):
        return _either([wanted(part) for part in get_args(annotation)])
    if annotation in (None, NoneType):
        return "null"
    if get_origin(annotation) is Literal:
        return _either([str(value) for value in get_args(annotation)])
    if get_origin(annotation) is list:
        least = "at least one " if _bounds(metadata).get("min_length") else ""
        return f"a list of {least}({wanted(*get_args(annotation))})"
    if annotation is bool:
        return "true or false"
    if annotation in (int, float):
        kind = "a whole number" if annotation is int else "a number"
        return f"{kind}{_between(_bounds(metadata))}"
    if annotation is str:
        return "text on one line" if _bounds(metadata).get("max_length") else "text"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"a mapping of {', '.join(annotation.model_fields)}"
    return "a mapping"


def choices(annotation: Any) -> list[str]:
    """Return the words that a type is limited to; nothing where it also admits something else."""
    if get_origin(annotation) is Annotated:
        return choices(get_args(annotation)[0])
    parts = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else [annotation]
    words: list[str] = []
    for part in parts:
        if get_origin(part) is not Literal:
            return []
        words += [value for value in get_args(part) if isinstance(value, str)]
    return words


def nearest(word: str, known: Any) -> str:
    """Return " (did you mean X?)" for the nearest known word; nothing where none is near."""
    near = get_close_matches(word[:LONGEST], list(known), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


class Leaf(NamedTuple):
    """One setting."""

    key: str
    """Its dotted key."""
    info: FieldInfo
    within: str = ""
    """The name that a section must have for this setting to be there, as asha or small."""

    @property
    def wanted(self) -> str:
        """Return what it admits, in words."""
        return wanted(self.info.annotation, self.info.metadata)

    @property
    def unit(self) -> str:
        """Return what its number counts."""
        extra = self.info.json_schema_extra
        return str(extra.get("unit", "")) if isinstance(extra, dict) else ""

    @property
    def default(self) -> Any:
        """Return the value where none is given; pydantic's mark of absence where one must be."""
        return self.info.get_default(call_default_factory=True)

    def check(self, value: Any, name: str = "") -> Any:
        """Return the value as the setting would hold it; raise UserError where it may not.

        `name` stands for the key in the sentence.
        """
        try:
            return self._adapter().validate_python(value)
        except ValidationError as error:
            first = error.errors(include_url=False)[0].get("ctx", {}).get("error")
            if isinstance(first, UserError):
                raise first from None
            problem = wrong(name or self.key, value, self.info.annotation, self.info.metadata)
        raise problem

    def _adapter(self) -> TypeAdapter:
        found = _ADAPTERS.get(id(self.info))
        if found is None:
            kind: Any = self.info.annotation
            if self.info.metadata:
                kind = Annotated[(kind, *self.info.metadata)]
            config = ConfigDict(strict=True, allow_inf_nan=False)
            found = _ADAPTERS[id(self.info)] = TypeAdapter(kind, config=config)
        return found


_ADAPTERS: dict[int, TypeAdapter] = {}


def leaves_of(cls: type[Settings], prefix: str = "", within: str = "") -> Iterator[Leaf]:
    """Yield every setting of a class, nested ones too, in the order they are written."""
    for name, info in cls.model_fields.items():
        key = f"{prefix}{name}"
        sections = sections_in(info.annotation)
        if not sections:
            yield Leaf(key, info, within)
        for section in sections:
            tag = section.model_fields["name"].default if len(sections) > 1 else within
            yield from leaves_of(section, f"{key}.", tag)


def sections_in(annotation: Any) -> list[type[Settings]]:
    """Return the classes of settings that a type names."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return [annotation]
    return [section for part in get_args(annotation) for section in sections_in(part)]


class _Place(NamedTuple):
    """Place in the settings: the dotted key, the class that owns the field, and the field."""

    dotted: str
    path: list[str]
    owner: type[Settings]
    info: FieldInfo
    tag: str
    tags: list[str]


def _place(cls: type[Settings], loc: tuple) -> _Place:
    """Follow pydantic's path, in which the branches of unions are steps too."""
    owner, info, tag, path, offered = cls, FieldInfo(annotation=cls), "", [], [cls]
    for part in loc:
        if not isinstance(part, str) or not offered:
            break
        if len(offered) > 1:
            owner = next((o for o in offered if o.model_fields["name"].default == part), offered[0])
            offered, tag = [owner], str(part)
            continue
        owner = offered[0]
        path.append(part)
        if part not in owner.model_fields:
            break
        info = owner.model_fields[part]
        offered = sections_in(info.annotation)
        tag = tag if not offered else ""
    tags = [o.model_fields["name"].default for o in offered] if len(offered) > 1 else []
    dotted = ".".join([*([cls.section] if cls.section else []), *path])
    return _Place(dotted or cls.__name__, path, owner, info, tag, tags)


def _found(given: Any, path: list[str], otherwise: Any) -> Any:
    """Return what lies at a path of nested mappings."""
    for key in path:
        if isinstance(given, BaseModel):
            given = dict(given)
        if not isinstance(given, dict) or key not in given:
            return otherwise
        given = given[key]
    return given


def _bounds(metadata: Any) -> dict[str, Any]:
    """Return ge, gt, le, lt, min_length and max_length of a type."""
    found: dict[str, Any] = {}
    for item in metadata:
        if isinstance(item, FieldInfo):
            found |= _bounds(item.metadata)
            continue
        for name in ("ge", "gt", "le", "lt", "min_length", "max_length"):
            if getattr(item, name, None) is not None:
                found[name] = getattr(item, name)
    return found


def _between(bounds: dict[str, Any]) -> str:
    """Return bounds in words."""
    low = bounds.get("ge", bounds.get("gt"))
    high = bounds.get("le", bounds.get("lt"))
    if low is None or high is None:
        return ""
    opens, closes = "[" if "ge" in bounds else "(", "]" if "le" in bounds else ")"
    return f" in {opens}{_number(low)}, {_number(high)}{closes}"


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def _either(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _plain_key(key: str) -> bool:
    return key.isprintable() and 0 < len(key) <= LONGEST
