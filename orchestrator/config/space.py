"""Checks what a search varies and is judged by against what exists."""

import math
from collections.abc import Iterator
from functools import cache
from typing import Any, get_args

from aml.conditions import CORRUPTIONS
from aml.errors import UserError
from aml.masking import MaskingConfig
from aml.models import MODELS
from aml.own_classes import names_own_class
from aml.schema import Leaf, Settings, leaves_of, nearest, shown
from aml.training import OptimConfig, TrainConfig

METRICS = (
    *("val/mIoU", "val/oIoU", "val/P0.5", "val/P0.6", "val/P0.7", "val/P0.8", "val/P0.9"),
    *("val/mIoU_best", "val/N-acc", "val/T-acc", "train/loss", "train/skipped"),
    *("aml/weak", "aml/hidden", "aml/hidden_target", "aml/auroc", "aml/mask_auroc"),
    *("aml/uninformative", "aml/lift", "aml/leak", "aml/scale"),
    *("aml/probe_weak", "aml/probe_hidden", "aml/probe_hidden_target", "aml/probe_auroc"),
    *("aml/probe_mask_auroc", "aml/probe_uninformative", "aml/probe_lift"),
    *("time/epoch_s", "time/train_s", "time/val_s", "time/stage1_s", "mem/peak_mb"),
)
"""What training reports at the end of an epoch, and a search may be judged by."""

ROBUST = "robust/"
"""Beginning of the metrics under evaluate.corrupt, which search trials report of their last epoch
where search.metric names one."""

ROBUST_METRICS = tuple(f"{ROBUST}{name}" for name in ("mIoU", *CORRUPTIONS))
"""The mean of validation mIoU over all corruptions, and over the severities of each."""

OF_DATA = ("unit", "augment", "train_limit")
"""Settings of data that a trial reads for itself; the data are read and decoded once for all."""

SET_BY_ARM = ("aml.mode", "aml.preset")

LARGEST_GRID = 100_000
"""Settings of a grid; each is checked before anything starts."""


def check_metric(metric: str) -> None:
    """Refuse a metric that no epoch reports."""
    known = METRICS + ROBUST_METRICS
    if metric not in known:
        raise UserError(
            f"search.metric is {shown(metric)}{nearest(metric, known)}; no epoch reports it: "
            "choose "
            f"one of {', '.join(known)}"
        )


def check_space(space: dict[str, Any], method: str, model: str, data: type[Settings]) -> None:
    """Refuse a search space with a key or a value that no trial could have.

    Args:
        space: Dotted keys to lists of values or to ranges, or sections to lists of mappings.
        method: The name of the search method.
        model: The name of the model.
        data: The class of the settings of data.
    """
    size = 1
    for key, values in space.items():
        _check_form(key, values, method)
        known = searchable(model, data)
        if isinstance(values, list):
            size *= len(values)
            _check_values(key, values, model, known)
        else:
            _check_range(key, values, _leaf(key, model, known))
    if method == "grid" and size > LARGEST_GRID:
        raise UserError(
            f"search.space has {size} settings, more than {LARGEST_GRID}; list fewer values or use "
            "search.method random with search.trials"
        )


@cache
def searchable(model: str, data: type[Settings]) -> dict[str, Leaf]:
    """Return the settings that a search may vary, by their dotted keys."""
    sections = [(MaskingConfig, "aml."), (OptimConfig, "optim."), (TrainConfig, "train.")]
    every: list[Leaf] = [leaf for cls, prefix in sections for leaf in leaves_of(cls, prefix)]
    every += [leaf for leaf in leaves_of(data, "data.") if leaf.key.split(".")[1] in OF_DATA]
    if model in MODELS:
        every += leaves_of(MODELS[model], "model.")
    return {leaf.key: leaf for leaf in every if leaf.key not in SET_BY_ARM}


