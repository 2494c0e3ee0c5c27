"""Built-in models by name: options, class, and building one."""

from dataclasses import asdict, fields
from difflib import get_close_matches
from importlib import import_module

from aml.errors import UserError

MODELS = {
    "small": ("aml.models.small", "SmallOptions", "Small"),
    "caris": ("aml.models.caris", "CarisOptions", "Caris"),
    "lavt": ("aml.models.lavt", "LavtOptions", "Lavt"),
    "detris": ("aml.models.detris", "DetrisOptions", "Detris"),
    "clipseg": ("aml.models.clipseg", "ClipSegOptions", "ClipSeg"),
}


def model_options(name: str, **given):
    """The model's options dataclass, checked. UserError names an unknown model or option and the nearest known one."""
    module, options_class, _ = _entry(name)
    cls = getattr(import_module(module), options_class)
    known = [f.name for f in fields(cls)]
    for key in given:
        if key not in known:
            near = get_close_matches(key, known, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise UserError(
                f"model.{key} is not an option of model {name}{hint}; known: {', '.join(known)}"
            )
    return cls(**given)


def build_model(name: str, *, vocabulary: list[str], assets: dict | None = None, **given):
    """A freshly initialised model, or with the pretrained weights its options name; the caller seeds torch.

    With `assets`, those of a model built before, nothing is fetched and no pretrained weight is read: a checkpoint brings them.
    """
    model = model_class(name)(model_options(name, **given), vocabulary, assets)
    model.spec = {"name": name, **asdict(model.options)}
    return model


def model_class(name: str):
    """The class: name, sources and image_multiple can be read without building one."""
    module, _, class_name = _entry(name)
    return getattr(import_module(module), class_name)


def _entry(name: str) -> tuple[str, str, str]:
    if name not in MODELS:
        near = get_close_matches(str(name), MODELS, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(f"model.name is {name!r}{hint}; known: {', '.join(MODELS)}")
    return MODELS[name]
