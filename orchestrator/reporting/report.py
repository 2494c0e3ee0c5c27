"""Write a run's report: one HTML page, and its data as CSV, Markdown and LaTeX.

The report is made from a run folder alone. It shows what a sweep (or a training) found and how
sure that is. Numbers come from `rows` and `evidence`, sentences from `wording`, figures from
`figures`, what the page's script draws from `page.charts`, and the page itself from `page`. It
loads nothing from a network. Scores are shares in [0, 1] in the CSV files and per cent on the page.
"""

import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from markupsafe import Markup

from aml.files import MADE_BY, check_folder, check_own_folder, mark_folder
from orchestrator import evaluation
from orchestrator.reporting import (
    evidence,
    export,
    numbers,
    pareto,
    robust_arms,
    rows,
    significance,
    wording,
)
from orchestrator.reporting.figures import curves, lines, maps, style
from orchestrator.reporting.numbers import Trial
from orchestrator.reporting.page import charts, summary
from orchestrator.reporting.page.fronts import searched_points
from orchestrator.reporting.page.pictures import arm_pictures
from orchestrator.reporting.page.render import render
from orchestrator.reporting.run_folder import load_run
from orchestrator.reporting.summaries import ArmSummary
from orchestrator.utils import atomic_write, ui_command

Tables = dict[str, list[dict]]
"""Rows of each table by the name of its files."""

BASELINES = {
    "champion": "Champion",
    "wrong_sentence": "Champion, another referent's sentence",
    "largest_object": "Largest object, no model",
    "random_object": "Random object, no model",
    "untrained": "Untrained model",
}

KIND = "report"
"""What the marker of a folder says that was filled here; the run's own needs none."""

OPTIONAL = ("robust_arms", "evaluations", "breakdown", "robustness", "importance", "paths")
"""Tables, and sections of the page, that are left out if they would be empty."""


def write_report(
    run_folder: Path, out: Path | None = None, evaluations: Iterable[Path] = ()
) -> Path:
    """Write the page index.html and the tables beside it.

    A sweep gives the tables arms, robust_arms, trials, map, line, importance, paths, curves and
    diagnostics, one that searches by several metrics pareto too; a training gives only curves and
    diagnostics. Evaluations add evaluations, breakdown and
    robustness. Every table is a CSV file; those that a paper shows are written in Markdown and
    LaTeX too.

    Args:
        run_folder: Folder of the run.
        out: Folder to write to; by default report/ in the run's folder.
        evaluations: Folders of evaluations to show besides those in the run's folder.

    Returns:
        The path of the page.

    Raises:
        UserError: The run cannot be read; out is no place for a report, or holds other files.
        NotSaved: The disk takes no more.
    """
    run_folder = Path(run_folder)
    if out is not None:
        check_own_folder(out, "--out", KIND)
    meta, trials, notes = load_run(run_folder)
    if out is None:
        check_folder(run_folder / "report", "the report's folder")
    if meta.get("state") != "done":
        unfinished = (
            f"This {meta['kind']} is not finished (state: {meta.get('state', 'unknown')}). "
            "The page shows what had been written when it was made."
        )
        notes = [unfinished, *notes]
    folders, left_out = evidence.evaluation_folders(run_folder, evaluations)
    notes += left_out
    page, tables = _page_and_tables(run_folder, meta, trials, folders)
    page["notes"] = notes
    if out is None:
        out = run_folder / "report"
    else:
        mark_folder(out, KIND)
    captions = _captions(page, meta)
    page["tables"] = [
        path
        for name in sorted(tables)
        for path in export.write_table(out, name, tables[name], captions.get(name, ""))
    ]
    atomic_write(out / "index.html", render(page).encode())
    return out / "index.html"


def _page_and_tables(
    run_folder: Path, meta: dict, trials: list[Trial], folders: list[Path]
) -> tuple[dict[str, Any], Tables]:
    """Return the template's variables, without notes and file names, and the tables.

    Args:
        run_folder: Folder of the run.
        meta: Content of sweep.json or train.json, as `load_run` returns it.
        trials: Trials of the run.
        folders: Folders of the evaluations to show.
    """
    tables = evidence.evaluation_tables(folders) | {
        "curves": rows.curve_rows(trials, "train/", "val/", "optim/", "time/", "mem/"),
        "diagnostics": rows.curve_rows(trials, "aml/"),
    }
    page = _common_page(run_folder, meta, trials)
    if meta["kind"] == "sweep":
        sweep_page, sweep_tables = _sweep_page(trials, meta)
        page |= sweep_page
        measured = [*sweep_tables["evaluations"], *tables["evaluations"]]
        tables |= sweep_tables | {"evaluations": measured}
    else:
        page |= _training_page(trials, meta)
    tables["evaluations"] = evidence.with_published(tables["evaluations"])
    tables = {name: table for name, table in tables.items() if table or name not in OPTIONAL}
    for name in OPTIONAL:
        page[name] = export.paper_table(name, tables[name]) if name in tables else None
    scores = [(folder.name, *evaluation.read_evaluation(folder)) for folder in folders]
    page["severities"] = curves.severity_figures(
        [(name, metrics, about["splits"]) for name, about, metrics in scores]
    )
    pictures = {p.arm: {"epochs": p.epochs, "urls": p.urls[:-1]} for p in page["pictures"]}
    page["data"] = charts.chart_data(trials, meta, page["arms"], page["robust"])
    page["data"] |= {"pictures": pictures, "searched": page["searched"]}
    return page, tables


