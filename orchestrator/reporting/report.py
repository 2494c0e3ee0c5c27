"""One HTML page and its data as CSV, Markdown and LaTeX, from a run folder alone: what a sweep (or a training) found, and how sure that is.

Numbers and sentences come from `orchestrator.statistics`, the page from report.html.j2; plots from
`orchestrator.plots`; here is reading. Nothing is loaded from a network: plots are inline SVG, pictures base64. Scores are shares in [0, 1] in the CSV
files and per cent on the page.
"""

import base64
import json
import math
import time
from collections.abc import Iterable
from pathlib import Path

import jinja2
import yaml
from markupsafe import Markup

from aml.errors import UserError
from orchestrator import evaluation, storage
from orchestrator.reporting import evidence, export, numbers, significance, wording
from orchestrator.reporting import rows as rows_module
from orchestrator.reporting.figures import curves, maps, style
from orchestrator.utils import redact_all

BASELINES = {
    "champion": "Champion",
    "wrong_sentence": "Champion, another referent's sentence",
    "largest_object": "Largest object, no model",
    "random_object": "Random object, no model",
    "untrained": "Untrained model",
}

OPTIONAL = ("evaluations", "breakdown", "robustness", "importance", "paths")

"""Tables, and sections of the page, that are left out where they would be empty."""


def write_report(
    run_folder: Path, out: Path | None = None, evaluations: Iterable[Path] = ()
) -> Path:
    """Write OUT/index.html and the tables beside it (OUT: run_folder/report by default) and return the page's path.

    A sweep gives arms, trials, map, line, importance, paths, curves and diagnostics.csv; a training run only the last two. Evaluations in the run's
    folder, and those named, give evaluations, breakdown and robustness.csv. What a paper shows is there as .md and .tex too.
    Raises UserError where the folder holds neither sweep.json nor train.json, or a file in it cannot be read.
    """
    run_folder = Path(run_folder)
    out = Path(out) if out else run_folder / "report"
    meta, trials, notes = load(run_folder)
    if meta.get("state") != "done":
        notes.insert(
            0,
            f"This {meta['kind']} is not finished (state: {meta.get('state', 'unknown')}). The page shows what had been written when it was made.",
        )
    tables = {
        "curves": rows_module.curve_rows(trials, "train/", "val/", "optim/", "time/", "mem/"),
        "diagnostics": rows_module.curve_rows(trials, "aml/"),
    }
    page = {
        "title": meta.get("run") or run_folder.name,
        "meta": meta,
        "sweep": meta["kind"] == "sweep",
        "notes": notes,
        "facts": facts(meta),
        "provenance": provenance(meta),
        "diagnostics": curves.diagnostic_figures(trials),
        "legend": style.legend(numbers.arms_of(trials, {})),
    }
    places = evidence.folders(run_folder, list(evaluations))
    tables |= evidence.evaluation_tables(places)
    page["pictures"], page["pictureless"] = pictures(run_folder, trials)
    if page["sweep"]:
        arms, cells = rows_module.arm_rows(trials, meta), rows_module.map_rows(trials)
        full = int(meta.get("epochs") or max(map(numbers.epochs_of, trials), default=0))
        line = rows_module.line_rows(trials, full)
        tables |= {
            "arms": arms,
            "map": cells,
            "line": line,
            "trials": rows_module.trial_rows(trials),
            "importance": evidence.importance_rows(trials),
        }
        tables["paths"] = evidence.path_rows(trials)
        if evidence.published(own := evidence.arm_rows(arms, meta)):
            tables["evaluations"] = [*own, *tables["evaluations"]]
        page |= sweep_page(arms, cells, line, tables["trials"], trials, meta)
    else:
        only = trials[0]
        page |= {
            "summary": [
                f"One training of {only['epochs']} epochs, not a comparison; validation mIoU after "
                f"the last epoch: {wording.pct(numbers.last(only, 'val/mIoU'))}%."
            ],
            "curves": [
                {"svg": curves.curves_figure(key, trials, factor, True), "text": ""}
                for key, factor in (("val/mIoU", 100), ("val/oIoU", 100), ("train/loss", 1))
                if numbers.mean_curve(trials, key)
            ],
        }
    tables["evaluations"] = evidence.beside(tables["evaluations"])
    tables = {name: rows for name, rows in tables.items() if rows or name not in OPTIONAL}
    page |= {
        name: export.shown(name, tables[name]) if name in tables else None for name in OPTIONAL
    }
    page["severities"] = curves.severity_figures(
        [
            (p.name, metrics, about["splits"])
            for p, (about, metrics) in ((p, evaluation.read_sentence_scores(p)) for p in places)
        ]
    )
    out.mkdir(parents=True, exist_ok=True)
    written = [
        path
        for name in sorted(tables)
        for path in export.write(out, name, tables[name], captions(page, meta).get(name, ""))
    ]
    source = Path(__file__).with_suffix(".html.j2").read_text(encoding="utf-8")
    words = {
        "num": wording.num,
        "pct": wording.pct,
        "points": wording.points,
        "setting": wording.setting_text,
        "brief": wording.brief,
    }
    pages = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    html = pages.from_string(source).render(**page, **words, tables=written)
    (out / "index.html").write_text(html, encoding="utf-8")
    return out / "index.html"


