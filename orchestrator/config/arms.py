"""Names the arms of a comparison, and what of a setting means something to each of them.

An arm is a masking method or preset, perhaps with settings of its own in brackets, perhaps with one
or both endings: off, random(rate=0.1), aml/calibrated(sentence=other weak=highest)+colour@compute.
"""

import re
from typing import Any

from aml.errors import UserError
from aml.masking import PRESETS, MaskingConfig
from aml.own_classes import names_own_class
from aml.schema import not_among
from orchestrator.config.yaml_text import parse_yaml

AT_COMPUTE = "@compute"
"""Ends an arm that trains for as many epochs as the costliest arm's FLOPs would pay for."""

WITH_COLOUR = "+colour"
"""Ends an arm (before @compute) that also trains with the augmentation `colour`."""

BASE_ARMS = (
    *("off", "random", "two_pass", "maskris", "oneref", "consistency"),
    *(f"aml/{name}" for name in PRESETS),
)

ARMS = BASE_ARMS

BLIND_DIMENSIONS = (
    *("tau", "rho", "rate", "block", "fill", "level", "protect_target", "clean_weight"),
    *("batch_share", "warmup_epochs", "ramp_epochs", "last_epoch"),
)
"""Masking's settings that mean something where no alignment is read; all do with rate match."""

MASKRIS_DIMENSIONS = (
    *("rate", "block", "fill"),
    *("batch_share", "warmup_epochs", "ramp_epochs", "last_epoch"),
)

DIMENSIONS: dict[str, tuple[str, ...]] = {
    "off": (),
    "two_pass": (),
    "random": BLIND_DIMENSIONS,
    "maskris": MASKRIS_DIMENSIONS,
    "oneref": tuple(name for name in BLIND_DIMENSIONS if name not in ("tau", "rho")),
    "consistency": tuple(name for name in BLIND_DIMENSIONS if name != "clean_weight"),
}
"""Masking's settings that an arm reads; an arm that is not here reads all of them."""


OWN_SETTINGS = re.compile(r"(?P<name>[^()]+)\((?P<settings>[^()]*)\)")
"""An arm with settings of its own, which commas or spaces part."""

SET_BY_NAME = ("mode", "preset")
"""Masking's settings that an arm's name sets."""


def check_arm(arm: str) -> None:
    """Refuse an arm that does not exist, and settings of its own that mean nothing to it.

    Args:
        arm: The arm; a masking method of one's own is an arm, too.

    Raises:
        UserError: What is unknown, and what is known.
    """
    name = masking_arm(arm)
    if name not in ARMS and not names_own_class(name):
        raise not_among("search.arms", arm, ARMS)
    settings = base_arm(arm).removeprefix(name)
    if not settings:
        return
    parts = re.split(r"[,\s]+", settings[1:-1].strip())
    keys = [part.partition("=")[0] for part in parts]
    if not all(re.fullmatch(r"\w+=[^=]+", part) for part in parts) or len(set(keys)) < len(keys):
        raise UserError(
            f"search.arms {arm!r}: what is in brackets must be settings of masking, each once, as "
            "random(rate=0.1) or aml/calibrated(sentence=other weak=highest)"
        )
    stated = own_settings(arm)
    is_matched = name == "random" and stated.get("rate") == "match"
    unread = SET_BY_NAME if is_matched or names_own_class(name) else (*SET_BY_NAME, "rate")
    others = [key for key in MaskingConfig.model_fields if key not in unread]
    known = others if is_matched else DIMENSIONS.get(name, others)
    for key in keys:
        if key not in known:
            raise not_among(f"the setting of the arm {name}", key, known or ["none"])
    if stated.get("rate") == "match" and name in DIMENSIONS and not is_matched:
        raise UserError(
            f"search.arms {arm!r}: rate match hides as many blocks as alignment would, which "
            "random alone does; give a number"
        )


def base_arm(arm: str) -> str:
    """Return the arm whose masking this one has: x@compute and x+colour have that of x."""
    return arm.removesuffix(AT_COMPUTE).removesuffix(WITH_COLOUR)


def masking_arm(arm: str) -> str:
    """Return the masking method or preset of an arm, without endings and settings of its own."""
    base = base_arm(arm)
    found = OWN_SETTINGS.fullmatch(base)
    return found["name"] if found else base


def own_settings(arm: str) -> dict[str, Any]:
    """Return the settings of masking that stand in an arm's name: {"rate": 0.1}.

    Raises:
        UserError: A value cannot be read.
    """
    found = OWN_SETTINGS.fullmatch(base_arm(arm))
    if not found:
        return {}
    parts = re.split(r"[,\s]+", found["settings"].strip())
    pairs = (part.partition("=") for part in parts)
    return {key: parse_yaml(value, f"{key} of the arm {arm!r}") for key, _, value in pairs}


def meaning(arm: str) -> tuple:
    """Return what two arms have in common that are the same, however they are written."""
    settings = sorted((key, str(value)) for key, value in own_settings(arm).items())
    return masking_arm(arm), tuple(settings), arm.removeprefix(base_arm(arm))


def augmentations_of(arm: str, own: list[str]) -> list[str]:
    """Return the augmentations an arm trains with.

    Args:
        arm: The arm.
        own: The experiment's data.augment.
    """
    with_colour = arm.removesuffix(AT_COMPUTE).endswith(WITH_COLOUR)
    return [*own, "colour"] if with_colour and "colour" not in own else own


def masking_of(arm: str, aml: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Return the masking settings an arm starts from, before a trial's own settings.

    Args:
        arm: The arm.
        aml: The experiment's masking settings, all of them.
        own: Those of them that differ from the experiment's preset.
    """
    name, stated = masking_arm(arm), own_settings(arm)
    if name in DIMENSIONS or names_own_class(name):
        return {**aml, **stated, "mode": name}
    return {**own, **stated, "mode": "aml", "preset": name.removeprefix("aml/")}


def active_params(rate: Any, arm: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """Return those of a trial's settings that mean something to its arm and are not fixed by it.

    Args:
        rate: The experiment's aml.rate, where the trial does not set it.
        arm: The arm.
        overrides: Settings by their dotted keys.
    """
    name, stated = masking_arm(arm), own_settings(arm)
    overrides = {k: v for k, v in overrides.items() if k.removeprefix("aml.") not in stated}
    matched = name == "random" and "match" in (stated.get("rate", rate), overrides.get("aml.rate"))
    known = DIMENSIONS.get(name)
    if known is None or matched:
        return overrides
    return {
        key: value
        for key, value in overrides.items()
        if not key.startswith("aml.") or key.removeprefix("aml.") in known
    }


def unbundle(values: dict[str, Any]) -> dict[str, Any]:
    """Return settings that go together each by its dotted key.

    {"aml": {"source": s, "score": t}} becomes {"aml.source": s, "aml.score": t}.
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= (
            {f"{key}.{name}": v for name, v in value.items()} if "." not in key else {key: value}
        )
    return flat
