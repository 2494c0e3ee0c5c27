"""Read a run folder for its report."""

import json
from pathlib import Path

import yaml

from aml.errors import UserError
from orchestrator.reporting.numbers import Trial
from orchestrator.utils import redact_all


def load_run(folder: Path) -> tuple[dict, list[Trial], list[str]]:
    """Read what a run folder says of its run.

    If the ledger has several lines on one trial, the last one counts.

    Returns:
        The content of sweep.json or train.json with `kind` and `config`, the trials, and notes
        for the page. A training is its only trial.

    Raises:
        UserError: The folder holds neither file, or one of its files cannot be read.
    """
    path = next((folder / n for n in ("sweep.json", "train.json") if (folder / n).is_file()), None)
    if path is None:
        raise UserError(
            f"{folder} holds neither sweep.json nor train.json, and a report needs the folder of "
            "one run: `python -m orchestrator runs` lists them."
        )
    config = folder / "config.yaml"
    try:
        meta = redact_all(json.loads(path.read_text(encoding="utf-8")))
        settings = yaml.safe_load(config.read_text(encoding="utf-8")) if config.is_file() else None
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(
            f"A file of {folder} cannot be read ({error}): restore it, or use --fresh."
        ) from error
    meta["config"] = settings or {}
    if path.name == "sweep.json":
        trials, unreadable = _read_ledger(folder / "ledger.jsonl")
        note = f"Lines of ledger.jsonl that could not be read and are left out: {unreadable}."
        return {**meta, "kind": "sweep"}, trials, [note] if unreadable else []
    history = meta.get("history") or []
    training = {
        "trial": meta.get("run", folder.name),
        "arm": meta.get("arm") or "training",
        "stage": "train",
        "history": history,
        "seed": meta.get("seed", ""),
        "state": "done",
        "epochs": len(history),
    }
    return {**meta, "kind": "train"}, [training], []


def _read_ledger(path: Path) -> tuple[list[Trial], int]:
    """Return a ledger's trials and the number of its lines that cannot be read."""
    trials: dict[str, Trial] = {}
    unreadable = 0
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            trial = redact_all(json.loads(text))
            if {"arm", "stage", "state"} - trial.keys():
                raise KeyError
            trials[trial["trial"]] = trial
        except (ValueError, AttributeError, KeyError):
            unreadable += 1
    return list(trials.values()), unreadable