# Variables of the template


def _common_page(run_folder: Path, meta: dict, trials: list[Trial]) -> dict[str, Any]:
    """Return the template's variables that every run has."""
    shown, without_picture = arm_pictures(run_folder, trials)
    return {
        "made_by": MADE_BY,
        "title": meta.get("run") or run_folder.name,
        "meta": meta,
        "sweep": meta["kind"] == "sweep",
        "subtitle": subtitle(meta),
        "provenance": provenance(meta),
        "diagnostics": curves.diagnostic_figures(trials),
        "legend": style.legend(numbers.arms_of(trials, {})),
        "pictures": shown,
        "pictureless": without_picture,
    }


def _training_page(trials: list[Trial], meta: dict) -> dict[str, Any]:
    """Return the template's variables of a training, which is the only trial."""
    counted = numbers.counted(trials, numbers.selected(meta))[0]
    score = wording.pct(numbers.last(counted, "val/mIoU"))
    return {
        "verdict": [],
        "summary": [
            f"One training of {counted['epochs']} epochs, not a comparison; "
            f"validation mIoU after {wording.counted_epoch(meta)}: {score}%.",
            *wording.partial_validation(meta),
        ],
        "arms": [],
        "robust": [],
        "pareto": None,
        "searched": None,
        "curves": [
            {"svg": curves.curves_figure(key, trials, factor, True), "text": ""}
            for key, factor in (("val/mIoU", 100), ("val/oIoU", 100), ("train/loss", 1))
            if numbers.mean_curve(trials, key)
        ],
    }


def _sweep_page(trials: list[Trial], meta: dict) -> tuple[dict[str, Any], Tables]:
    """Return the template's variables of a sweep, and its tables.

    The table evaluations holds the arms only if published results can stand beside them.
    """
    arms = rows.arm_summaries(trials, meta)
    robust = robust_arms.robust_scores(trials, meta)
    cells = rows.map_cells(trials)
    full = int(meta.get("epochs") or max(map(numbers.epochs_of, trials), default=0))
    points = rows.line_points(trials, full)
    trial_rows = rows.trial_rows(trials)
    own = evidence.arm_evaluation_rows(arms, meta)
    counted = numbers.counted(trials, numbers.selected(meta))
    objectives = pareto.objectives_of(meta)
    settings = pareto.search_fronts(trials, counted, meta)
    tables: Tables = {
        "arms": [arm.row() for arm in arms],
        "robust_arms": [score.row() for score in robust],
        "map": [cell.row() for cell in cells],
        "line": [point.row() for point in points],
        "trials": trial_rows,
        "importance": evidence.importance_rows(trials),
        "paths": evidence.config_history_rows(trials),
        "evaluations": own if evidence.published_rows(own) else [],
    }
    if settings:
        tables["pareto"] = [setting.row(objectives) for setting in settings]
    scored = [a for a in arms if a.seeds]
    page = {
        "arms": arms,
        "trials": trial_rows,
        "verdict": summary.verdict(arms, robust),
        "better": summary.BETTER,
        "summary": [
            *summary.sentences(arms, meta),
            *robust_arms.robust_summary(robust, meta),
            *pareto.front_lines(settings, objectives),
        ],
        "robust": robust,
        "pareto": pareto.front_table(settings, objectives) if settings else None,
        "searched": searched_points(settings, objectives) if settings else None,
        "robust_figures": curves.robust_figures(robust),
        "robust_sentences": robust_arms.sentences(meta),
        "baselines": baselines(meta),
        "sentences": wording.count_sentences((meta.get("baselines") or {}).get("n"), meta),
        "best": max(scored, key=lambda a: a.mIoU.mean).arm if scored else None,
        "varied": sorted({k for t in trials for k in numbers.other_params(t)}),
        "maps": maps.map_figures(cells, arms),
        "cost": curves.cost_figures(arms),
        "lines": lines.line_figures(points),
        "line_notes": wording.line_notes(points),
        "noise": _seed_noise(arms, counted),
        "counted": wording.counted_epoch(meta),
        "curves": curves.curve_figures(trials),
        "failed": [t for t in trial_rows if t["state"] == "failed"],
        "stopped": _stop_reasons(trial_rows),
    }
    return page, tables


def _seed_noise(arms: list[ArmSummary], trials: list[Trial]) -> float:
    """Return the standard deviation of val/mIoU over the seeds of an arm, pooled over arms."""
    done = [t for t in trials if t["stage"] == "confirm" and t["state"] == "done"]
    return significance.pooled_sd(
        [numbers.last(t, "val/mIoU") for t in done if t["arm"] == a.arm] for a in arms
    )


