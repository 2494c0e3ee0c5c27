"""Make table rows of what a report shows beside a run's own trials.

These are evaluations of checkpoints, published results, the settings of trials that changed them,
and which searched parameter mattered. Scores are shares in [0, 1].
"""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from scipy import stats

from aml.errors import UserError
from orchestrator import evaluation
from orchestrator.reporting import numbers, wording
from orchestrator.reporting.numbers import Trial
from orchestrator.reporting.summaries import ArmSummary

SCORES = ("mIoU", "oIoU", "P@0.5", "P@0.7", "P@0.9")

MEASURED = "measured here"

PUBLISHED = "published"

FEWEST_TRIALS = 4
"""Trials below which a rank correlation is not shown."""


def evaluation_folders(
    run_folder: Path, named: Iterable[Path] = ()
) -> tuple[list[Path], list[str]]:
    """Find the finished evaluations inside a run's folder, then the named ones, each once.

    Returns:
        The folders, and a note on each inside the run's folder that is damaged and left out.

    Raises:
        UserError: A named one is damaged.
    """
    found: list[Path] = []
    notes: list[str] = []
    for path in sorted(Path(run_folder).rglob("about.json")):
        if (path.parent / "metrics.json").is_file():
            try:
                evaluation_tables([path.parent])
                found.append(path.parent)
            except UserError as error:
                notes.append(f"Left out: {error}.")
    evaluation_tables(named := list(named))
    return list(dict.fromkeys(p.resolve() for p in (*found, *named))), notes


def evaluation_tables(folders: Iterable[Path]) -> dict[str, list[dict]]:
    """Return the rows of the tables evaluations, breakdown and robustness.

    Raises:
        UserError: A folder is no finished evaluation.
    """
    tables: dict[str, list[dict]] = {"evaluations": [], "breakdown": [], "robustness": []}
    for folder in folders:
        about, metrics = evaluation.read_evaluation(folder)
        tables["evaluations"] += _evaluation_rows(folder.name, about, metrics)
        tables["breakdown"] += _breakdown_rows(folder)
        tables["robustness"] += _robustness_rows(folder)
    return tables


def _evaluation_rows(name: str, about: dict, metrics: dict) -> list[dict]:
    return [
        {
            "model": model_name(about),
            "origin": MEASURED,
            "dataset": about["data"]["dataset"],
            "split_by": about["data"]["split_by"],
            "split": split,
            "protocol": about["protocol"],
            "size": about["image_size"],
            "n": metrics[split]["n"],
            **{score: metrics[split][score] for score in SCORES},
            "source": name,
        }
        for split in about["splits"]
    ]


def _breakdown_rows(folder: Path) -> list[dict]:
    return [
        {"evaluation": folder.name, "split": split, "by": by, "group": group, **scores}
        for split, kinds in evaluation.read_table(folder, "breakdown.json").items()
        for by, groups in kinds.items()
        for group, scores in groups.items()
    ]


def _robustness_rows(folder: Path) -> list[dict]:
    columns = [
        f"{kind}_{metric}"
        for metric in evaluation.METRICS
        for kind in ("over_baseline", "relative_drop")
    ]
    return [
        {"evaluation": folder.name, "split": split, "corruption": corruption}
        | scores
        | {"severities": " ".join(map(str, scores["severities"]))}
        | {column: scores.get(column) for column in columns}
        for split, corruptions in evaluation.read_table(folder, "robustness.json").items()
        for corruption, scores in corruptions.items()
    ]


def model_name(about: dict) -> str:
    """Return model, arm and seed of an evaluated checkpoint; `about` is its about.json."""
    model = about.get("model")
    name = (model or {}).get("name", "?") if isinstance(model, dict) else str(model or "?")
    seed = about.get("seed")
    parts = [name, about.get("arm"), f"seed {seed}" if seed is not None else ""]
    return " ".join(part for part in parts if part)


def arm_evaluation_rows(arms: list[ArmSummary], meta: dict) -> list[dict]:
    """Return the confirmed arms as rows of the table evaluations.

    There are none if validation used only a part of the split (data.val_limit), or if the data
    set is not recorded: such scores cannot stand beside published ones.

    Args:
        arms: Summaries of the arms.
        meta: Content of sweep.json, with the run's config.
    """
    data = meta.get("data") or {}
    config = meta.get("config") or {}
    settings = config.get("data") or {}
    split = settings.get("val_split", "val")
    n = ((data.get("splits") or {}).get(split) or {}).get("sentences")
    if settings.get("val_limit") is not None or not data.get("dataset") or n is None:
        return []
    name = (config.get("model") or {}).get("name", "")
    return [
        {
            "model": f"{name} {arm.arm}, mean of {arm.seeds} seeds".strip(),
            "origin": MEASURED,
            "dataset": data["dataset"],
            "split_by": data.get("split_by"),
            "split": split,
            "protocol": "square",
            "size": settings.get("size"),
            "n": n,
            "mIoU": arm.mIoU.mean,
            "oIoU": arm.oIoU,
            **arm.precision,
            "source": "arms",
        }
        for arm in arms
        if arm.seeds
    ]


