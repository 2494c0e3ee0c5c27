"""What a report shows beside a run's own trials: evaluations of its checkpoints, published numbers, and which parameter mattered. Rows of tables.

Scores are shares in [0, 1].
"""

import json
import math
from pathlib import Path

import yaml
from scipy import stats

from orchestrator import evaluation
from orchestrator.reporting import numbers, wording

SCORES = ("mIoU", "oIoU", "P@0.5", "P@0.7", "P@0.9")

MEASURED, PUBLISHED = "measured here", "published"

FEWEST = 4

"""Trials without which a rank correlation is not shown."""


def folders(run_folder: Path, named: list[Path] = ()) -> list[Path]:
    """The evaluations that lie in a run's folder, and those named; each once."""
    inside = sorted(
        p.parent
        for p in Path(run_folder).rglob("about.json")
        if (p.parent / "metrics.json").is_file()
    )
    return list(dict.fromkeys(p.resolve() for p in (*inside, *named)))


def evaluation_tables(places: list[Path]) -> dict[str, list[dict]]:
    """Rows of evaluations, breakdown and robustness. UserError where a folder is no finished evaluation."""
    tables: dict[str, list[dict]] = {"evaluations": [], "breakdown": [], "robustness": []}
    for place in places:
        about, metrics = evaluation.read_sentence_scores(place)
        data, name = about["data"], place.name
        for split in about["splits"]:
            where = {
                "dataset": data["dataset"],
                "split_by": data["split_by"],
                "split": split,
                "protocol": about["protocol"],
            }
            row = {
                "model": model_name(about),
                "origin": MEASURED,
                **where,
                "size": about["image_size"],
                "n": metrics[split]["n"],
            }
            tables["evaluations"].append(
                row | {k: metrics[split][k] for k in SCORES} | {"source": name}
            )
        for split, kinds in _read(place / "breakdown.json").items():
            for by, groups in kinds.items():
                tables["breakdown"] += [
                    {"evaluation": name, "split": split, "by": by, "group": group, **s}
                    for group, s in groups.items()
                ]
        for split, lines in _read(place / "robustness.json").items():
            for corruption, line in lines.items():
                more = {
                    f"{kind}_{m}": line.get(f"{kind}_{m}")
                    for m in evaluation.METRICS
                    for kind in ("over_baseline", "relative_drop")
                }
                severities = " ".join(map(str, line["severities"]))
                row = (
                    {"evaluation": name, "split": split, "corruption": corruption}
                    | line
                    | {"severities": severities}
                    | more
                )
                tables["robustness"].append(row)
    return tables


def model_name(about: dict) -> str:
    """Model, arm and seed of an evaluated checkpoint."""
    model = about.get("model")
    name = (model or {}).get("name", "?") if isinstance(model, dict) else str(model or "?")
    seed = about.get("seed")
    return " ".join(
        filter(None, [name, about.get("arm"), f"seed {seed}" if seed is not None else ""])
    )


def arm_rows(arms: list[dict], meta: dict) -> list[dict]:
    """The confirmed arms as rows of evaluations; none where the validation was of a part of the split or the data set is not recorded."""
    data, config = meta.get("data") or {}, (meta.get("config") or {}).get("data") or {}
    split = config.get("val_split", "val")
    n = ((data.get("splits") or {}).get(split) or {}).get("sentences")
    if config.get("val_limit") is not None or not data.get("dataset") or n is None:
        return []
    name = ((meta.get("config") or {}).get("model") or {}).get("name", "")
    where = {
        "dataset": data["dataset"],
        "split_by": data.get("split_by"),
        "split": split,
        "protocol": "square",
        "size": config.get("size"),
        "n": n,
    }
    return [
        {
            "model": f"{name} {a['arm']}, mean of {a['seeds']} seeds".strip(),
            "origin": MEASURED,
            **where,
            **{k: a[k] for k in SCORES},
            "source": "arms",
        }
        for a in arms
        if a["seeds"]
    ]


