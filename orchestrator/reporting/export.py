"""Write tables as files: CSV with every column, Markdown and LaTeX with a paper's columns."""

import csv
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrator.reporting import wording
from orchestrator.utils import atomic_write

FIRST_COLUMN = {"arms": "arm", "map": "arm", "line": "line_arm"}
"""Only column of a table without rows; `trial` for tables that are not listed."""

FORMULA_STARTS = ("=", "+", "-", "@")
"""What a spreadsheet takes for the start of a formula; a quote before it makes it text."""

Row = dict[str, Any]

Column = tuple[str, Callable[[Row], str]]
"""Header of a column, and the function that formats its cell of a row."""


def _text(header: str, key: str | None = None) -> Column:
    return header, lambda row: str(row[key or header])


def _number(header: str, key: str, digits: int = 2) -> Column:
    return header, lambda row: wording.num(row[key], digits)


def _percent(header: str, key: str | None = None) -> Column:
    return header, lambda row: wording.pct(row.get(key or header))


def _with_interval(header: str, mean: str, prefix: str, show: Callable[[object], str]) -> Column:
    """Return a column of means with their interval in parentheses.

    Args:
        header: Header of the column.
        mean: Key of the mean.
        prefix: Beginning of the keys `<prefix>_low` and `<prefix>_high`.
        show: Function that formats the three numbers.
    """

    def cell(row: Row) -> str:
        low = row[f"{prefix}_low"]
        if wording.num(low) == "–":
            return show(row[mean])
        return f"{show(row[mean])} ({show(low)} to {show(row[f'{prefix}_high'])})"

    return header, cell


def _protocol(row: Row) -> str:
    return row["protocol"] + (f", {row['size']} px" if row["size"] else "")


PAPER: dict[str, list[Column]] = {
    "arms": [
        _text("arm"),
        _number("τ", "tau"),
        _number("ρ", "rho"),
        _text("seeds"),
        _text("epochs"),
        _with_interval("mIoU", "mIoU", "mIoU", wording.pct),
        *map(_percent, ("oIoU", "P@0.5", "P@0.7", "P@0.9")),
        _with_interval("Δ off", "vs_off_mean", "vs_off", wording.points),
        _with_interval("Δ random", "vs_random_mean", "vs_random", wording.points),
        _text("settings tried", "settings_tried"),
        _number("cost of a step", "cost_ratio"),
    ],
    "arms_on_splits": [
        _text("split"),
        _text("arm"),
        _text("seeds"),
        _with_interval("mIoU", "mIoU", "mIoU", wording.pct),
        _with_interval("oIoU", "oIoU", "oIoU", wording.pct),
        *map(_percent, ("P@0.5", "P@0.7", "P@0.9")),
        _with_interval("Δ mIoU off", "mIoU_vs_off_mean", "mIoU_vs_off", wording.points),
        _number("p (Holm)", "mIoU_vs_off_p_holm", 3),
        _with_interval("Δ oIoU off", "oIoU_vs_off_mean", "oIoU_vs_off", wording.points),
        _number("p (Holm)", "oIoU_vs_off_p_holm", 3),
        _with_interval("Δ mIoU random", "mIoU_vs_random_mean", "mIoU_vs_random", wording.points),
        _number("p (Holm)", "mIoU_vs_random_p_holm", 3),
    ],
    "robust_arms": [
        _text("arm"),
        _text("corruption"),
        _text("severities"),
        _text("seeds"),
        _with_interval("mIoU", "mIoU", "mIoU", wording.pct),
        _percent("drop", "drop_mIoU"),
        _with_interval("Δ off", "vs_off_mean", "vs_off", wording.points),
        _number("p (Holm)", "vs_off_p_holm", 3),
        _with_interval("Δ random", "vs_random_mean", "vs_random", wording.points),
        _number("p (Holm)", "vs_random_p_holm", 3),
    ],
    "evaluations": [
        _text("model"),
        _text("origin"),
        ("data", lambda row: f"{row['dataset']} ({row['split_by']})"),
        _text("split"),
        ("protocol", _protocol),
        *map(_percent, ("mIoU", "oIoU", "P@0.5", "P@0.7", "P@0.9")),
        _text("source"),
    ],
    "breakdown": [
        _text("evaluation"),
        _text("split"),
        _text("by"),
        _text("group"),
        _text("sentences", "n"),
        *map(_percent, ("mIoU", "oIoU", "P@0.5")),
    ],
    "robustness": [
        _text("evaluation"),
        _text("split"),
        _text("corruption"),
        _text("severities"),
        _percent("mIoU"),
        _percent("drop of mIoU", "drop_mIoU"),
        _percent("oIoU"),
        _percent("drop of oIoU", "drop_oIoU"),
        ("mIoU over baseline", lambda row: wording.points(row["over_baseline_mIoU"])),
        _number("drop relative to baseline's", "relative_drop_mIoU"),
    ],
    "importance": [
        _text("arm"),
        _text("parameter"),
        _text("trials"),
        _text("epoch"),
        ("rank correlation", lambda row: wording.num(row["rank_correlation"], sign=True)),
        _number("share of rank variance", "share"),
        _number("p", "p", 3),
    ],
    "paths": [
        _text("trial"),
        _text("from epoch", "from_epoch"),
        _text("settings"),
        _percent("mIoU at the end", "mIoU"),
    ],
}
"""Columns of the tables that a paper shows; scores are in per cent there."""