def sweep_page(
    arms: list[dict],
    cells: list[dict],
    line: list[dict],
    rows: list[dict],
    trials: list[dict],
    meta: dict,
) -> dict:
    """What the template shows of a sweep beside what it shows of any run."""
    reasons = [t["stopped_by"] or "unknown" for t in rows if t["state"] == "stopped"]
    scored = [a for a in arms if a["seeds"]]
    done = [t for t in trials if t["stage"] == "confirm" and t["state"] == "done"]
    return {
        "arms": arms,
        "trials": rows,
        "summary": wording.summary(arms, meta),
        "baselines": baselines(meta),
        "sentences": (meta.get("baselines") or {}).get("n"),
        "best": max(scored, key=lambda a: a["mIoU"])["arm"] if scored else None,
        "varied": sorted({k for t in trials for k in numbers.other_params(t)}),
        "maps": maps.map_figures(cells, arms),
        "cost": curves.cost_figures(arms),
        "lines": curves.line_figures(line),
        "line_notes": wording.line_notes(line),
        "noise": significance.pooled_sd(
            [numbers.last(t, "val/mIoU") for t in done if t["arm"] == a["arm"]] for a in arms
        ),
        "curves": curves.curve_figures(trials),
        "failed": [t for t in rows if t["state"] == "failed"],
        "stopped": ", ".join(f"{reasons.count(r)} by {r}" for r in sorted(set(reasons))),
    }


def load(folder: Path) -> tuple[dict, list[dict], list[str]]:
    """(sweep.json or train.json with `kind` and `config`, trials, notes); of two lines on a trial the later counts."""
    path = next((folder / n for n in ("sweep.json", "train.json") if (folder / n).is_file()), None)
    if path is None:
        raise UserError(
            f"{folder} holds neither sweep.json nor train.json, and a report needs the folder of one run: `python -m orchestrator runs` lists them."
        )
    config = folder / "config.yaml"
    try:
        meta = redact_all(json.loads(path.read_text(encoding="utf-8")))
        meta["config"] = (
            yaml.safe_load(config.read_text(encoding="utf-8")) if config.is_file() else None
        ) or {}
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(
            f"A file of {folder} cannot be read ({error}): restore it, or use --fresh."
        ) from error
    if path.name == "train.json":
        history = meta.get("history") or []
        trial = {
            "trial": meta.get("run", folder.name),
            "arm": meta.get("arm") or "training",
            "stage": "train",
            "history": history,
            "seed": meta.get("seed", ""),
            "state": "done",
            "epochs": len(history),
        }
        return {**meta, "kind": "train"}, [trial], []
    ledger, trials, bad = folder / "ledger.jsonl", {}, 0
    for text in ledger.read_text(encoding="utf-8").splitlines() if ledger.is_file() else []:
        try:
            trial = redact_all(json.loads(text))
            if {"arm", "stage", "state"} - trial.keys():
                raise KeyError
            trials[trial["trial"]] = trial
        except (ValueError, AttributeError, KeyError):
            bad += 1
    notes = (
        [f"Lines of ledger.jsonl that could not be read and are left out: {bad}."] if bad else []
    )
    return {**meta, "kind": "sweep"}, list(trials.values()), notes


def captions(page: dict, meta: dict) -> dict[str, str]:
    """What stands under a table where it leaves this page."""
    scored = [a for a in page.get("arms") or [] if a["seeds"]]
    equal = (
        wording.equality(
            scored[0], scored, (meta["config"].get("search") or {}).get("equal") or "epochs"
        )
        if scored
        else "No arm is confirmed."
    )
    return {
        "arms": f"{page['title']}: validation scores in %, last epoch, mean over seeds with 95% t interval; differences paired by seed. {equal}",
        "evaluations": "Scores in %. Rows marked published are their authors', not measured here; the square protocol scores at the size given.",
        "breakdown": "Scores in % by kind of sentence and referent, uncorrupted pictures.",
        "robustness": "Scores in %, mean over severities; drop: share of the uncorrupted score that is lost.",
        "importance": "How far a parameter alone orders an arm's search trials by validation mIoU.",
        "paths": "Settings that changed while a trial trained, by the epochs done.",
    }


