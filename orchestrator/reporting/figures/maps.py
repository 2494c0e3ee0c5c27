"""Draw the maps of val/mIoU over tau and rho."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from orchestrator.reporting import numbers, wording
from orchestrator.reporting.figures.style import (
    INK,
    SOFT,
    CaptionedFigure,
    drawing,
    edges,
    spaced_ticks,
)
from orchestrator.reporting.summaries import ArmSummary, MapCell

Span = tuple[float, float]
"""Lower and upper end on an axis."""


@dataclass(frozen=True)
class CellStyle:
    """Settings that all cells of a sweep's maps share."""

    scale: Span
    """Scores at the two ends of the colour scale."""
    show_epochs: bool
    """Whether a cell names its epoch, because cells differ in it."""
    confirmed: dict[str, tuple[float, float]]
    """(tau, rho) that each arm took to confirmation."""

    def is_confirmed(self, cell: MapCell) -> bool:
        """Tell whether a cell is the setting that its arm took to confirmation."""
        chosen = self.confirmed.get(cell.arm)
        return chosen is not None and math.dist((cell.tau, cell.rho), chosen) < 1e-6


def draw_cell(
    axes: Axes, across: Span, up: Span, cell: MapCell, style: CellStyle, outlined: bool
) -> None:
    """Draw one setting as a coloured box with its score.

    The box is hatched if no trial of the setting ran to its end.

    Args:
        axes: Axes to draw on.
        across: Ends of the box in x.
        up: Ends of the box in y.
        cell: The setting.
        style: Colour scale and labels.
        outlined: Whether to outline the box.
    """
    value = cell.mIoU_best
    low, high = style.scale
    known = math.isfinite(value)
    share = (value - low) / (high - low) if high > low else 0.5
    full = known and not cell.early
    color: Any = colormaps["Blues"](0.06 + 0.72 * share) if full else "white"
    corner = (across[0], up[0])
    width = across[1] - across[0]
    height = up[1] - up[0]
    axes.add_patch(
        Rectangle(
            corner,
            width,
            height,
            facecolor=color,
            edgecolor="white" if full else "#b3bcc8",
            hatch="////" if cell.early else None,
            linewidth=1.2,
        )
    )
    if outlined:
        axes.add_patch(
            Rectangle(
                corner,
                width,
                height,
                fill=False,
                edgecolor=INK,
                linewidth=2.2,
                zorder=4,
                clip_on=False,
            )
        )
    text = wording.pct(value, 1) if known else "failed"
    if known and style.show_epochs:
        text += f"\nep {cell.epochs_max}"
    axes.text(
        sum(across) / 2,
        sum(up) / 2,
        text,
        ha="center",
        va="center",
        fontsize=8,
        linespacing=1.1,
        zorder=5,
        color="white" if full and share > 0.62 else INK,
        bbox={"facecolor": color, "edgecolor": "none", "pad": 1.2},
    )


def draw_products(axes: Axes, products: list[float], x: Span, y: Span) -> None:
    """Draw a dashed curve tau rho = r for each r that occurs twice.

    A curve is labelled where it leaves the box, unless another label stands there.

    Args:
        axes: Axes to draw on.
        products: tau rho of every cell.
        x: Ends of the box in tau.
        y: Ends of the box in rho.
    """
    width = x[1] - x[0]
    height = y[1] - y[0]
    last_label_right = -math.inf
    last_label_top = -math.inf
    label: dict[str, Any] = {"textcoords": "offset points", "fontsize": 7.5, "color": SOFT}
    dashes = (0, (4, 3))
    left = max(x[0], 1e-9)
    for r in sorted({p for p in products if p > 0 and products.count(p) > 1}):
        taus = [left + (x[1] - left) * i / 300 for i in range(301)]
        curve = [(tau, r / tau) for tau in taus if y[0] <= r / tau <= y[1]]
        if len(curve) < 2:
            continue
        axes.plot(*zip(*curve, strict=True), color=INK, linewidth=0.9, linestyle=dashes, alpha=0.6)
        start = curve[0]
        end = curve[-1]
        if end[0] > x[1] - width / 50 and end[1] - last_label_right > height / 16:
            last_label_right = end[1]
            axes.annotate(f"{r:.2g}", end, xytext=(4, 0), va="center", **label)
        elif start[1] > y[1] - height / 20 and start[0] - last_label_top > width / 12:
            last_label_top = start[0]
            axes.annotate(f"{r:.2g}", start, xytext=(0, 3), ha="center", **label)