def published(rows: list[dict]) -> list[dict]:
    """Published rows of the data sets, splits and protocols that are in `rows`, told by name and by the number of sentences."""
    known = yaml.safe_load(Path(__file__).with_name("published.yaml").read_text("utf-8"))
    places = dict.fromkeys(
        (r["dataset"], r["split_by"], r["split"], r["protocol"], r["n"]) for r in rows
    )
    found = []
    for dataset, split_by, split, protocol, n in places:
        key = f"{dataset}/{split_by}"
        if (known["sentences"].get(key) or {}).get(split) != n:
            continue
        for m in known["methods"]:
            scores = (m["scores"].get(key) or {}).get(split)
            if scores and m["protocol"] == protocol:
                where = {
                    "dataset": dataset,
                    "split_by": split_by,
                    "split": split,
                    "protocol": protocol,
                    "size": m["size"],
                    "n": n,
                }
                given = {k: scores[k] / 100 if k in scores else math.nan for k in SCORES}
                found.append(
                    {
                        "model": m["method"],
                        "origin": PUBLISHED,
                        **where,
                        **given,
                        "source": m["source"],
                    }
                )
    return found


def beside(rows: list[dict]) -> list[dict]:
    """The rows with the published ones of the same place after them, by data set, split and protocol."""
    places = list(
        dict.fromkeys((r["dataset"], r["split_by"], r["split"], r["protocol"]) for r in rows)
    )
    return sorted(
        [*rows, *published(rows)],
        key=lambda r: places.index((r["dataset"], r["split_by"], r["split"], r["protocol"])),
    )


def path_rows(trials: list[dict]) -> list[dict]:
    """The settings of each trial of a population, or along a population's path, by the epochs done when they began."""
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


def importance_rows(trials: list[dict]) -> list[dict]:
    """How far each varied parameter alone orders an arm's search trials by val/mIoU; only of arms that vary several, with 4 trials or more.

    Read at the last epoch that all of the arm's trials (but the failed) reached. Of numbers: Spearman's rank correlation, its square as the
    share of the variance of ranks, and its p. Of anything else: H / (n - 1) of Kruskal and Wallis as that share, and its p.
    """
    rows = []
    for arm in numbers.arms_of(trials, {}):
        mine = [
            t
            for t in trials
            if t["arm"] == arm and t["stage"] == "search" and t["state"] != "failed"
        ]
        epoch = min(map(numbers.epochs_of, mine), default=0)
        scored = [
            (t.get("params") or {}, numbers.number(e.get("val/mIoU")))
            for t in mine
            for e in t.get("history") or []
            if e["epoch"] == epoch
        ]
        scored = [(params, score) for params, score in scored if math.isfinite(score)]
        keys = sorted({k for params, _ in scored for k in params})
        varied = [k for k in keys if len({json.dumps(params.get(k)) for params, _ in scored}) > 1]
        scores = [score for _, score in scored]
        if len(varied) < 2 or len(scored) < FEWEST or len(set(scores)) < 2:
            continue
        for key in varied:
            rows.append(
                {"arm": arm, "parameter": key, "trials": len(scored), "epoch": epoch}
                | _association([p.get(key) for p, _ in scored], scores)
            )
    return sorted(rows, key=lambda r: (r["arm"], -r["share"]))


def _association(values: list, scores: list[float]) -> dict:
    if all(math.isfinite(numbers.number(v)) for v in values):
        found = stats.spearmanr(values, scores)
        return {
            "rank_correlation": float(found.statistic),
            "share": float(found.statistic) ** 2,
            "p": float(found.pvalue),
        }
    groups: dict[str, list[float]] = {}
    for value, score in zip(values, scores, strict=True):
        groups.setdefault(json.dumps(value), []).append(score)
    found = stats.kruskal(*groups.values())
    return {
        "rank_correlation": math.nan,
        "share": float(found.statistic) / (len(scores) - 1),
        "p": float(found.pvalue),
    }


def _read(path: Path) -> dict:
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}
