"""Read a run folder for its report."""

import logging
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter

from aml.errors import UserError
from aml.reading import problem_of
from orchestrator import storage
from orchestrator.config import stored_settings
from orchestrator.reporting.numbers import Trial
from orchestrator.reporting.robust_arms import add_robustness
from orchestrator.utils import redact_all

logger = logging.getLogger(__name__)

SHOWN_PROBLEMS = 20
"""Damaged lines that the page names one by one."""


class _Section(BaseModel):
    """Check the entries of a section of the settings that a report reads."""

    model_config = ConfigDict(extra="allow", strict=True)
    name: str | None = None
    val_split: str | None = None
    val_limit: int | None = None
    size: int | None = None
    equal: str | None = None
    select: str | None = None


class _Settings(BaseModel):
    """Check the sections of a run's settings that a report reads."""

    model_config = ConfigDict(extra="allow", strict=True)
    data: _Section | None = None
    model: _Section | None = None
    search: _Section | None = None
    evaluate: _Section | None = None


SETTINGS = TypeAdapter(_Settings)


def load_run(folder: Path) -> tuple[dict, list[Trial], list[str]]:
    """Read what a run folder says of its run.

    What is damaged is left out, and said in a note and a message. If the ledger has several lines
    on one trial, the last one counts.

    Returns:
        The content of sweep.json or train.json with `kind` and `config`, the trials, and notes
        for the page. A training is its only trial.

    Raises:
        UserError: The folder holds neither file, or nothing of the run can be read.
    """
    kind = next((kind for kind in storage.KINDS if (folder / f"{kind}.json").is_file()), None)
    if kind is None:
        raise UserError(
            f"{folder} holds neither sweep.json nor train.json, and a report needs the folder of "
            "one run: `python -m orchestrator runs` lists them."
        )
    notes: list[str] = []
    meta: dict[str, Any] = {}
    damage: UserError | None = None
    try:
        meta = redact_all(storage.read_state(folder / f"{kind}.json"))
    except UserError as error:
        damage = error
        notes.append(f"Left out: {error}.")
    meta |= {"kind": kind, "config": _settings(folder / "config.yaml", notes)}
    if kind == "sweep":
        trials = add_robustness(_trials(folder / storage.LEDGER, notes), meta)
    else:
        trials = [_training(folder, meta, read_epochs=damage is not None)]
    if damage and not any(trial["history"] for trial in trials):
        raise damage
    for note in notes:
        logger.info(f"note: {folder}: {note}")
    return meta, trials, notes


def _settings(path: Path, notes: list[str]) -> dict[str, Any]:
    """Return a run's settings; none where there are none or, which is noted, they are damaged."""
    if not path.exists():
        return {}
    try:
        settings = stored_settings(path)
        if problem := problem_of(SETTINGS, settings):
            raise UserError(f"{path}: {problem}")
    except UserError as error:
        notes.append(f"Left out, and with it what depends on the settings: {error}.")
        return {}
    return settings


def _trials(path: Path, notes: list[str]) -> list[Trial]:
    """Return the trials of a ledger; damaged lines are noted."""
    trials, problems = storage.read_trials(path)
    if problems:
        more = f" and {len(problems) - SHOWN_PROBLEMS} more" * (len(problems) > SHOWN_PROBLEMS)
        lines = "line" if len(problems) == 1 else "lines"
        notes.append(
            f"Left out, and so in no number here, {len(problems)} damaged {lines} of {path.name}: "
            f"{'; '.join(problems[:SHOWN_PROBLEMS])}{more}."
        )
    return [redact_all(trial) for trial in trials]


def _training(folder: Path, meta: dict[str, Any], *, read_epochs: bool) -> Trial:
    """Return a training as a trial; its epochs are read anew where its state is damaged."""
    history = storage.read_history(folder) if read_epochs else meta.get("history") or []
    return {
        "trial": meta.get("run") or folder.name,
        "arm": meta.get("arm") or "training",
        "stage": "train",
        "history": history,
        "seed": "" if meta.get("seed") is None else meta["seed"],
        "state": "done",
        "epochs": len(history),
    }
