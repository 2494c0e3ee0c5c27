"""Names the arms of a comparison, and what of a setting means something to each of them."""

from typing import Any

from aml.masking import PRESETS
from aml.own_classes import names_own_class

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


def is_arm(arm: str) -> bool:
    """Return whether an arm exists: one of this project, or a masking method of one's own."""
    return arm in ARMS or names_own_class(arm)


def base_arm(arm: str) -> str:
    """Return the arm whose masking this one has: x@compute and x+colour have that of x."""
    return arm.removesuffix(AT_COMPUTE).removesuffix(WITH_COLOUR)


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
    arm = base_arm(arm)
    if arm in DIMENSIONS or names_own_class(arm):
        return {**aml, "mode": arm}
    return {**own, "mode": "aml", "preset": arm.removeprefix("aml/")}


def active_params(rate: Any, arm: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """Return those of a trial's settings that mean something to its arm.

    Args:
        rate: The experiment's aml.rate, where the trial does not set it.
        arm: The arm.
        overrides: Settings by their dotted keys.
    """
    arm = base_arm(arm)
    matched = arm == "random" and "match" in (rate, overrides.get("aml.rate"))
    known = DIMENSIONS.get(arm)
    if known is None or matched:
        return dict(overrides)
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
