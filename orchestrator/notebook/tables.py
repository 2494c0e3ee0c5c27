"""Results as tables: rows for pandas, and HTML that a notebook shows."""

from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aml.errors import UserError
from aml.schema import not_among
from orchestrator import reporting, storage

if TYPE_CHECKING:
    import pandas

Row = dict[str, Any]

SHOWN_ROWS = 60
"""Rows of a table that a notebook shows at most; `frame` has all."""


class Table:
    """Rows with named columns."""

    def __init__(
        self, rows: Iterable[Row], title: str = "", shown: Iterable[str] | None = None
    ) -> None:
        """Keep the rows.

        Args:
            rows: Mappings of a column's name to its value.
            title: What the table is, in a line.
            shown: The columns that a notebook shows; None: all of them.
        """
        self.rows = list(rows)
        self.title = title
        self.shown = None if shown is None else list(shown)

    def frame(self) -> "pandas.DataFrame":
        """Return all rows and columns as a data frame."""
        import pandas

        return pandas.DataFrame(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __repr__(self) -> str:
        headers, cells = self._cells()
        lines = ["  ".join(line) for line in _aligned([headers, *cells])]
        return "\n".join([self.title, *lines] if self.title else lines)

    def _repr_html_(self) -> str:
        return html_table(self.title, *self._cells())

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        """Return the headers and the texts of the rows that are shown."""
        headers = self.shown or list(dict.fromkeys(key for row in self.rows for key in row))
        return headers, [[_text(row.get(key)) for key in headers] for row in self.rows]


class Evaluation(Table):
    """Scores of an evaluation, one row a split and corruption."""

    def __init__(self, folder: Path, scores: dict[str, dict]) -> None:
        """Keep the scores of `metrics.json` and the folder that holds them."""
        super().__init__(
            [{"split": split, **values} for split, values in scores.items()],
            f"Evaluation in {folder}; scores are shares in [0, 1]",
        )
        self.folder = folder

    def sentences(self) -> "pandas.DataFrame":
        """Return per_sentence.jsonl, one row a sentence and condition."""
        import pandas

        return pandas.read_json(self.folder / "per_sentence.jsonl", lines=True)


class RunResult:
    """A sweep or training: its state, the tables of its report, and its champion."""

    def __init__(self, run: storage.Run, folder: Path | None = None) -> None:
        """Read the state of a run.

        Args:
            run: The run.
            folder: Where its report lies; None: in the run's own folder.
        """
        self.name = run.name
        self.folder = run.folder
        self.kind = run.kind
        self.state = str(run.state.get("state"))
        champion = (run.state.get("champion") or {}).get("checkpoint")
        self.champion: Path | None = run.folder / champion if champion else None
        """Folder of the best checkpoint; None where there is none."""
        self.page = (folder or run.folder / "report") / "index.html"
        """The report, a page that a browser opens."""

    @property
    def tables(self) -> list[str]:
        """The names of the tables that `frame` returns."""
        return sorted(path.stem for path in self.page.parent.glob("*.csv"))

    def frame(self, table: str | None = None) -> "pandas.DataFrame":
        """Return a table of the report as a data frame; scores are shares in [0, 1].

        Args:
            table: One of `tables`; None is arms of a sweep, curves of a training.

        Raises:
            UserError: The report has no such table, or was not written.
        """
        import pandas

        name = table or ("arms" if self.kind == "sweep" else "curves")
        if not self.tables:
            raise UserError(
                f"{self.name} has no report yet (state: {self.state}); finish it by the same "
                f"command, or write one of what is there: report({self.name!r})"
            )
        if name not in self.tables:
            raise not_among("the table", name, self.tables)
        # a list of severities, as "2 4", is a text, also where each is one number
        return pandas.read_csv(self.page.parent / f"{name}.csv", dtype={"severities": str})

    def __repr__(self) -> str:
        return f"{self.name}: {self.kind}, {self.state}; report: {self.page}"

    def _repr_html_(self) -> str:
        about = f"{self.name}: {self.kind}, {self.state}"
        parts = []
        for name, title in (
            ("arms", "Scores in %, means over seeds with their 95 % interval"),
            ("robust_arms", "Under corruption, in %"),
        ):
            if name in self.tables:
                rows = [
                    {key: "" if value != value else value for key, value in row.items()}  # NaN
                    for row in self.frame(name).to_dict("records")
                ]
                parts.append(html_table(title, *reporting.paper_table(name, rows)))
        page = f'<p>Report: <a href="{escape(self.page.as_uri())}">{escape(str(self.page))}</a></p>'
        return f"<p><b>{escape(about)}</b></p>{''.join(parts)}{page if self.tables else ''}"


def html_table(title: str, headers: list[str], cells: list[list[str]]) -> str:
    """Return a table as HTML, at most SHOWN_ROWS rows of it.

    Args:
        title: A line above it; empty for none.
        headers: Headers of the columns.
        cells: Texts of the rows.
    """
    head = "".join(f"<th>{escape(text)}</th>" for text in headers)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(text)}</td>' for text in line)}</tr>"
        for line in cells[:SHOWN_ROWS]
    )
    more = len(cells) - SHOWN_ROWS
    rest = f"<p>and {more} more rows, which frame() has</p>" if more > 0 else ""
    caption = f"<p>{escape(title)}</p>" if title else ""
    return f"{caption}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{rest}"


def _text(value: Any) -> str:
    """Return a value as a table shows it."""
    if value is None or value != value:  # NaN alone differs from itself
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _aligned(lines: list[list[str]]) -> list[list[str]]:
    """Return lines of cells that are filled with spaces to the width of their columns."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [[cell.ljust(w) for cell, w in zip(line, widths, strict=True)] for line in lines]
