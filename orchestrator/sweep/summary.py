"""The last lines of a sweep, and the description of its run in MLflow: what came out, in per cent.

Both are made from the run folder alone and say the same numbers as the report.
"""

import json
import math
from typing import Any
from urllib.parse import quote

from orchestrator import data, reporting, search, storage
from orchestrator.reporting import ArmSummary, Difference, Interval, RobustScore
from orchestrator.utils import TRAINING_PAGES, called_as, mlflow_pages, ui_command

BASELINES = {
    "random_object": "random object",
    "largest_object": "largest object",
    "untrained": "untrained model",
    "wrong_sentence": "another referent's sentence",
}

CLEAR = "*"
"""Stands behind an interval that leaves out zero, before any correction."""

LONGEST = 7900
"""Characters of a description; MLflow refuses tags above 8,000."""

MOST_COMPARED = 60
"""Runs beyond which the comparison of MLflow is opened with the confirmation alone."""

Rows = list[list[str]]
"""Cells of a table by row; the first row names the columns."""


def sweep_summary(run: storage.Run) -> str:
    """Return the result of a sweep, and what to type next, as lines of a terminal."""
    state = run.state
    if "champion" not in state:
        return f"{run.name}: {state.get('state')}"
    records = run.ledger()
    lines = ["", f"{run.name}: {_counts(records)}"]
    failed = (record for record in records if record["state"] == "failed")
    lines += [f"  {record['trial']} failed: {record['error']}" for record in failed]
    for title, rows in tables(run, records):
        lines += ["", title, *aligned(rows)]
    lines += ["", *verdicts(run, records), *_front(run, records), "", *_champion_lines(run)]
    if state.get("budget"):
        lines.append(search.budget_message(state["budget"]))
    return "\n".join([*lines, *_cost_lines(state), "", *_next_lines(run, records)])


def sweep_description(run: storage.Run) -> str:
    """Return what MLflow shows above a sweep's parent run: links and result, in Markdown."""
    state = run.state
    if "champion" not in state:
        return ""
    records = run.ledger()
    mlflow = state.get("mlflow") or {}
    links = [f"[champion](#/models/{quote(state['name'])})"]
    if mlflow.get("run_id"):
        place = f"#/experiments/{mlflow['experiment_id']}/runs/{mlflow['run_id']}"
        links.insert(0, f"[report]({place}/artifacts/report/index.html)")
    if page := comparison_page(mlflow, records):
        links.insert(0, f"[all trials compared]({page})")
    # MLflow folds what follows the first lines.
    parts = [f"{_counts(records)} · {' · '.join(links)}"]
    found = [*verdicts(run, records), *_front(run, records), *_champion_lines(run)]
    parts.append("  \n".join(found))
    for title, rows in tables(run, records):
        parts += [f"**{title}**", _markdown(rows)]
    parts += _cost_lines(state)
    return "\n\n".join(parts)[:LONGEST]


def scored_part(run: storage.Run) -> str:
    """Return which sentences validate, as "the first 800 of 2,208 sentences of val"."""
    return data.scored_sentences(run.experiment().data, run.state["data"])


def comparison_page(mlflow: dict[str, Any], records: list[dict]) -> str:
    """Return the place in the MLflow UI that compares a sweep's trials; "" where unknown.

    Args:
        mlflow: Entry `mlflow` of sweep.json.
        records: Ledger records of the trials.
    """
    children = mlflow.get("children") or {}
    chosen = [r["trial"] for r in records if r["trial"] in children]
    if len(chosen) > MOST_COMPARED:
        chosen = [r["trial"] for r in records if r["stage"] == "confirm" and r["trial"] in children]
    if not chosen:
        return ""
    runs = json.dumps([children[trial] for trial in dict.fromkeys(chosen)], separators=(",", ":"))
    experiments = json.dumps([mlflow["experiment_id"]])
    return f"#/compare-runs?runs={quote(runs)}&experiments={quote(experiments)}&{TRAINING_PAGES}"


def _scores(run: storage.Run, records: list[dict]) -> tuple[list[ArmSummary], list[RobustScore]]:
    """Return the confirmed arms, clean and under corruption."""
    meta = run.state | {"config": run.experiment().to_dict()}
    trials = reporting.add_robustness(records, meta)
    arms = [arm for arm in reporting.arm_summaries(trials, meta) if arm.seeds]
    return arms, reporting.robust_scores(trials, meta)


def _front(run: storage.Run, records: list[dict]) -> list[str]:
    """Return a line on the Pareto fronts of a search by several metrics; [] of any other."""
    trials = reporting.add_robustness(records, run.state)
    counted = reporting.counted(trials, run.experiment().evaluate.select)
    settings = reporting.search_fronts(trials, counted, run.state)
    return reporting.front_lines(settings, reporting.objectives_of(run.state))


def _counts(records: list[dict]) -> str:
    """Return how many trials ended how: 9 trials done, 5 stopped by asha, 1 failed."""
    counts: dict[str, int] = {}
    for record in records:
        how = record["state"]
        if how == "stopped":
            how += f" by {record['stopped_by'].replace('asha', 'ASHA')}"
        counts[how] = counts.get(how, 0) + 1
    texts = [f"{n} {how}" for how, n in sorted(counts.items())]
    return f"{len(records)} trials: {', '.join(texts)}"


