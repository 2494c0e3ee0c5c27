"""Write the table of a matrix of experiments: its arms on every split, beside published results.

Files in the folder:

table.csv: one row for each data set, split, model and arm, and for each published result, with
    means, 95 % t intervals over seeds, and the differences to off and random, paired by seed.
table.md, table.tex, table.html: a table for each metric, one column for each data set and split.
    The tables of the page sort by a click and are filtered by words.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape
from typing import Any, NamedTuple

from orchestrator import evaluation, storage
from orchestrator.reporting import evidence, export, robust_arms, wording
from orchestrator.reporting.comparison.splits import METRICS, PRECISIONS
from orchestrator.reporting.page import render
from orchestrator.reporting.significance import LEVEL, holm

CAPTION = (
    "{metric} in % at {epoch}, mean over seeds{interval}; protocol {protocol}. An arrow marks a "
    "difference to off, paired by seed, whose 95% t interval lies above (↑) or below (↓) zero, and "
    "* one whose p value is below {level:g} after Holm's correction over the table's {tests} "
    "differences. Published results are as their authors report them; a dash is what is missing."
)

STYLE = """<style>
main { max-width: 1500px; }
[hidden] { display: none !important; }
.filter { display: flex; flex-wrap: wrap; gap: 6px 16px; align-items: center; margin: 8px 0;
  font-size: 13.5px; color: var(--soft); }
.filter input { font: inherit; color: var(--ink); background: var(--wash); flex: 0 1 320px;
  border: 1px solid var(--line); border-radius: 6px; padding: 3px 9px; min-width: 0; }
::placeholder { color: var(--soft); opacity: 1; }
th button { all: unset; cursor: pointer; }
th button:hover { color: var(--accent); }
th button:focus-visible { outline: 2px solid var(--accent); }
th[aria-sort="ascending"] button::after { content: " ▲"; }
th[aria-sort="descending"] button::after { content: " ▼"; }
</style>"""
"""Style of what the script adds to the tables."""

INTERVAL = " ± half of the 95% t interval"

PLACE = (
    *("data", "dataset", "split_by", "split", "model", "arm", "origin", "protocol", "size"),
    *("seeds", "run", "problem"),
)
"""Columns of table.csv that say what was scored."""

COLUMNS = (
    *PLACE,
    *(f"{name}{end}" for name in METRICS for end in ("", "_low", "_high", "_sd")),
    *PRECISIONS,
    *(
        f"{name}_vs_{other}_{key}"
        for name in METRICS
        for other in robust_arms.REFERENCES
        for key in ("n", "mean", "low", "high", "p", "p_holm", "detectable")
    ),
)
"""Columns of table.csv."""


@dataclass(frozen=True, kw_only=True)
class CellScores:
    """The scores of one experiment of a matrix, as far as there are any."""

    data: str
    """Name of the data set in the matrix."""
    model: str
    """Name of the model in the matrix."""
    network: str
    """Its model.name."""
    arms: list[str]
    protocol: str
    size: int
    """Side of the network image in pixels."""
    select: str | None
    """The setting evaluate.select."""
    splits: list[str]
    """Splits that are scored; empty where neither the matrix nor data name them."""
    manifest: dict[str, Any] = field(default_factory=dict)
    """That of the shards; empty where there are none yet."""
    run: str = ""
    """Name of its run."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """Rows of the arms' scores, as `evaluate_arms` returns them."""
    problem: str = ""
    """Why scores are missing; empty where none are."""


class PaperTable(NamedTuple):
    """One metric of the table."""

    metric: str
    caption: str
    headers: list[str]
    lines: list[list[str]]


