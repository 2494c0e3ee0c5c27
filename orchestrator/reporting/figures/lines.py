"""Draw val/mIoU along the lines of equal hidden share."""

import math
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from orchestrator.reporting import wording
from orchestrator.reporting.figures.style import SOFT, CaptionedFigure, drawing
from orchestrator.reporting.summaries import LinePoint

Line = tuple[float, list[LinePoint]]
"""r of a line, and its points sorted by tau."""

EARLY = (
    "Early epochs say little, as masking pays late; "
    "a sweep with search.scheduler none compares full runs."
)
"""Text below a line figure that is read before the last epoch."""


def line_figures(points: list[LinePoint]) -> list[CaptionedFigure]:
    """Draw val/mIoU against tau along the lines tau rho = r, and describe each line's two ends.

    There is a figure for each arm and each epoch at which lines are read. Lines read at different
    epochs never share a figure, because a later epoch alone lifts a line. Lines read before the
    last epoch have hollow points.
    """
    figures: list[CaptionedFigure] = []
    groups = dict.fromkeys((p.line_arm, p.epoch) for p in points)
    for arm, epoch in sorted(groups, key=lambda group: -group[1]):
        lines = wording.by_line(p for p in points if (p.line_arm, p.epoch) == (arm, epoch))
        texts = [wording.line_text(r, line) for r, line in lines]
        first = lines[0][1]
        if epoch < first[0].of_epochs:
            texts.append(EARLY)
        title = f"{arm}, {wording.at_epoch(first)}"
        lines.sort(key=lambda item: item[1][-1].mIoU)
        alt = f"mIoU of {title}, along lines of equal hidden share"
        svg = drawing(f"line-{arm}-{epoch}", alt, (4.6, 3.5), _draw_lines, title, lines)
        figures.append({"svg": svg, "text": "\n".join(texts)})
    return figures


def _draw_lines(fig: Figure, title: str, lines: list[Line]) -> None:
    axes = fig.subplots()
    off = 100 * lines[0][1][0].off
    values = [100 * p.mIoU for _, line in lines for p in line]
    if math.isfinite(off):
        values.append(off)
    pad = max(0.2, 0.15 * (max(values) - min(values)))
    low = min(values) - pad
    high = max(values) + pad
    label_y = -math.inf
    for i, (r, line) in enumerate(lines):
        color = colormaps["viridis"](0.05 + 0.7 * i / max(len(lines) - 1, 1))
        _draw_line(axes, line, i, color)
        # labels of neighbouring lines keep their distance
        label_y = max(100 * line[-1].mIoU, label_y + (high - low) / 15)
        axes.text(
            line[-1].tau + 0.03,
            label_y,
            f"r = {r:.2g}",
            va="center",
            fontsize=8,
            color=color,
            clip_on=False,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.6},
        )
    if math.isfinite(off):
        axes.axhline(off, color=SOFT, linewidth=0.9, linestyle=":")
        axes.text(0.01, off, "off", va="bottom", fontsize=8, color=SOFT)
    axes.set(
        xlim=(0, 1.02),
        ylim=(low, high),
        title=title,
        ylabel="val mIoU (%)",
        xlabel="τ    (← exactly the worst r   ·   not looking →)",
    )
    axes.grid(axis="y")


def _draw_line(axes: Axes, line: list[LinePoint], number: int, color: Any) -> None:
    """Draw a line's points with whiskers of one standard deviation.

    Args:
        axes: Axes to draw on.
        line: Points of the line.
        number: Position of the line in its figure, which gives markers and dashes.
        color: Colour of the line.
    """
    taus = [p.tau for p in line]
    scores = [100 * p.mIoU for p in line]
    dashes = ("-", "--", "-.", ":")[number % 4]
    axes.plot(taus, scores, color=color, linewidth=1.6, linestyle=dashes)
    is_early = line[0].epoch < line[0].of_epochs
    for p, score in zip(line, scores, strict=True):
        axes.errorbar(
            p.tau,
            score,
            yerr=None if math.isnan(p.mIoU_sd) else 100 * p.mIoU_sd,
            color=color,
            marker="osD^vPXph"[number % 9],
            markersize=6,
            markerfacecolor="white" if is_early else color,
            linewidth=1,
            capsize=2,
        )