def map_figures(cells: list[MapCell], arms: list[ArmSummary]) -> list[CaptionedFigure]:
    """Draw a map over tau and rho for each alignment arm; off and random stand beside it.

    Args:
        cells: Cells of all arms; they share one colour scale.
        arms: Summaries of the arms, whose confirmed settings are outlined.
    """
    known = [c for c in cells if math.isfinite(c.mIoU_best)]
    scores = [c.mIoU_best for c in known if not c.early]
    style = CellStyle(
        scale=(min(scores, default=0.0), max(scores, default=1.0)),
        show_epochs=len({c.epochs_max for c in known}) > 1,
        confirmed={a.arm: (a.tau, a.rho) for a in arms if a.settings_confirmed},
    )
    references = [c for c in cells if c.arm in ("off", "random")]
    figures: list[CaptionedFigure] = []
    for arm in dict.fromkeys(c.arm for c in cells if numbers.is_alignment_arm(c.arm)):
        members = [c for c in cells if c.arm == arm]
        alt = f"mIoU of {arm} by tau and rho"
        svg = drawing(f"map-{arm}", alt, (4.8, 3.6), _draw_map, members, references, style)
        figures.append({"text": "", "svg": svg})
    return figures


def _draw_map(
    fig: Figure, members: list[MapCell], references: list[MapCell], style: CellStyle
) -> None:
    """Draw an arm's cells, and the cells of off and random in a column of their own."""
    taus = sorted({c.tau for c in members})
    rhos = sorted({c.rho for c in members})
    # scattered settings, as a random search draws them, get small boxes in place of a grid
    is_grid = 2 * len(members) >= len(taus) * len(rhos)
    across = edges(taus) if is_grid else {tau: (tau - 0.045, tau + 0.045) for tau in taus}
    up = edges(rhos) if is_grid else {rho: (rho - 0.045, rho + 0.045) for rho in rhos}
    x = _hull(across.values())
    y = _hull(up.values())
    axes, beside = fig.subplots(1, 2, width_ratios=[5, 1])
    for cell in members:
        draw_cell(axes, across[cell.tau], up[cell.rho], cell, style, style.is_confirmed(cell))
    draw_products(axes, [c.product for c in members + references], x, y)
    axes.set(
        xlim=x,
        ylim=y,
        xlabel="τ (share of blocks called weak)",
        ylabel="ρ (share of weak blocks hidden)",
    )
    axes.set_title(f"{members[0].arm}   (dashed: τρ)", pad=14)
    if is_grid:
        axes.set(xticks=spaced_ticks(taus, x), yticks=spaced_ticks(rhos, y))
        axes.xaxis.set_major_formatter("{x:.3g}")
        axes.yaxis.set_major_formatter("{x:.3g}")
    axes.spines[:].set_visible(False)
    _draw_references(beside, references, style)


def _draw_references(axes: Axes, references: list[MapCell], style: CellStyle) -> None:
    for i, cell in enumerate(references):
        outlined = cell.arm != "off" and style.confirmed.get(cell.arm) == (cell.tau, cell.rho)
        draw_cell(axes, (0, 1), (-i - 0.62, -i), cell, style, outlined)
        name = "off" if cell.arm == "off" else f"random {cell.rho:.2g}"
        axes.text(0.5, -i + 0.05, name, ha="center", va="bottom", fontsize=7.5, color=SOFT)
    axes.set(xlim=(-0.05, 1.05), ylim=(-max(len(references), 4), 0.35))
    axes.set_axis_off()


def _hull(spans: Iterable[Span]) -> Span:
    ends = list(spans)
    return min(low for low, _ in ends), max(high for _, high in ends)