def tables(run: storage.Run, records: list[dict]) -> list[tuple[str, Rows]]:
    """Return title and rows of the table of arms, and of the one under corruption."""
    arms, robust = _scores(run, records)
    if not arms:
        return []
    seeds = sorted({arm.seeds for arm in arms})
    over = f"{' or '.join(map(str, seeds))} fresh seed{'s' * (seeds != [1])}"
    clean: Rows = [["arm", "mIoU", "to off", "to random"]]
    for arm in arms:
        i = arm.mIoU
        ends = f" ({_pct(i.low)} to {_pct(i.high)})" if i.n > 1 else ""
        differences = [_difference(d) for d in _references(arm).values()]
        clean.append([arm.arm, f"{_pct(i.mean)}{ends}", *differences])
    title = f"mIoU in % on {scored_part(run)}, mean of {over} with 95% t interval"
    found = [(title, _trimmed(clean))]
    if robust:
        names = list(dict.fromkeys(s.corruption for s in robust))
        rows: Rows = [["arm", *(n.replace("_", " ") for n in names), "mean to off", "to random"]]
        for name in dict.fromkeys(s.arm for s in robust):
            own = {s.corruption: s for s in robust if s.arm == name}
            mean = own["mean"].differences
            differences = [_difference(mean.get(other)) for other in ("off", "random")]
            rows.append([name, *(_pct(own[n].mIoU.mean) for n in names), *differences])
        severities = dict.fromkeys(s.severities.replace(" ", " and ") for s in robust)
        strengths = "; ".join(filter(None, severities))
        found.append((f"the same under corruption, severity {strengths}", _trimmed(rows)))
    return found


def _references(arm: ArmSummary) -> dict[str, Interval | None]:
    """Return an arm's differences to off and to random; None where it is not compared."""
    return {
        "off": arm.vs_off.interval if arm.arm != "off" else None,
        "random": arm.vs_random.interval if arm.arm not in ("off", "random") else None,
    }


def verdicts(run: storage.Run, records: list[dict]) -> list[str]:
    """Return the report's verdict on the arms as lines, and what its words mean."""
    lines = [f"{what}: {found}" for what, found in reporting.verdict(*_scores(run, records))]
    return [*lines, f"{reporting.BETTER}; more seeds: search.seeds.confirm=N"] if lines else []


def _trimmed(rows: Rows) -> Rows:
    """Return the rows without the columns that hold nothing but a name."""
    kept = [k for k in range(len(rows[0])) if any(row[k] for row in rows[1:])]
    return [[row[k] for k in kept] for row in rows]


def aligned(rows: Rows) -> list[str]:
    """Return the rows as lines whose columns are aligned, the first column to the left."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return [
        "  " + "   ".join(f"{c:{'>' if k else '<'}{widths[k]}}" for k, c in enumerate(row)).rstrip()
        for row in rows
    ]


def _markdown(rows: Rows) -> str:
    lines = [" | ".join(row) for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]]]
    return "\n".join(f"| {line} |" for line in lines)


def _pct(share: float) -> str:
    return f"{100 * share:.1f}" if math.isfinite(share) else "-"


def _difference(d: Interval | Difference | None) -> str:
    """Return a difference in points with its interval, marked where that leaves out zero."""
    if d is None:
        return ""
    mean = d.mean if isinstance(d, Interval) else d.difference
    if not math.isfinite(mean):
        return "-"
    if not math.isfinite(d.low):
        return f"{100 * mean:+.2f} (one seed)"
    mark = CLEAR if d.low > 0 or d.high < 0 else ""
    return f"{100 * mean:+.2f} ({100 * d.low:+.2f} to {100 * d.high:+.2f}){mark}"


def _champion_lines(run: storage.Run) -> list[str]:
    """Return the champion's score beside the baselines', and whether it is below one of them."""
    scores = run.state["baselines"]
    own = scores["champion"]["mIoU"]
    others = ", ".join(f"{name} {_pct(scores[key]['mIoU'])}" for key, name in BASELINES.items())
    lines = [
        f"champion: {run.state['champion']['trial']}, mIoU {_pct(own)} on {scored_part(run)}",
        f"beside it: {others}",
    ]
    below = [
        f"{article} {BASELINES[key]} ({_pct(scores[key]['mIoU'])})"
        for key, article in (("random_object", "a"), ("largest_object", "the"))
        if own < scores[key]["mIoU"]
    ]
    if below:
        lines.append(
            f"THE CHAMPION IS BELOW {' and '.join(below)}: no arm has learned to find the referent "
            "yet, so differences between arms say nothing; train longer, or on more data"
        )
    return lines


def _cost_lines(state: dict) -> list[str]:
    ratios = ", ".join(
        f"{arm} x{cost['ratio']:.3f}" for arm, cost in state["cost"].items() if arm != "off"
    )
    if not ratios:
        return []
    compared = "at equal epochs, not at equal compute"
    if epochs := state.get("epochs_by_arm"):
        epochs_text = ", ".join(f"{arm} {n}" for arm, n in epochs.items())
        compared = f"at epochs of equal cost ({epochs_text})"
    return [f"arms are compared {compared}; FLOPs of a training step against off: {ratios}"]


def _next_lines(run: storage.Run, records: list[dict]) -> list[str]:
    """Return where report, champion and comparison are, and the commands that open them."""
    mlflow = run.state.get("mlflow") or {}
    uri = mlflow.get("uri") or "none"
    champion = run.folder / run.state["champion"]["checkpoint"]
    lines = [
        f"report      {run.folder / 'report' / 'index.html'}   (open it in a browser)",
        f"champion    {champion}   ({called_as()} evaluate | predict | demo)",
    ]
    if (run.folder / search.STUDIES).exists():
        lines.append(f"search      {run.folder / search.STUDIES}   (optuna-dashboard FILE)")
    if uri == "none":
        return lines
    is_server = uri.startswith("http")
    lines.append(f"MLflow      {uri if is_server else ui_command(uri, called_as())}")
    if page := comparison_page(mlflow, records):
        lines.append(f"compare     {mlflow_pages(uri)}/{page}")
    return lines
