"""Base class of the options of models, and the types they share."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import Field

from aml.schema import Settings, ShareBelowOne, Text, Wanted

WORDS = "words"
"""Names a random text encoder whose tokens are the words of the data set."""

Tokens = Annotated[int, Field(ge=3, le=4096)]

Weights = Annotated[bool | Text, Wanted("true, false or the path of a weights file")]

Fraction = ShareBelowOne


class Options(Settings):
    """Holds the options of one model."""

    section: ClassVar[str] = "model"

    name: ClassVar[str]
    built_by: ClassVar[str]
    """The model's class, as package.module:ClassName."""
    sources: ClassVar[tuple[str, ...]] = ("encoder", "joint", "prediction")
    """Where alignment can be read."""
    image_multiple: ClassVar[int] = 1
    """The side of an image must be a multiple of it."""
    fuses: ClassVar[bool] = False
    """Whether words are read inside the visual encoder."""
    drops: ClassVar[bool] = False
    """Whether the visual encoder can read some patches of an image alone."""
    of_parts: ClassVar[bool] = False
    """Whether the options decide on `image_multiple`, `drops` and whether the model can be had.

    The model's class then has `traits(options)`, which tells.
    """

    @classmethod
    def needs_lookup(cls, given: Mapping[str, Any]) -> bool:
        """Return whether `traits` must be asked, which imports torch and the libraries of parts.

        Args:
            given: Options by name; those that are not given have their defaults.
        """
        return cls.of_parts


class Traits(NamedTuple):
    """Facts of a model with its options, against which the settings of a run are checked."""

    name: str
    sources: tuple[str, ...]
    image_multiple: int
    fuses: bool
    drops: bool


def traits_of(options: Any, *, image_multiple: int, drops: bool) -> Traits:
    """Return the traits of a model of parts; `options` are its options or their class."""
    return Traits(options.name, options.sources, image_multiple, options.fuses, drops)