def facts(meta: dict) -> list[str]:
    """The line under the title: kind, state, when, how much data."""
    times = [
        time.strftime("%Y-%m-%d %H:%M", time.gmtime(s))
        for s in (meta.get("started"), meta.get("ended"))
        if s
    ]
    splits = (meta.get("data") or {}).get("splits") or {}
    return [
        meta["kind"],
        meta.get("state", "unknown"),
        *([" to ".join(times) + " UTC"] if times else []),
        *(f"{name}: {split.get('sentences', '?')} sentences" for name, split in splits.items()),
    ]


def provenance(meta: dict) -> list[tuple[str, object]]:
    """(name, value) pairs that say where the numbers come from; what is not known is left out."""
    data, flow = meta.get("data") or {}, meta.get("mlflow") or {}
    splits = (data.get("splits") or {}).items()
    counts = [
        f"{name}: " + ", ".join(f"{v} {k}" for k, v in split.items()) for name, split in splits
    ]
    code = (meta.get("git_sha") or "") + (
        " with uncommitted changes" if meta.get("git_dirty") else ""
    )
    pairs = [
        (
            "command",
            Markup("<code>{}</code>").format(meta["command"]) if meta.get("command") else "",
        ),
        ("code", code),
        ("versions", ", ".join(f"{k} {v}" for k, v in (meta.get("versions") or {}).items())),
        ("data", data.get("uri")),
        ("data fingerprint", data.get("fingerprint")),
        ("data counts", "; ".join(counts)),
        ("MLflow store", flow.get("uri")),
        (
            "MLflow ids",
            ", ".join(f"{k} {flow[k]}" for k in ("experiment_id", "run_id") if flow.get(k)),
        ),
    ]
    return [(k, v) for k, v in pairs if v]


def baselines(meta: dict) -> list[dict]:
    """The bars of the baseline strip, champion first: key, text, mIoU, width (per cent of the longest) and of a baseline measured on a
    part of the sentences `same`, the champion's mIoU on that part, in words, with `same_mIoU` (else the champion's on all)."""
    known = meta.get("baselines") or {}
    scores = {k: numbers.number((known.get(k) or {}).get("mIoU")) for k in BASELINES}
    scores = {k: v for k, v in scores.items() if math.isfinite(v)}
    arm, bars = (meta.get("champion") or {}).get("arm"), []
    for key, value in scores.items():
        n, own = known[key].get("n"), numbers.number(known[key].get("champion_mIoU"))
        part = bool(n) and math.isfinite(own)
        text = BASELINES[key] + (f" ({arm})" if key == "champion" and arm else "")
        bars.append(
            {
                "key": key,
                "text": text
                + (" (predicts nothing)" if key == "untrained" and value < 0.001 else ""),
                "mIoU": value,
                "width": round(100 * value / (max(scores.values()) or 1), 1),
                "same": f"the champion on the same {n} sentences: {wording.pct(own)}"
                if part
                else "",
                "same_mIoU": own if part else scores.get("champion", math.nan),
            }
        )
    return bars


def pictures(folder: Path, trials: list[dict]) -> tuple[list[dict], list[str]]:
    """({arm, data (base64 PNG), text} of one trial an arm: confirmed and done first; the arms without a picture)."""
    stages = {"confirm": "confirmation", "search": "a search trial: none of this arm is confirmed"}
    parts, missing = [], []
    for arm in numbers.arms_of(trials, {}):
        mine = [t for t in trials if t["arm"] == arm and t["state"] != "failed"]
        for t in sorted(
            mine,
            key=lambda t: (
                t["stage"] != "confirm",
                t["state"] != "done",
                numbers.number(t.get("seed")),
            ),
        ):
            place = folder if t["stage"] == "train" else folder / "trials" / Path(t["trial"]).name
            storage.try_download(
                place, wanted=storage.without_checkpoints, wait=False
            )  # without it the page has one picture less
            if found := sorted((place / "pictures").glob("*.png")):
                seed = f"seed {t['seed']}" if t.get("seed", "") != "" else ""
                text = [t["trial"], stages.get(t["stage"]), seed, found[-1].stem]
                parts.append(
                    {
                        "arm": arm,
                        "data": base64.b64encode(found[-1].read_bytes()).decode(),
                        "text": ", ".join(filter(None, text)),
                    }
                )
                break
        else:
            missing.append(arm)
    return parts, missing
