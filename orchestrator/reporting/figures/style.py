"""Colours, lines and layout that the figures share."""

import io
import re
from collections.abc import Callable
from itertools import pairwise

from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.figure import Figure

INK, SOFT, ACCENT = "#1b2430", "#5c6675", "#1f5fae"

STYLES = {
    "training": (ACCENT, "-", "o"),
    "off": ("#6b7280", "-", "o"),
    "random": ("#b4540a", "--", "s"),
    "aml/calibrated": (ACCENT, "-", "D"),
    "aml/paper": ("#0f766e", "-.", "^"),
    "aml/release": ("#7a3e9d", ":", "v"),
    "two_pass": ("#8a6d00", "--", "P"),
    "maskris": ("#be185d", "-.", "X"),
}

SPARE = [
    ("#334155", ":", "p"),
    ("#0e7490", "--", "*"),
    ("#4d7c0f", "-.", "h"),
    ("#9f1239", ":", "<"),
    ("#5b21b6", "--", ">"),
]

PLOT = {
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9aa4b2",
    "axes.labelcolor": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "text.color": INK,
    "grid.color": "#e8ebf0",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "hatch.linewidth": 0.7,
}


def drawing(name: str, alt: str, size: tuple[float, float], draw: Callable, *args) -> Markup:
    """An inline SVG of what `draw(figure, *args)` puts on a figure of `size` inches; `name` makes its ids unique."""
    name = re.sub(r"\W", "-", name)
    bare = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with rc_context({**PLOT, "svg.hashsalt": name}):
        fig, buffer = Figure(size, layout="constrained"), io.StringIO()
        draw(fig, *args)
        fig.savefig(buffer, format="svg", transparent=True, metadata=bare)
    text = re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.S)
    text = re.sub(
        r"'DejaVu Sans'[^;\"]*",
        "system-ui, Helvetica, Arial, sans-serif",
        text[text.index("<svg") :],
    )
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    return Markup(text.replace("<svg ", f'<svg role="img" aria-label="{escape(alt)}" ', 1))  # noqa: S704 (matplotlib's SVG, whose text is escaped)


def style_of(arm: str) -> dict:
    """Colour, line and marker of an arm: the same in every plot."""
    color, line, marker = STYLES.get(arm) or SPARE[sum(map(ord, arm)) % len(SPARE)]
    return {"color": color, "linestyle": line, "marker": marker}


def legend(arms: list[str]) -> list[dict]:
    """{arm, svg}: a sample of each arm's line and marker."""

    def sample(fig: Figure, arm: str) -> None:
        fig.set_layout_engine("none")
        axes = fig.add_axes((0, 0, 1, 1))
        axes.plot(
            [0.05, 0.5, 0.95],
            [0, 0, 0],
            **style_of(arm),
            markevery=[1],
            markersize=5,
            linewidth=1.6,
        )
        axes.set_axis_off()

    return [
        {"arm": arm, "svg": drawing(f"key-{arm}", "", (0.55, 0.18), sample, arm)} for arm in arms
    ]


def edges(values: list[float]) -> dict[float, tuple[float, float]]:
    """Sorted value -> the interval it owns, up to the midpoints between neighbours; a lone value owns 0.1."""
    if len(values) == 1:
        return {values[0]: (values[0] - 0.05, values[0] + 0.05)}
    mids = [(a + b) / 2 for a, b in pairwise(values)]
    bounds = [2 * values[0] - mids[0], *mids, 2 * values[-1] - mids[-1]]
    return dict(zip(values, pairwise(bounds), strict=True))


def apart(values: list[float], span: tuple[float, float]) -> list[float]:
    """Those of sorted values whose names fit side by side on an axis over span."""
    kept = []
    for value in values:
        if not kept or value - kept[-1] >= (span[1] - span[0]) / 10:
            kept.append(value)
    return kept