def _check_form(key: str, values: Any, method: str) -> None:
    bundles = isinstance(values, list) and bool(values) and all(isinstance(v, dict) for v in values)
    section = key.split(".")[0]
    if section not in ("data", "model", "aml", "optim", "train") or (
        "." not in key and not bundles
    ):
        raise UserError(
            f"search.space names {shown(key)}; a dimension is a dotted key of data, model, aml, "
            "optim "
            "or train, as aml.tau, or one of these sections with a list of mappings whose keys go "
            "together"
        )
    if bundles and ("." in key or method != "grid"):
        raise UserError(
            f"search.space {key}: mappings whose keys go together belong to a whole section and to "
            "search.method grid; name the section, or list plain values"
        )
    if isinstance(values, list) and values:
        return
    if not isinstance(values, dict) or not {"low", "high"} <= set(values) <= {"low", "high", "log"}:
        raise UserError(
            f"search.space {_key(key)} is {shown(values)}; give a list of values, or low and high "
            "(and log: true) for method random or tpe"
        )
    if method == "grid":
        raise UserError(
            f"search.space {_key(key)} is a range, which a grid cannot enumerate; list its "
            "values or "
            "use search.method random or tpe"
        )


def _check_values(key: str, values: list, model: str, known: dict[str, Leaf]) -> None:
    seen: list[dict[str, Any]] = []
    for one in values:
        setting = dict(_each(key, one))
        for dotted, value in setting.items():
            if (found := _leaf(dotted, model, known)) is not None:
                setting[dotted] = found.check(value, f"a value of search.space {dotted}")
        if setting in seen:
            raise UserError(f"search.space {key} lists {shown(one)} twice; list each value once")
        seen.append(setting)


def _each(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if "." in key:
        yield key, value
        return
    if not value:
        raise UserError(f"search.space {key} lists an empty mapping; name a setting in it")
    for name, one in value.items():
        yield f"{key}.{name}", one


def _leaf(key: str, model: str, known: dict[str, Leaf]) -> Leaf | None:
    """Return the setting of a dimension; None for an option of a model outside this project."""
    if key in known:
        return known[key]
    if names_own_class(model) and key.startswith("model.") and key != "model.name":
        return None
    if key in SET_BY_ARM:
        raise UserError(f"search.space names {key}, which every arm sets; name search.arms instead")
    if key.startswith("data."):
        allowed = ", ".join(f"data.{name}" for name in OF_DATA)
        raise UserError(
            f"search.space names {_key(key)}, but the data are read once for all trials; a search "
            f"may vary {allowed}, or start a sweep for each"
        )
    among = [k for k in known if k.split(".")[0] == key.split(".")[0]]
    raise UserError(
        f"search.space names {_key(key)}, which is no setting{nearest(key, known)}; known: "
        f"{', '.join(among)}"
    )


def _check_range(key: str, values: dict[str, Any], found: Leaf | None) -> None:
    low, high, log = values["low"], values["high"], values.get("log", False)
    for name, value in (("low", low), ("high", high)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not _finite(value):
            raise UserError(f"search.space {key}: {name} is {shown(value)}; it must be a number")
    if not isinstance(log, bool):
        raise UserError(f"search.space {key}: log is {shown(log)}; it must be true or false")
    if not low < high or (log and low <= 0):
        raise UserError(
            f"search.space {key}: low {low} must lie below high {high}, and above 0 with log; "
            "change "
            "them"
        )
    if found is None:
        return
    if not takes_fractions(found.info.annotation):
        raise UserError(
            f"search.space {key} is a range, but {key} is not a number that may have any value "
            "between two others; list its values"
        )
    for name, value in (("low", low), ("high", high)):
        found.check(value, f"{name} of search.space {key}")


def takes_fractions(annotation: Any) -> bool:
    """Return whether a type admits numbers with a fraction."""
    if annotation is float:
        return True
    return any(takes_fractions(part) for part in get_args(annotation) if not isinstance(part, str))


def _finite(value: float) -> bool:
    return isinstance(value, int) or math.isfinite(value)


def _key(key: str) -> str:
    return key if key.isprintable() and 0 < len(key) <= 80 else shown(key)
