"""Build a model by its name: one of this project, or a class of one's own."""

from typing import Any

from aml.models.base import Model, find_class
from aml.models.options import MODELS, options
from aml.models.own import options_to_dict, own_options
from aml.own_classes import allow


def build_model(
    name: str, *, vocabulary: list[str], assets: dict[str, Any] | None = None, **given: Any
) -> Model:
    """Return a freshly initialised model, or one with the pretrained weights its options name.

    The caller seeds torch.

    Args:
        name: The model's name; a class of one's own is imported, which runs its file.
        vocabulary: Words of the data set.
        assets: Of a model built before: then nothing is fetched and no pretrained weight is read,
            as a checkpoint brings them.
        given: The model's options.

    Raises:
        UserError: An unknown name or option, a value that is refused, weights that cannot be had.
    """
    cls = find_class(name)
    model = cls(make_options(name, given), vocabulary, assets)
    model.spec = {"name": name, **options_to_dict(model.options)}
    allow(name)
    return model


def make_options(name: str, given: dict[str, Any]) -> Any:
    """Return a model's options, checked; they name the nearest of an unknown one."""
    if name in MODELS:
        return options(name, **given)
    return own_options(name, find_class(name), given)
