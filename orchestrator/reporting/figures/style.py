"""Define the colours, lines and layout that all figures share."""

import io
import re
import zlib
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Concatenate, ParamSpec, TypedDict

from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.figure import Figure

P = ParamSpec("P")

INK = "#1b2430"
"""Colour of text."""

SOFT = "#5c6675"
"""Colour of secondary text."""

ACCENT = "#1f5fae"

STYLES = {
    "training": (ACCENT, "-", "o"),
    "off": ("#6b7280", "-", "o"),
    "random": ("#b4540a", "--", "s"),
    "aml/calibrated": (ACCENT, "-", "D"),
    "aml/paper": ("#0f766e", "-.", "^"),
    "aml/release": ("#7a3e9d", ":", "v"),
    "two_pass": ("#8a6d00", "--", "P"),
    "maskris": ("#be185d", "-.", "X"),
    "oneref": ("#0e7490", ":", "h"),
    "consistency": ("#4d7c0f", "--", "d"),
}
"""Colour, line style and marker of the known arms."""

SPARE_COLORS = ("#334155", "#155e75", "#3f6212", "#9f1239", "#5b21b6")
"""Colours of all other arms."""

SPARE_LINES = (":", "--", "-.")

SPARE_MARKERS = ("p", "*", "H", "<", ">", "8", "x")

PLOT: dict[Any, Any] = {
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
"""Matplotlib's settings while a figure is drawn."""


class LineStyle(TypedDict):
    """Keyword arguments of Axes.plot that give an arm its look."""

    color: str
    linestyle: str
    marker: str


class CaptionedFigure(TypedDict):
    """Figure of the page: inline SVG and the text below it."""

    svg: Markup
    text: str


def drawing(
    name: str,
    alt: str,
    size: tuple[float, float],
    draw: Callable[Concatenate[Figure, P], None],
    *args: P.args,
    **kwargs: P.kwargs,
) -> Markup:
    """Draw a figure and return it as inline SVG.

    Args:
        name: Name of the figure on its page; it makes the ids in the SVG unique.
        alt: Text for readers who do not see the figure.
        size: Width and height, inches.
        draw: Function that draws on the figure; it also gets `args` and `kwargs`.
        args: Arguments of `draw` after the figure.
        kwargs: Keyword arguments of `draw`.
    """
    name = re.sub(r"\W", "-", name)
    bare = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with rc_context({**PLOT, "svg.hashsalt": name}):
        fig = Figure(size, layout="constrained")
        buffer = io.StringIO()
        draw(fig, *args, **kwargs)
        fig.savefig(buffer, format="svg", transparent=True, metadata=bare)
    text = re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.S)
    text = re.sub(
        r"'DejaVu Sans'[^;\"]*",
        "system-ui, Helvetica, Arial, sans-serif",
        text[text.index("<svg") :],
    )
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = text.replace("<svg ", f'<svg role="img" aria-label="{escape(alt)}" ', 1)
    return Markup(text)  # noqa: S704 (matplotlib's SVG, whose text is escaped)


def style_of(arm: str) -> LineStyle:
    """Return colour, line style and marker of an arm, which are the same in every figure."""
    color, line, marker = STYLES.get(arm) or _spare_style(arm)
    return {"color": color, "linestyle": line, "marker": marker}


def _spare_style(arm: str) -> tuple[str, str, str]:
    """Return a style that depends on the arm's name alone; two arms seldom have the same."""
    number = zlib.crc32(arm.encode())
    found = []
    for choices in (SPARE_COLORS, SPARE_MARKERS, SPARE_LINES):
        number, place = divmod(number, len(choices))
        found.append(choices[place])
    color, marker, line = found
    return color, line, marker


def legend(arms: list[str]) -> list[dict[str, str]]:
    """Return each arm with a sample of its line and marker: arm, color and svg.

    The sample has the colour --arm-shown of the page, which is lighter on a dark one.
    """

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

    keys = []
    for arm in arms:
        color = style_of(arm)["color"]
        svg = drawing(f"key-{arm}", "", (0.55, 0.18), sample, arm)
        keys.append({"arm": arm, "color": color, "svg": svg.replace(color, "var(--arm-shown)")})
    return keys


def edges(values: list[float]) -> dict[float, tuple[float, float]]:
    """Return each value's interval, which ends halfway to the neighbouring values.

    Args:
        values: Sorted values; the interval of a single value is 0.1 wide.
    """
    if len(values) == 1:
        return {values[0]: (values[0] - 0.05, values[0] + 0.05)}
    mids = [(a + b) / 2 for a, b in pairwise(values)]
    bounds = [2 * values[0] - mids[0], *mids, 2 * values[-1] - mids[-1]]
    return dict(zip(values, pairwise(bounds), strict=True))


def spaced_ticks(values: list[float], span: tuple[float, float]) -> list[float]:
    """Return the values whose labels fit side by side on an axis.

    Args:
        values: Sorted values.
        span: Ends of the axis.
    """
    kept: list[float] = []
    for value in values:
        if not kept or value - kept[-1] >= (span[1] - span[0]) / 10:
            kept.append(value)
    return kept
