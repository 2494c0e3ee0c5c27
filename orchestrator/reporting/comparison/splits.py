"""Score the confirmed checkpoints of a sweep's arms on whole splits, and compare the arms there.

Files in the output folder:

scores.json: which checkpoints were scored on which data, and {trial: {split: {"mIoU", "oIoU",
    "P@0.5" ... "n"}}}, shares in [0, 1].
arms_on_splits.csv, .md, .tex: one row for each split and arm, with means and 95 % t intervals over
    seeds, and the differences to off and random, paired by seed.
TRIAL/: for each confirmed trial what `evaluate` writes of its checkpoint, with per_sentence.jsonl,
    which `compare` reads; about.json says its arm and seed.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aml.errors import UserError
from aml.files import check_own_folder, mark_folder
from orchestrator import data, evaluation, storage
from orchestrator.reporting import evidence, export, numbers, robust_arms, wording
from orchestrator.reporting.comparison.results import nan_to_none
from orchestrator.reporting.significance import (
    NAN,
    Difference,
    holm,
    mean_interval,
    seed_difference,
)
from orchestrator.utils import atomic_write

logger = logging.getLogger(__name__)

KIND = "arms on splits"
"""What the marker of a folder says that was filled here."""

TABLE = "arms_on_splits"

SCORES = "scores.json"

METRICS = ("mIoU", "oIoU")
"""Metrics with intervals and differences."""

PRECISIONS = ("P@0.5", "P@0.7", "P@0.9")

Scores = dict[str, dict[str, dict[str, float]]]
"""{trial: {split: {metric: score}}}"""


def evaluate_arms(
    run: storage.Run,
    shards: storage.Filesystem,
    splits: list[str],
    out: Path,
    *,
    protocol: str = "square",
    workers: int | None = 1,
    keep: bool = False,
) -> tuple[list[str], list[dict[str, Any]]]:
    """Score every confirmed seed of every arm of a sweep on some splits, and write the files.

    A picture is decoded once for all checkpoints.

    Args:
        run: The sweep.
        shards: Shards of the data.
        splits: Names of splits; `test` stands for testA, testB, ... where there is none.
        out: Folder for the files.
        protocol: square or original.
        workers: With more than 1 that many Ray tasks share the pictures; None takes as many as
            the cluster has GPUs or, without GPUs, cores.
        keep: Take the scores over that the folder holds of this sweep, data and protocol.

    Returns:
        The table as lines for a person, and its rows.

    Raises:
        UserError: No arm is confirmed, no checkpoint is on this machine, or the data, a split, the
            protocol or the folder cannot be used.
    """
    check_own_folder(out, "--out", KIND)
    manifest = data.read_manifest(shards)
    evaluation.check_protocol(protocol)
    splits = evaluation.chosen_splits(splits, manifest, shards)
    experiment = run.experiment()
    done = [t for t in run.ledger() if t["stage"] == "confirm" and t["state"] == "done"]
    about: dict[str, Any] = {
        "run": run.name,
        "select": experiment.evaluate.select or "last",
        "protocol": protocol,
        "image_size": experiment.data.size,
        "data": evaluation.about_data(shards, manifest),
        "seeds": {t["trial"]: t.get("seed") for t in done},
    }
    scores = _score(run, done, shards, splits, out, about, workers=workers, keep=keep)
    trials = [t for t in done if t["trial"] in scores]
    rows = arm_rows(trials, scores, splits, numbers.arms_of(trials, run.state))
    caption = (
        f"{run.name} on {manifest['dataset']} ({manifest['split_by']}), protocol {protocol} at "
        f"{experiment.data.size} px, scores in % at "
        f"{wording.counted_epoch({'config': experiment.to_dict()})}, mean over seeds with 95% t "
        "interval; differences in points, paired by seed, with p values after Holm's correction "
        "over arms and splits."
    )
    files = export.write_table(out, TABLE, rows, caption)
    published = evidence.published_lines(
        [
            {key: manifest[key] for key in ("dataset", "split_by")}
            | {"split": split, "protocol": protocol, "n": next(iter(scores.values()))[split]["n"]}
            for split in splits
        ]
    )
    wrote = ", ".join(str(Path(out).absolute() / name) for name in files)
    return [caption, *arm_lines(rows), *published, f"wrote {wrote}"], nan_to_none(rows)


def log_arms(out: Path) -> None:
    """Log the scores that `evaluate_arms` wrote on the MLflow runs of their trials.

    Args:
        out: The folder it wrote.
    """
    out = Path(out).absolute()
    folders = [out / trial for trial in json.loads((out / SCORES).read_text("utf-8"))["scores"]]
    written = {folder: evaluation.read_evaluation(folder)[0] for folder in folders}
    outs = {Path(about["checkpoint"]): folder for folder, about in written.items()}
    evaluation.log_evaluations(outs, out.name)


def arm_rows(
    trials: list[numbers.Trial], scores: Scores, splits: list[str], arms: list[str]
) -> list[dict[str, Any]]:
    """Return the rows of the table.

    Args:
        trials: Confirmed trials, with arm and seed.
        scores: Scores of each of them.
        splits: The splits, in order.
        arms: The arms, in order.

    Returns:
        Rows by split, then arm; a value that is missing is NaN.
    """
    arms = [arm for arm in arms if any(t["arm"] == arm for t in trials)]
    names = (*METRICS, *PRECISIONS)
    seeds = {
        (split, arm, name): _by_seed(trials, scores, split, arm, name)
        for split in splits
        for arm in arms
        for name in names
    }
    differences = {
        (split, arm, name, other): seed_difference(
            seeds[split, arm, name], seeds[split, other, name]
        )
        for split in splits
        for arm in arms
        for name in METRICS
        for other in robust_arms.REFERENCES
        if other in arms and robust_arms.is_compared(arm, other)
    }
    corrected: dict[tuple, float] = {}
    for name in METRICS:
        for other in robust_arms.REFERENCES:
            keys = [key for key in differences if key[2:] == (name, other)]
            adjusted = holm([differences[key].p for key in keys])
            corrected |= dict(zip(keys, adjusted, strict=True))
    rows = []
    for split in splits:
        for arm in arms:
            row: dict[str, Any] = {
                "split": split,
                "arm": arm,
                "seeds": len(seeds[split, arm, "mIoU"]),
            }
            for name in METRICS:
                interval = mean_interval(seeds[split, arm, name].values())
                row |= {name: interval.mean, f"{name}_low": interval.low}
                row |= {f"{name}_high": interval.high, f"{name}_sd": interval.sd}
            for name in PRECISIONS:
                row[name] = mean_interval(seeds[split, arm, name].values()).mean
            for name in METRICS:
                for other in robust_arms.REFERENCES:
                    key = split, arm, name, other
                    p = corrected.get(key, NAN)
                    row |= _columns(f"{name}_vs_{other}", differences.get(key), p)
            rows.append(row)
    return rows


def arm_lines(rows: list[dict[str, Any]]) -> list[str]:
    """Return the rows as lines of a terminal, in per cent."""
    width = max(map(len, ("arm", *(row["arm"] for row in rows))))
    lines = [f"{'split':8} {'arm':{width}} seeds  mIoU (95% t interval)    oIoU    Δ off mIoU"]
    for row in rows:
        ends = f"({wording.pct(row['mIoU_low'])} to {wording.pct(row['mIoU_high'])})"
        line = (
            f"{row['split']:8} {row['arm']:{width}} {row['seeds']:5}  "
            f"{wording.pct(row['mIoU']):>5} {ends:18} {wording.pct(row['oIoU']):>5}"
        )
        if row["mIoU_vs_off_n"]:
            low, high = row["mIoU_vs_off_low"], row["mIoU_vs_off_high"]
            line += (
                f"    {wording.points(row['mIoU_vs_off_mean'])} "
                f"({wording.points(low)} to {wording.points(high)})"
            )
        lines.append(line)
    return lines


def _score(
    run: storage.Run,
    trials: list[numbers.Trial],
    shards: storage.Filesystem,
    splits: list[str],
    out: Path,
    about: dict[str, Any],
    *,
    workers: int | None,
    keep: bool,
) -> Scores:
    """Return the scores of trials' checkpoints, written to the folder after each split.

    Args:
        run: The sweep.
        trials: Confirmed trials.
        shards: Shards of the data.
        splits: Names of splits.
        out: The folder.
        about: What scores.json says beside the scores.
        workers: As `evaluate_arms` takes it.
        keep: As `evaluate_arms` takes it.
    """
    known = _known_scores(out / SCORES, about) if keep else {}
    done = {t["trial"] for t in trials if set(splits) <= known.get(t["trial"], {}).keys()}
    scores: Scores = {trial: known[trial] for trial in done}
    missing = [t for t in trials if t["trial"] not in done]
    mark_folder(out, KIND)
    if trials and not missing:
        return scores
    name = run.experiment().evaluate.checkpoint("last")
    checkpoints = _checkpoints(run, missing, name, scores)
    logger.info(
        f"{len(checkpoints)} confirmed checkpoints on {', '.join(splits)}, protocol "
        f"{about['protocol']}"
    )
    scores |= {trial: dict(known.get(trial, {})) for trial in checkpoints}
    for split in splits:
        left = {trial: path for trial, path in checkpoints.items() if split not in scores[trial]}
        if left:
            request = evaluation.SharedRequest(left, shards, split, about["protocol"], workers)
            beside = keep or split != splits[0]
            for trial, found in evaluation.evaluate_together(request, out, beside=beside).items():
                scores[trial][split] = found
            text = json.dumps(about | {"scores": scores}, indent=1)
            atomic_write(out / SCORES, text.encode())
    return scores


def _known_scores(path: Path, about: dict[str, Any]) -> Scores:
    """Return the scores that a file holds of the same sweep, data and protocol, by trial."""
    try:
        held = json.loads(path.read_text("utf-8"))
        if held["data"]["fingerprint"] != about["data"]["fingerprint"]:
            return {}
        same = all(held[key] == about[key] for key in ("run", "select", "protocol", "image_size"))
        return dict(held["scores"]) if same else {}
    except (OSError, ValueError, KeyError, TypeError):  # absent, or damaged: all is scored anew
        return {}


def _checkpoints(
    run: storage.Run, trials: list[numbers.Trial], name: str, scored: Scores
) -> dict[str, Path]:
    """Return the folders of trials' checkpoints, downloaded where they are in a bucket.

    Args:
        run: The sweep.
        trials: Confirmed trials.
        name: The checkpoint that counts, "last" or "best".
        scored: Scores of other trials.
    """
    if not trials:
        raise UserError(
            f"{run.name} has no finished confirmation trial; let it finish, with "
            "search.seeds.confirm of 2 or more"
        )
    found = {}
    for trial in (t["trial"] for t in trials):
        folder = run.folder / "trials" / trial / name
        storage.try_download(folder.parent, wanted=storage.weights_only)
        if folder.exists():
            found[trial] = folder
    if lost := [t["trial"] for t in trials if t["trial"] not in found]:
        text = f"the checkpoints of {', '.join(lost)} are not on this machine"
        if not found and not scored:
            raise UserError(f"{text}; give this command where the sweep was trained")
        logger.info(f"note: {text}, so they are left out")
    return found


def _by_seed(
    trials: list[numbers.Trial], scores: Scores, split: str, arm: str, name: str
) -> dict[int, float]:
    """Return an arm's score by seed."""
    return {
        int(t.get("seed") or 0): scores[t["trial"]][split][name] for t in trials if t["arm"] == arm
    }


def _columns(prefix: str, found: Difference | None, p: float) -> Mapping[str, Any]:
    """Return the columns of a difference, which a row may lack."""
    return {
        f"{prefix}_n": found.n[0] if found else 0,
        f"{prefix}_mean": found.difference if found else NAN,
        f"{prefix}_low": found.low if found else NAN,
        f"{prefix}_high": found.high if found else NAN,
        f"{prefix}_p": found.p if found else NAN,
        f"{prefix}_p_holm": p,
        f"{prefix}_detectable": found.detectable if found else NAN,
    }
