"""The plots of a report, as inline SVG: maps, lines, learning curves and diagnostics, an arm in the same colour and marker throughout."""

import math

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from orchestrator.reporting import numbers, wording
from orchestrator.reporting.figures.style import INK, SOFT, apart, drawing, edges


def draw_cell(
    axes: Axes, across: tuple, up: tuple, row: dict, scale: tuple, outlined: bool, epochs: bool
) -> None:
    """One setting as a coloured box with its number, hatched where no trial ran to its end; `epochs`: with its epoch."""
    value, (low, high) = row["mIoU_best"], scale
    known = math.isfinite(value)
    share = (value - low) / (high - low) if high > low else 0.5
    full = known and not row["early"]
    color = colormaps["Blues"](0.06 + 0.72 * share) if full else "white"
    place = ((across[0], up[0]), across[1] - across[0], up[1] - up[0])
    axes.add_patch(
        Rectangle(
            *place,
            facecolor=color,
            edgecolor="white" if full else "#b3bcc8",
            hatch="////" if row["early"] else None,
            linewidth=1.2,
        )
    )
    if outlined:
        axes.add_patch(
            Rectangle(*place, fill=False, edgecolor=INK, linewidth=2.2, zorder=4, clip_on=False)
        )
    text = wording.pct(value, 1) if known else "failed"
    if known and epochs:
        text += f"\nep {row['epochs_max']}"
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


def draw_products(
    axes: Axes, products: list[float], x: tuple[float, float], y: tuple[float, float]
) -> None:
    """Dashed curves tau rho = r through the box x by y, for each r that occurs twice, named where they leave it."""
    free = {"right": -math.inf, "top": -math.inf}
    small = {"textcoords": "offset points", "fontsize": 7.5, "color": SOFT}
    for r in sorted({p for p in products if p > 0 and products.count(p) > 1}):
        xs = [max(x[0], 1e-9) + (x[1] - max(x[0], 1e-9)) * i / 300 for i in range(301)]
        curve = [(a, r / a) for a in xs if y[0] <= r / a <= y[1]]
        if len(curve) < 2:
            continue
        axes.plot(
            *zip(*curve, strict=True), color=INK, linewidth=0.9, linestyle=(0, (4, 3)), alpha=0.6
        )
        end = curve[-1]
        if end[0] > x[1] - (x[1] - x[0]) / 50 and end[1] - free["right"] > (y[1] - y[0]) / 16:
            free["right"] = end[1]
            axes.annotate(f"{r:.2g}", end, xytext=(4, 0), va="center", **small)
        elif (
            curve[0][1] > y[1] - (y[1] - y[0]) / 20
            and curve[0][0] - free["top"] > (x[1] - x[0]) / 12
        ):
            free["top"] = curve[0][0]
            axes.annotate(f"{r:.2g}", curve[0], xytext=(0, 3), ha="center", **small)


def map_figures(cells: list[dict], arms: list[dict]) -> list[dict]:
    """A tau x rho map for each alignment arm; off and random stand beside it in the same colours."""
    scores = [c["mIoU_best"] for c in cells if math.isfinite(c["mIoU_best"]) and not c["early"]]
    scale = (min(scores, default=0.0), max(scores, default=1.0))
    uneven = len({c["epochs_max"] for c in cells if math.isfinite(c["mIoU_best"])}) > 1
    references = [c for c in cells if c["arm"] in ("off", "random")]
    chosen = {a["arm"]: (a["tau"], a["rho"]) for a in arms if a["settings_confirmed"]}

    def draw(fig: Figure, arm: str) -> None:
        mine = [c for c in cells if c["arm"] == arm]
        taus, rhos = (sorted({c[k] for c in mine}) for k in ("tau", "rho"))
        grid = 2 * len(mine) >= len(taus) * len(rhos)
        across, up = (
            edges(v) if grid else {x: (x - 0.045, x + 0.045) for x in v} for v in (taus, rhos)
        )
        x, y = (
            (min(b[0] for b in d.values()), max(b[1] for b in d.values())) for d in (across, up)
        )
        axes, beside = fig.subplots(1, 2, width_ratios=[5, 1])
        for c in mine:
            outlined = arm in chosen and math.dist((c["tau"], c["rho"]), chosen[arm]) < 1e-6
            draw_cell(axes, across[c["tau"]], up[c["rho"]], c, scale, outlined, uneven)
        draw_products(axes, [c["product"] for c in mine + references], x, y)
        axes.set(
            xlim=x,
            ylim=y,
            xlabel="τ (share of blocks called weak)",
            ylabel="ρ (share of weak blocks hidden)",
        )
        axes.set_title(f"{arm}   (dashed: τρ)", pad=14)
        if grid:
            axes.set(xticks=apart(taus, x), yticks=apart(rhos, y))
            axes.xaxis.set_major_formatter("{x:.3g}")
            axes.yaxis.set_major_formatter("{x:.3g}")
        axes.spines[:].set_visible(False)
        for i, c in enumerate(references):
            outlined = c["arm"] != "off" and chosen.get(c["arm"]) == (c["tau"], c["rho"])
            draw_cell(beside, (0, 1), (-i - 0.62, -i), c, scale, outlined, uneven)
            name = "off" if c["arm"] == "off" else f"random {c['rho']:.2g}"
            beside.text(0.5, -i + 0.05, name, ha="center", va="bottom", fontsize=7.5, color=SOFT)
        beside.set(xlim=(-0.05, 1.05), ylim=(-max(len(references), 4), 0.35))
        beside.set_axis_off()

    names = [arm for arm in dict.fromkeys(c["arm"] for c in cells) if numbers.is_alignment_arm(arm)]
    return [
        {
            "text": "",
            "svg": drawing(f"map-{arm}", f"mIoU of {arm} by tau and rho", (4.8, 3.6), draw, arm),
        }
        for arm in names
    ]