def published_rows(rows: list[dict], network: str | None = None) -> list[dict]:
    """Return the published results that may stand beside `rows` of the table evaluations.

    A result qualifies if its data set, split and protocol are in `rows`, where the number of
    sentences shows that the row is of the whole split.

    Args:
        rows: Rows with dataset, split_by, split, protocol and n.
        network: Only methods of this model.name; None for all.
    """
    known = yaml.safe_load(Path(__file__).with_name("published.yaml").read_text("utf-8"))
    wanted = dict.fromkeys(
        (r["dataset"], r["split_by"], r["split"], r["protocol"], r["n"]) for r in rows
    )
    found: list[dict] = []
    for dataset, split_by, split, protocol, n in wanted:
        key = f"{dataset}/{split_by}"
        if (known["sentences"].get(key) or {}).get(split) != n:
            continue
        for method in known["methods"]:
            scores = (method["scores"].get(key) or {}).get(split)
            if not scores or method["protocol"] != protocol:
                continue
            if network not in (None, method.get("model")):
                continue
            found.append(
                {
                    "model": method["method"],
                    "origin": PUBLISHED,
                    "dataset": dataset,
                    "split_by": split_by,
                    "split": split,
                    "protocol": protocol,
                    "size": method["size"],
                    "n": n,
                    **{k: scores[k] / 100 if k in scores else math.nan for k in SCORES},
                    "source": method["source"],
                }
            )
    return found


def with_published(rows: list[dict]) -> list[dict]:
    """Return `rows` and the published results, grouped by data set, split and protocol."""

    def place(row: dict) -> tuple:
        return row["dataset"], row["split_by"], row["split"], row["protocol"]

    places = list(dict.fromkeys(map(place, rows)))
    return sorted([*rows, *published_rows(rows)], key=lambda row: places.index(place(row)))


def published_lines(rows: list[dict]) -> list[str]:
    """Return the published results beside some rows as lines for a person, in per cent.

    Args:
        rows: See `published_rows`.
    """
    return [
        f"{row['split']:20} {row['model']}, published ({row['protocol']}, {row['size']} px): "
        + "  ".join(f"{name} {100 * row[name]:.2f}" for name in SCORES if math.isfinite(row[name]))
        for row in published_rows(rows)
    ]


def config_history_rows(trials: list[Trial]) -> list[dict]:
    """Return one row for each setting of the trials whose settings changed (PBT).

    A row gives the settings and the number of epochs that were done when they began.
    """
    return [
        {
            "trial": t["trial"],
            "arm": t["arm"],
            "stage": t["stage"],
            "from_epoch": begin,
            "settings": ", ".join(f"{k} {wording.brief(v)}" for k, v in overrides.items())
            or "the same",
            "mIoU": numbers.last(t, "val/mIoU"),
        }
        for t in trials
        for begin, overrides in t.get("path") or []
    ]


def importance_rows(trials: list[Trial]) -> list[dict]:
    """Measure how far each searched parameter alone orders an arm's search trials by val/mIoU.

    Only arms that vary several parameters and have `FEWEST_TRIALS` trials or more are listed.
    Scores are read at the last epoch that all of the arm's trials (except failed ones) reached.
    Of a numeric parameter a row holds Spearman's rank correlation, its square as the share of the
    variance of ranks, and its p value. Of any other parameter it holds H / (n - 1) of the
    Kruskal-Wallis test as that share, and its p value.
    """
    rows = []
    for arm in numbers.arms_of(trials, {}):
        epoch, scored = _scores_at_common_epoch(arm, trials)
        keys = sorted({k for params, _ in scored for k in params})
        varied = [k for k in keys if len({json.dumps(params.get(k)) for params, _ in scored}) > 1]
        scores = [score for _, score in scored]
        if len(varied) < 2 or len(scored) < FEWEST_TRIALS or len(set(scores)) < 2:
            continue
        for key in varied:
            rows.append(
                {"arm": arm, "parameter": key, "trials": len(scored), "epoch": epoch}
                | _rank_association([params.get(key) for params, _ in scored], scores)
            )
    return sorted(rows, key=lambda row: (row["arm"], -row["share"]))


def _scores_at_common_epoch(
    arm: str, trials: list[Trial]
) -> tuple[int, list[tuple[dict[str, Any], float]]]:
    """Return the last epoch that an arm's search trials all reached, and each one's score there.

    Returns:
        The epoch, and the searched parameters and finite val/mIoU of each trial at that epoch.
    """
    members = [
        t for t in trials if t["arm"] == arm and t["stage"] == "search" and t["state"] != "failed"
    ]
    common = min(map(numbers.epochs_of, members), default=0)
    scored = [
        (t.get("params") or {}, numbers.number(epoch.get("val/mIoU")))
        for t in members
        for epoch in t.get("history") or []
        if epoch["epoch"] == common
    ]
    return common, [(params, score) for params, score in scored if math.isfinite(score)]


def _rank_association(values: list, scores: list[float]) -> dict[str, float]:
    if all(math.isfinite(numbers.number(v)) for v in values):
        spearman = stats.spearmanr(values, scores)
        return {
            "rank_correlation": float(spearman.statistic),
            "share": float(spearman.statistic) ** 2,
            "p": float(spearman.pvalue),
        }
    groups: dict[str, list[float]] = {}
    for value, score in zip(values, scores, strict=True):
        groups.setdefault(json.dumps(value), []).append(score)
    kruskal = stats.kruskal(*groups.values())
    return {
        "rank_correlation": math.nan,
        "share": float(kruskal.statistic) / (len(scores) - 1),
        "p": float(kruskal.pvalue),
    }
