"""Tables as files: CSV with every column, Markdown and LaTeX (booktabs) with the columns a paper shows."""

import csv
import re
from collections.abc import Callable
from pathlib import Path

from orchestrator.reporting import wording

FIRST = {"arms": "arm", "map": "arm", "line": "line_arm"}

"""The column that a table without rows is headed by; `trial` for the others."""

Column = tuple[str, Callable[[dict], str]]


def _interval(row: dict, mean: str, low: str, high: str, show: Callable) -> str:
    return show(row[mean]) + (
        f" ({show(row[low])} to {show(row[high])})" if wording.num(row[low]) != "–" else ""
    )


def _pct(key: str) -> Column:
    return key, lambda row: wording.pct(row.get(key))


PAPER: dict[str, list[Column]] = {
    "arms": [
        ("arm", lambda r: r["arm"]),
        ("τ", lambda r: wording.num(r["tau"])),
        ("ρ", lambda r: wording.num(r["rho"])),
        ("seeds", lambda r: str(r["seeds"])),
        ("epochs", lambda r: str(r["epochs"])),
        ("mIoU", lambda r: _interval(r, "mIoU", "mIoU_low", "mIoU_high", wording.pct)),
        *map(_pct, ("oIoU", "P@0.5", "P@0.7", "P@0.9")),
        (
            "Δ off",
            lambda r: _interval(r, "vs_off_mean", "vs_off_low", "vs_off_high", wording.points),
        ),
        (
            "Δ random",
            lambda r: _interval(
                r, "vs_random_mean", "vs_random_low", "vs_random_high", wording.points
            ),
        ),
        ("settings tried", lambda r: str(r["settings_tried"])),
        ("cost of a step", lambda r: wording.num(r["cost_ratio"])),
    ],
    "evaluations": [
        ("model", lambda r: r["model"]),
        ("origin", lambda r: r["origin"]),
        ("data", lambda r: f"{r['dataset']} ({r['split_by']})"),
        ("split", lambda r: r["split"]),
        ("protocol", lambda r: r["protocol"] + (f", {r['size']} px" if r["size"] else "")),
        *map(_pct, ("mIoU", "oIoU", "P@0.5", "P@0.7", "P@0.9")),
        ("source", lambda r: r["source"]),
    ],
    "breakdown": [
        ("evaluation", lambda r: r["evaluation"]),
        ("split", lambda r: r["split"]),
        ("by", lambda r: r["by"]),
        ("group", lambda r: r["group"]),
        ("sentences", lambda r: str(r["n"])),
        *map(_pct, ("mIoU", "oIoU", "P@0.5")),
    ],
    "robustness": [
        ("evaluation", lambda r: r["evaluation"]),
        ("split", lambda r: r["split"]),
        ("corruption", lambda r: r["corruption"]),
        ("severities", lambda r: r["severities"]),
        ("mIoU", lambda r: wording.pct(r["mIoU"])),
        ("drop of mIoU", lambda r: wording.pct(r["drop_mIoU"])),
        ("oIoU", lambda r: wording.pct(r["oIoU"])),
        ("drop of oIoU", lambda r: wording.pct(r["drop_oIoU"])),
        ("mIoU over baseline", lambda r: wording.points(r["over_baseline_mIoU"])),
        ("drop relative to baseline's", lambda r: wording.num(r["relative_drop_mIoU"])),
    ],
    "importance": [
        ("arm", lambda r: r["arm"]),
        ("parameter", lambda r: r["parameter"]),
        ("trials", lambda r: str(r["trials"])),
        ("epoch", lambda r: str(r["epoch"])),
        ("rank correlation", lambda r: wording.num(r["rank_correlation"], sign=True)),
        ("share of rank variance", lambda r: wording.num(r["share"])),
        ("p", lambda r: wording.num(r["p"], 3)),
    ],
    "paths": [
        ("trial", lambda r: r["trial"]),
        ("from epoch", lambda r: str(r["from_epoch"])),
        ("settings", lambda r: r["settings"]),
        ("mIoU at the end", lambda r: wording.pct(r["mIoU"])),
    ],
}

"""Of the tables that a paper shows: header and text of each column. Scores are per cent there."""


def shown(name: str, rows: list[dict]) -> tuple[list[str], list[list[str]]]:
    """Headers and cells of a table in PAPER."""
    return [head for head, _ in PAPER[name]], [
        [text(row) for _, text in PAPER[name]] for row in rows
    ]


def write(out: Path, name: str, rows: list[dict], caption: str = "") -> list[str]:
    """OUT/<name>.csv, and of a table in PAPER that has rows .md and .tex.   -> the files' names"""
    write_csv(out / f"{name}.csv", rows)
    if name not in PAPER or not rows:
        return [f"{name}.csv"]
    heads, cells = shown(name, rows)
    (out / f"{name}.md").write_text(markdown(heads, cells, caption), encoding="utf-8")
    (out / f"{name}.tex").write_text(latex(heads, cells, caption, f"tab:{name}"), encoding="utf-8")
    return [f"{name}.{kind}" for kind in ("csv", "md", "tex")]


def write_csv(path: Path, rows: list[dict]) -> None:
    """A header and the rows; NaN and None are empty. Without rows the header is the table's first column alone."""
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(rows[0] if rows else [FIRST.get(path.stem, "trial")])
        out.writerows([["" if v is None or v != v else v for v in row.values()] for row in rows])


def markdown(heads: list[str], cells: list[list[str]], caption: str = "") -> str:
    lines = [heads, ["---"] * len(heads), *cells]
    text = "".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines
    )
    return text + (f"\n{caption}\n" if caption else "")


def latex(heads: list[str], cells: list[list[str]], caption: str, label: str) -> str:
    """A table environment in booktabs' style; the first column to the left, the others to the right."""
    rows = [" & ".join(map(escaped, line)) + r" \\" for line in (heads, *cells)]
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escaped(caption)}}}",
            rf"\label{{{label}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}",
            r"\toprule",
            rows[0],
            r"\midrule",
            *rows[1:],
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def escaped(text: str) -> str:
    """Plain text as LaTeX."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"} | {
        c: f"\\{c}" for c in "&%$#_{}"
    }
    symbols = {
        "τ": r"$\tau$",
        "ρ": r"$\rho$",
        "Δ": r"$\Delta$",
        "−": "$-$",
        "–": "--",
        "×": r"$\times$",
    }
    known = special | symbols
    return re.sub("|".join(map(re.escape, known)), lambda m: known[m.group()], text)