def _stop_reasons(trial_rows: list[dict]) -> str:
    """Count the stopped trials by what stopped them."""
    reasons = [t["stopped_by"] or "unknown" for t in trial_rows if t["state"] == "stopped"]
    return ", ".join(f"{reasons.count(r)} by {r}" for r in sorted(set(reasons)))


def _captions(page: dict[str, Any], meta: dict) -> dict[str, str]:
    """Return the captions of the tables for papers, by table."""
    scored = [a for a in page.get("arms") or [] if a.seeds]
    equality = "No arm is confirmed."
    epoch = wording.counted_epoch(meta)
    if scored:
        equality = wording.equality(scored, wording.matched_quantity(meta))
    return {
        "arms": f"{page['title']}: validation scores in %, {epoch}, mean over seeds "
        f"with 95% t interval; differences paired by seed. {equality}",
        "robust_arms": robust_arms.table_caption(meta),
        "evaluations": "Scores in %. Rows marked published are their authors', not measured here; "
        "the square protocol scores at the size given.",
        "breakdown": "Scores in % by kind of sentence and referent, uncorrupted pictures.",
        "robustness": "Scores in %, mean over severities; drop: share of the uncorrupted score "
        "that is lost.",
        "importance": "How far a parameter alone orders an arm's search trials by validation mIoU.",
        "paths": "Settings that changed while a trial trained, by the epochs done.",
    }


def subtitle(meta: dict) -> list[str]:
    """Return the parts of the line under the title: kind, state, times, amount of data."""
    times = [
        time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds))
        for seconds in (meta.get("started"), meta.get("ended"))
        if seconds
    ]
    splits = (meta.get("data") or {}).get("splits") or {}
    return [
        meta["kind"],
        meta.get("state", "unknown"),
        *([" to ".join(times) + " UTC"] if times else []),
        *(f"{name}: {split.get('sentences', '?')} sentences" for name, split in splits.items()),
    ]


def provenance(meta: dict) -> list[tuple[str, object]]:
    """Return (name, value) pairs that say where the numbers come from, without unknown values."""
    data = meta.get("data") or {}
    mlflow = meta.get("mlflow") or {}
    command = meta.get("command")
    dirty = " with uncommitted changes" if meta.get("git_dirty") else ""
    versions = (meta.get("versions") or {}).items()
    counts = [
        f"{name}: " + ", ".join(f"{v} {k}" for k, v in split.items())
        for name, split in (data.get("splits") or {}).items()
    ]
    store = str(mlflow.get("uri") or "none")
    has_pages = store == "none" or store.startswith("http")
    open_store = "" if has_pages else Markup("<code>{}</code>").format(ui_command(store))
    ids = [f"{k} {mlflow[k]}" for k in ("experiment_id", "run_id") if mlflow.get(k)]
    pairs = [
        ("command", Markup("<code>{}</code>").format(command) if command else ""),
        ("code", (meta.get("git_sha") or "") + dirty),
        ("versions", ", ".join(f"{k} {v}" for k, v in versions)),
        ("data", data.get("uri")),
        ("data fingerprint", data.get("fingerprint")),
        ("data counts", "; ".join(counts)),
        ("MLflow store", mlflow.get("uri")),
        ("MLflow ids", ", ".join(ids)),
        ("in MLflow", open_store),
    ]
    return [(name, value) for name, value in pairs if value]


def baselines(meta: dict) -> list[dict]:
    """Return the bars of the baselines, champion first.

    Returns:
        For each baseline its key, its text, its mIoU and its width in per cent of the longest
        bar. If a baseline was measured on a part of the sentences, `same` says the champion's
        mIoU on that part; else it is empty. `same_mIoU` is the champion's mIoU on the same
        sentences.
    """
    known = meta.get("baselines") or {}
    scores = {key: numbers.number((known.get(key) or {}).get("mIoU")) for key in BASELINES}
    scores = {key: score for key, score in scores.items() if math.isfinite(score)}
    arm = (meta.get("champion") or {}).get("arm")
    longest = max(scores.values(), default=0) or 1
    bars = []
    for key, score in scores.items():
        text = BASELINES[key]
        if key == "champion" and arm:
            text += f" ({arm})"
        if key == "untrained" and score < 0.001:
            text += " (predicts nothing)"
        n = known[key].get("n")
        on_part = numbers.number(known[key].get("champion_mIoU"))
        same = ""
        same_score = scores.get("champion", math.nan)
        if n and math.isfinite(on_part):
            same = f"the champion on the same {n} sentences: {wording.pct(on_part)}"
            same_score = on_part
        bars.append(
            {
                "key": key,
                "text": text,
                "mIoU": score,
                "width": round(100 * score / longest, 1),
                "same": same,
                "same_mIoU": same_score,
            }
        )
    return bars