def paper_table(name: str, rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Return the headers and the cells of a table in `PAPER`."""
    columns = PAPER[name]
    cells = [[text(row) for _, text in columns] for row in rows]
    return [header for header, _ in columns], cells


def write_table(folder: Path, name: str, rows: list[Row], caption: str = "") -> list[str]:
    """Write <name>.csv, and .md and .tex too if the table is in `PAPER` and has rows.

    Args:
        folder: Folder to write to.
        name: Name of the table.
        rows: Rows of the table; all have the same keys.
        caption: Caption in Markdown and LaTeX.

    Returns:
        The names of the written files.
    """
    write_csv(folder / f"{name}.csv", rows)
    if name not in PAPER or not rows:
        return [f"{name}.csv"]
    headers, cells = paper_table(name, rows)
    atomic_write(folder / f"{name}.md", markdown(headers, cells, caption).encode())
    tex = latex(headers, cells, caption, f"tab:{name}")
    atomic_write(folder / f"{name}.tex", tex.encode())
    return [f"{name}.{kind}" for kind in ("csv", "md", "tex")]


def write_csv(path: Path, rows: list[Row]) -> None:
    """Write a header and the rows; the cells of NaN and None are empty.

    Without rows the header is the table's first column alone.
    """
    atomic_write(path, csv_text(rows, FIRST_COLUMN.get(path.stem, "trial")).encode())


def csv_text(rows: list[Row], first: str = "") -> str:
    """Return a header and the rows; the cells of NaN and None are empty.

    Args:
        rows: Rows of the table; all have the same keys.
        first: The header where there are no rows.
    """
    text = io.StringIO(newline="")
    out = csv.writer(text)
    out.writerow(rows[0] if rows else [first])
    out.writerows([[_csv_cell(value) for value in row.values()] for row in rows])
    return text.getvalue()


def _csv_cell(value: Any) -> Any:
    """Return a cell: empty for None and NaN, text on one line that no spreadsheet computes."""
    if isinstance(value, str):
        text = _one_line(value)
        return f"'{text}" if text.startswith(FORMULA_STARTS) and not _is_number(text) else text
    return "" if value is None or value != value else value  # only NaN differs from itself


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _one_line(text: str) -> str:
    """Return text without line breaks and other control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def markdown(headers: list[str], cells: list[list[str]], caption: str = "") -> str:
    """Return a table in Markdown with its caption below."""
    rule = ["---"] * len(headers)
    lines = [[escape_markdown(cell) for cell in headers], rule]
    lines += [[escape_markdown(cell) for cell in line] for line in cells]
    text = "".join("| " + " | ".join(line) + " |\n" for line in lines)
    return text + (f"\n{escape_markdown(caption)}\n" if caption else "")


def escape_markdown(text: str) -> str:
    """Return plain text as Markdown on one line, without tags and cell borders."""
    return re.sub(r"([\\|<`])", r"\\\1", _one_line(text))


def latex(headers: list[str], cells: list[list[str]], caption: str, label: str) -> str:
    """Return a LaTeX table environment in the style of booktabs.

    The first column is aligned to the left, the others to the right.
    """
    rows = [" & ".join(map(escape_latex, line)) + r" \\" for line in (headers, *cells)]
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape_latex(caption)}}}",
            rf"\label{{{label}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(headers) - 1)}}}",
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


def escape_latex(text: str) -> str:
    """Return plain text as LaTeX source."""
    known = {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "τ": r"$\tau$",
        "ρ": r"$\rho$",
        "Δ": r"$\Delta$",
        "−": "$-$",
        "–": "--",
        "×": r"$\times$",
        "±": r"$\pm$",
        "↑": r"$\uparrow$",
        "↓": r"$\downarrow$",
    }
    known |= {c: f"\\{c}" for c in "&%$#_{}"}
    return re.sub("|".join(map(re.escape, known)), lambda m: known[m.group()], _one_line(text))