def write_matrix(folder: storage.Filesystem, name: str, cells: list[CellScores]) -> list[str]:
    """Write the table of a matrix.

    Args:
        folder: The folder for the files.
        name: Name of the matrix.
        cells: All its cells, in order.

    Returns:
        The table of the first metric, what is missing, and where the files are, as lines for a
        person.
    """
    rows = matrix_rows(cells)
    tables = paper_tables(cells, rows)
    notes = [f"{c.data} x {c.model}: {c.problem}" for c in cells if c.problem]
    texts = {
        "table.csv": export.csv_text(rows),
        "table.md": _markdown(tables, notes),
        "table.tex": _latex(name, tables, notes),
        "table.html": _html(name, tables, notes),
    }
    for file, text in texts.items():
        folder.write(file, text.encode())
    first = tables[0]
    shown = export.markdown(first.headers, first.lines, first.caption).splitlines()
    missing = [f"missing: {note}" for note in notes]
    return [*shown, *missing, f"wrote {', '.join(texts)} in {folder.uri}"]


def matrix_rows(cells: list[CellScores]) -> list[dict[str, Any]]:
    """Return the rows of table.csv, by data set, split, model and arm; missing values are NaN.

    Holm's correction is over all cells here, one family for each metric and reference.
    """
    rows = [row for cell in cells for row in _cell_rows(cell)]
    for name in METRICS:
        for other in robust_arms.REFERENCES:
            key = f"{name}_vs_{other}_p"
            for row, p in zip(rows, holm([row[key] for row in rows]), strict=True):
                row[f"{key}_holm"] = p
    return rows


def paper_tables(cells: list[CellScores], rows: list[dict[str, Any]]) -> list[PaperTable]:
    """Return a table for each metric.

    A line is an arm of a model, or a published result of the same model; a column is a split.

    Args:
        cells: All cells of the matrix, in order.
        rows: Rows of table.csv.
    """
    places = list(dict.fromkeys((row["data"], row["split"]) for row in rows))
    lines = list(dict.fromkeys((row["model"], row["arm"], row["origin"]) for row in rows))
    lines.sort(key=lambda line: _order(cells, line))
    found = {
        (row["data"], row["split"], row["model"], row["arm"], row["origin"]): row for row in rows
    }
    published = {
        (row["model"], row["arm"], metric)
        for row in rows
        if row["origin"] == evidence.PUBLISHED
        for metric in evidence.SCORES
        if math.isfinite(row[metric])
    }
    protocols = " and ".join(dict.fromkeys(cell.protocol for cell in cells))
    epochs = dict.fromkeys(
        wording.counted_epoch({"config": {"evaluate": {"select": cell.select}}}) for cell in cells
    )
    tables = []
    for metric in (*METRICS, *PRECISIONS):
        key = f"{metric}_vs_off_p"
        caption = CAPTION if metric in METRICS else CAPTION.partition(" An arrow")[0]
        tables.append(
            PaperTable(
                metric,
                caption.format(
                    metric=metric,
                    epoch=" or ".join(epochs),
                    interval=INTERVAL if metric in METRICS else "",
                    protocol=protocols,
                    level=LEVEL,
                    tests=sum(math.isfinite(row.get(key, math.nan)) for row in rows),
                ),
                ["model", "arm", "seeds", *(f"{data} {split}".strip() for data, split in places)],
                [
                    [model, _arm_text(arm, origin), _seeds(rows, model, arm, origin)]
                    + [_score(found.get((*place, model, arm, origin)), metric) for place in places]
                    for model, arm, origin in lines
                    if origin == evidence.MEASURED or (model, arm, metric) in published
                ],
            )
        )
    return tables


def _cell_rows(cell: CellScores) -> Iterator[dict[str, Any]]:
    """Yield the rows of one cell: every arm on every split, then published results."""
    base = {
        "data": cell.data,
        "dataset": cell.manifest.get("dataset", ""),
        "split_by": cell.manifest.get("split_by", ""),
        "protocol": cell.protocol,
        "size": cell.size,
        "model": cell.model,
    }
    measured = {(row["split"], row["arm"]): row for row in cell.rows}
    for split in cell.splits or [""]:
        place = base | {"split": split}
        for arm in cell.arms:
            row = measured.get((split, arm), {})
            more = {"origin": evidence.MEASURED, "arm": arm, "run": cell.run}
            yield _row(row | place | more | {"problem": "" if row else cell.problem})
        counts = (cell.manifest.get("splits") or {}).get(split)
        if counts:
            known = evidence.published_rows([place | {"n": counts["sentences"]}], cell.network)
            for row in known:
                arm = f"{row['model']}, {row['size']} px"
                scores = {key: row[key] for key in evidence.SCORES}
                more = {"origin": evidence.PUBLISHED, "arm": arm, "size": row["size"]}
                yield _row(place | scores | more)


