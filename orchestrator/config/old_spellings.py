"""Old spellings of settings: refused when a person types them, converted in stored run folders."""

from typing import Any

from aml.errors import UserError

MOVED = {
    "search.asha": "search.scheduler={name: asha, grace: 2, reduction: 3}",
    "search.pbt": "search.scheduler={name: pbt, interval: 2, quantile: 0.25, resample: 0.25}",
    "search.time_limit_s": "search.budget.trial_hours=1.5",
    "optim.warmup_steps": "optim.warmup=500steps",
    "optim.warmup_epochs": "optim.warmup=1.5epochs",
    "resources.trial_timeout_s": "resources.epoch_timeout_s=600",
}
"""Old keys, and how their settings are written now."""


def refuse_old_spellings(tree: dict[str, Any]) -> None:
    search = tree.get("search")
    space = search.get("space") if isinstance(search, dict) else None
    for old, new in MOVED.items():
        section, key = old.split(".")
        here = isinstance(tree.get(section), dict) and key in tree[section]
        if here or (isinstance(space, dict) and old in space):
            raise UserError(f"{old} is spelled otherwise now; write it as in {new}")


def upgraded(tree: dict[str, Any]) -> dict[str, Any]:
    """Return a stored experiment's settings in the present spelling."""
    tree = {k: dict(v) if isinstance(v, dict) else v for k, v in tree.items()}
    if isinstance(optim := tree.get("optim"), dict):
        _new_warmup(optim)
    resources = tree.get("resources")
    if isinstance(resources, dict) and "trial_timeout_s" in resources:
        resources["epoch_timeout_s"] = resources.pop("trial_timeout_s")
    search = tree.get("search")
    if isinstance(search, dict):
        options = {name: search.pop(name, None) or {} for name in ("asha", "pbt")}
        if isinstance(scheduler := search.get("scheduler"), dict) and len(scheduler) == 1:
            search["scheduler"] = scheduler | options.get(str(scheduler.get("name")), {})
        if (limit := search.pop("time_limit_s", None)) is not None:
            search["budget"] = (search.get("budget") or {}) | {"trial_hours": limit / 3600}
        if isinstance(space := search.get("space"), dict):
            search["space"] = _new_space(space)
    return tree


def upgrade_overrides(overrides: dict[str, Any]) -> dict[str, Any]:
    """Return a trial's settings, as a ledger holds them, in the present spelling."""
    found: dict[str, Any] = {}
    for key, value in overrides.items():
        found |= {"optim.warmup": _warmup(key, value)} if key in _WARMUPS else {key: value}
    return found


_WARMUPS = ("optim.warmup_steps", "optim.warmup_epochs")


def _warmup(key: str, value: Any) -> Any:
    return f"{value:.12g}{key.rpartition('_')[2]}" if value else 0


def _new_warmup(optim: dict[str, Any]) -> None:
    given = {key: optim.pop(key.partition(".")[2], 0) for key in _WARMUPS}
    if found := [_warmup(key, value) for key, value in given.items() if value]:
        optim["warmup"] = found[0]


def _new_space(space: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, values in space.items():
        if key in _WARMUPS and isinstance(values, list):
            found["optim.warmup"] = [_warmup(key, value) for value in values]
        elif key == "optim" and isinstance(values, list):
            found[key] = [dict(value) for value in values]
            for value in found[key]:
                _new_warmup(value)
        else:
            found[key] = values
    return found