def _row(values: dict[str, Any]) -> dict[str, Any]:
    """Return a row with all columns: texts and counts empty, scores NaN where they are missing."""
    row = {}
    for key in COLUMNS:
        value = values.get(key)
        row[key] = value if value is not None else ("" if key in PLACE else math.nan)
    return row


def _order(cells: list[CellScores], line: tuple[str, str, str]) -> tuple[int, bool]:
    """Return a line's place: models in the order of the matrix, published results last."""
    models = list(dict.fromkeys(cell.model for cell in cells))
    return models.index(line[0]), line[2] == evidence.PUBLISHED


def _arm_text(arm: str, origin: str) -> str:
    return arm if origin == evidence.MEASURED else f"{arm} ({origin})"


def _seeds(rows: list[dict[str, Any]], model: str, arm: str, origin: str) -> str:
    """Return the number of seeds of a line, as 3 or, where its columns differ, 2 to 3."""
    line = (model, arm, origin)
    of_line = [row for row in rows if (row["model"], row["arm"], row["origin"]) == line]
    counts = sorted({row["seeds"] for row in of_line if row["seeds"]})
    if not counts:
        return "–"
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _score(row: dict[str, Any] | None, metric: str) -> str:
    """Return a cell of the table: 76.77 ± 0.41 ↑*."""
    if row is None:
        return "–"
    text = wording.pct(row[metric])
    if metric not in METRICS or not math.isfinite(row[f"{metric}_low"]):
        return text
    text += f" ± {wording.pct((row[f'{metric}_high'] - row[f'{metric}_low']) / 2)}"
    low, high = row[f"{metric}_vs_off_low"], row[f"{metric}_vs_off_high"]
    if not (low > 0 or high < 0):
        return text
    sure = "*" if row[f"{metric}_vs_off_p_holm"] < LEVEL else ""
    return f"{text} {'↑' if low > 0 else '↓'}{sure}"


def _markdown(tables: list[PaperTable], notes: list[str]) -> str:
    parts = [export.markdown(table.headers, table.lines, table.caption) for table in tables]
    if notes:
        parts.append("Missing:\n\n" + "".join(f"- {export.escape_markdown(n)}\n" for n in notes))
    return "\n".join(parts)


def _latex(name: str, tables: list[PaperTable], notes: list[str]) -> str:
    parts = [
        export.latex(table.headers, table.lines, table.caption, f"tab:{name}-{table.metric}")
        for table in tables
    ]
    return "".join(f"% missing: {export.escape_latex(note)}\n" for note in notes) + "\n".join(parts)


def _html(name: str, tables: list[PaperTable], notes: list[str]) -> str:
    body = [STYLE]
    if notes:
        listed = "<br>".join(map(escape, notes))
        body.append(f'<p class="note">Missing: {listed}</p>')
    for table in tables:
        head = _html_cells(table.headers, "th")
        lines = "".join(f"<tr>{_html_cells(line, 'td')}</tr>" for line in table.lines)
        body.append(
            f'<h2>{escape(table.metric)}</h2><div class="scroll"><table><thead><tr>{head}</tr>'
            f"</thead><tbody>{lines}</tbody></table></div>"
            f'<p class="how">{escape(table.caption)}</p>'
        )
    return evaluation.html_page(name, body, render.tables_script())


def _html_cells(texts: list[str], tag: str) -> str:
    """Return the cells of a line; model and arm are aligned to the left."""
    left = "".join(f'<{tag} style="text-align: left">{escape(text)}</{tag}>' for text in texts[:2])
    return left + "".join(f"<{tag}>{escape(text)}</{tag}>" for text in texts[2:])
