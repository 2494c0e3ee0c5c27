"""The plots of a report, as inline SVG: maps, lines, learning curves and diagnostics, an arm in the same colour and marker throughout."""

import io
import math
import re
from collections.abc import Callable
from itertools import pairwise

from markupsafe import Markup, escape
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from orchestrator import statistics as st

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
SPARE = [("#334155", ":", "p"), ("#0e7490", "--", "*"), ("#4d7c0f", "-.", "h"), ("#9f1239", ":", "<"), ("#5b21b6", "--", ">")]
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
DIAGNOSTICS = [  # key, title, axis, what it means, the value at which nothing is known or leaked
    ("aml/hidden", "hidden share", "share of image", "How much of the image the mask hid.", None),
    ("aml/hidden_target", "hidden share of the target", "share of target", "How much of the referent the mask hid.", None),
    ("aml/lift", "lift", "ratio", "Hidden share of the target / hidden share. 1: the mask knows nothing of it.", 1.0),
    ("aml/auroc", "alignment AUROC", "AUROC", "Does the alignment map rank target over background? 0.5: it does not.", 0.5),
    ("aml/mask_auroc", "mask AUROC", "AUROC", "Does the mask alone tell where the target is? 0.5: it does not.", 0.5),
    ("aml/leak", "leak", "mIoU", "Probe mIoU with masks on minus without. Above 0: the model reads the holes.", 0.0),
]

EARLY = "Early epochs say little, as masking pays late; a sweep with search.scheduler none compares full runs."


def drawing(name: str, alt: str, size: tuple[float, float], draw: Callable, *args) -> Markup:
    """An inline SVG of what `draw(figure, *args)` puts on a figure of `size` inches; `name` makes its ids unique."""
    name = re.sub(r"\W", "-", name)
    bare = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with rc_context({**PLOT, "svg.hashsalt": name}):
        fig, buffer = Figure(size, layout="constrained"), io.StringIO()
        draw(fig, *args)
        fig.savefig(buffer, format="svg", transparent=True, metadata=bare)
    text = re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.S)
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, Helvetica, Arial, sans-serif", text[text.index("<svg") :])
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
        axes.plot([0.05, 0.5, 0.95], [0, 0, 0], **style_of(arm), markevery=[1], markersize=5, linewidth=1.6)
        axes.set_axis_off()

    return [{"arm": arm, "svg": drawing(f"key-{arm}", "", (0.55, 0.18), sample, arm)} for arm in arms]


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


def draw_cell(axes: Axes, across: tuple, up: tuple, row: dict, scale: tuple, outlined: bool, epochs: bool) -> None:
    """One setting as a coloured box with its number, hatched where no trial ran to its end; `epochs`: with its epoch."""
    value, (low, high) = row["mIoU_best"], scale
    known = math.isfinite(value)
    share = (value - low) / (high - low) if high > low else 0.5
    full = known and not row["early"]
    color = colormaps["Blues"](0.06 + 0.72 * share) if full else "white"
    place = ((across[0], up[0]), across[1] - across[0], up[1] - up[0])
    axes.add_patch(
        Rectangle(*place, facecolor=color, edgecolor="white" if full else "#b3bcc8", hatch="////" if row["early"] else None, linewidth=1.2)
    )
    if outlined:
        axes.add_patch(Rectangle(*place, fill=False, edgecolor=INK, linewidth=2.2, zorder=4, clip_on=False))
    text = st.pct(value, 1) if known else "failed"
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


def draw_products(axes: Axes, products: list[float], x: tuple[float, float], y: tuple[float, float]) -> None:
    """Dashed curves tau rho = r through the box x by y, for each r that occurs twice, named where they leave it."""
    free = {"right": -math.inf, "top": -math.inf}
    small = {"textcoords": "offset points", "fontsize": 7.5, "color": SOFT}
    for r in sorted({p for p in products if p > 0 and products.count(p) > 1}):
        xs = [max(x[0], 1e-9) + (x[1] - max(x[0], 1e-9)) * i / 300 for i in range(301)]
        curve = [(a, r / a) for a in xs if y[0] <= r / a <= y[1]]
        if len(curve) < 2:
            continue
        axes.plot(*zip(*curve, strict=True), color=INK, linewidth=0.9, linestyle=(0, (4, 3)), alpha=0.6)
        end = curve[-1]
        if end[0] > x[1] - (x[1] - x[0]) / 50 and end[1] - free["right"] > (y[1] - y[0]) / 16:
            free["right"] = end[1]
            axes.annotate(f"{r:.2g}", end, xytext=(4, 0), va="center", **small)
        elif curve[0][1] > y[1] - (y[1] - y[0]) / 20 and curve[0][0] - free["top"] > (x[1] - x[0]) / 12:
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
        across, up = (edges(v) if grid else {x: (x - 0.045, x + 0.045) for x in v} for v in (taus, rhos))
        x, y = ((min(b[0] for b in d.values()), max(b[1] for b in d.values())) for d in (across, up))
        axes, beside = fig.subplots(1, 2, width_ratios=[5, 1])
        for c in mine:
            outlined = arm in chosen and math.dist((c["tau"], c["rho"]), chosen[arm]) < 1e-6
            draw_cell(axes, across[c["tau"]], up[c["rho"]], c, scale, outlined, uneven)
        draw_products(axes, [c["product"] for c in mine + references], x, y)
        axes.set(xlim=x, ylim=y, xlabel="τ (share of blocks called weak)", ylabel="ρ (share of weak blocks hidden)")
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

    names = [arm for arm in dict.fromkeys(c["arm"] for c in cells) if st.is_alignment_arm(arm)]
    return [{"text": "", "svg": drawing(f"map-{arm}", f"mIoU of {arm} by tau and rho", (4.8, 3.6), draw, arm)} for arm in names]


def line_figures(line: list[dict]) -> list[dict]:
    """val/mIoU against tau along tau rho = r, with the ends of each line in words: a figure for each arm and epoch read.

    Lines read at different epochs never share a figure, as a later epoch alone lifts a line; those read before the last have hollow points.
    """

    def draw(fig: Figure, title: str, lines: list[tuple[str, float, list[dict]]]) -> None:
        axes = fig.subplots()
        first = lines[0][2][0]
        early, off = first["epoch"] < first["of_epochs"], 100 * first["off"]
        values = [100 * p["mIoU"] for *_, spots in lines for p in spots] + ([off] if math.isfinite(off) else [])
        pad = max(0.2, 0.15 * (max(values) - min(values)))
        low, high = min(values) - pad, max(values) + pad
        label = -math.inf
        for i, (_, r, spots) in enumerate(lines):
            color, mark = colormaps["viridis"](0.05 + 0.7 * i / max(len(lines) - 1, 1)), "osD^vPXph"[i % 9]
            xs, ys = [p["tau"] for p in spots], [100 * p["mIoU"] for p in spots]
            axes.plot(xs, ys, color=color, linewidth=1.6, linestyle=("-", "--", "-.", ":")[i % 4])
            look = {"color": color, "marker": mark, "markersize": 6, "markerfacecolor": "white" if early else color, "linewidth": 1, "capsize": 2}
            for x, y, sd in zip(xs, ys, [100 * p["mIoU_sd"] for p in spots], strict=True):
                axes.errorbar(x, y, yerr=None if math.isnan(sd) else sd, **look)
            label = max(ys[-1], label + (high - low) / 15)
            box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.6}
            axes.text(xs[-1] + 0.03, label, f"r = {r:.2g}", va="center", fontsize=8, color=color, clip_on=False, bbox=box)
        if math.isfinite(off):
            axes.axhline(off, color=SOFT, linewidth=0.9, linestyle=":")
            axes.text(0.01, off, "off", va="bottom", fontsize=8, color=SOFT)
        axes.set(xlim=(0, 1.02), ylim=(low, high), title=title, ylabel="val mIoU (%)", xlabel="τ    (← exactly the worst r   ·   not looking →)")
        axes.grid(axis="y")

    figures = []
    for arm, epoch in sorted(dict.fromkeys((row["line_arm"], row["epoch"]) for row in line), key=lambda pair: -pair[1]):
        mine = st.by_line([row for row in line if (row["line_arm"], row["epoch"]) == (arm, epoch)])
        texts = [st.line_text(r, spots) for _, r, spots in mine] + [EARLY] * (epoch < mine[0][2][0]["of_epochs"])
        title = f"{arm}, {st.at_epoch(mine[0][2])}"
        mine.sort(key=lambda item: item[2][-1]["mIoU"])
        svg = drawing(f"line-{arm}-{epoch}", f"mIoU of {title}, along lines of equal hidden share", (4.6, 3.5), draw, title, mine)
        figures.append({"svg": svg, "text": "\n".join(texts)})
    return figures


def cost_figures(arms: list[dict]) -> list[dict]:
    """mIoU against what an arm's training costs, in epochs of arm off; empty where fewer than two arms have both."""
    spots = [a for a in arms if a["seeds"] and math.isfinite(a["cost_ratio"])]
    if len(spots) < 2:
        return []

    def draw(fig: Figure) -> None:
        axes = fig.subplots()
        for a in spots:
            look, half = style_of(a["arm"]), 100 * (a["mIoU_high"] - a["mIoU"])
            x, y = a["cost_ratio"] * a["epochs"], 100 * a["mIoU"]
            axes.errorbar(x, y, yerr=half if math.isfinite(half) else None, color=look["color"], marker=look["marker"], markersize=6, capsize=2)
            axes.annotate(a["arm"], (x, y), xytext=(6, 4), textcoords="offset points", fontsize=8, color=look["color"])
        axes.margins(x=0.25)
        axes.set(xlabel="FLOPs of the training, in epochs of off", ylabel="val mIoU (%)", title="Cost against quality")
        axes.grid(axis="y")

    text = "Each arm's confirmed mean with its 95% t interval. To the upper left is better; arms one above the other cost the same."
    return [{"svg": drawing("cost", "mIoU of the arms by the FLOPs of their training", (4.6, 3.2), draw), "text": text}]


def severity_figures(evaluations: list[tuple[str, dict, list[str]]]) -> list[dict]:
    """mIoU by severity, a line a corruption, of each split of an evaluation with corruptions.   (name, metrics.json, splits) each"""

    def draw(fig: Figure, title: str, clean: float, lines: dict[str, list[tuple[int, float]]]) -> None:
        axes = fig.subplots()
        for i, (name, spots) in enumerate(lines.items()):
            look = {"color": colormaps["viridis"](0.9 * i / max(len(lines) - 1, 1)), "marker": "osD^vPX"[i % 7], "markersize": 4, "linewidth": 1.4}
            axes.plot([s for s, _ in spots], [100 * v for _, v in spots], label=name, **look)
        axes.axhline(100 * clean, color=INK, linewidth=0.9, linestyle=":")
        axes.set(xlabel="severity", ylabel="mIoU (%)", title=title, xticks=range(1, 6), ylim=(0, None))
        axes.legend(fontsize=7.5, frameon=False, ncols=2)
        axes.grid(axis="y")

    figures = []
    for name, metrics, splits in evaluations:
        for split in splits:
            lines: dict[str, list[tuple[int, float]]] = {}
            for key, scores in metrics.items():
                corruption, _, severity = key.removeprefix(f"{split}/").partition(":")
                if key.startswith(f"{split}/") and severity != "0":
                    lines.setdefault(corruption, []).append((int(severity), scores["mIoU"]))
            if lines:
                title = f"{name}, {split}"
                order = {k: sorted(v) for k, v in lines.items()}
                svg = drawing(f"severity-{title}", f"mIoU by severity: {title}", (4.6, 3.2), draw, title, metrics[split]["mIoU"], order)
                figures.append({"svg": svg, "text": "Dotted: the clean pictures."})
    return figures


def curves_figure(key: str, trials: list[dict], factor: float, bold: bool, title: str = "") -> Markup:
    """One thin line a trial, coloured by arm; with `bold`, each arm's mean on top and the range of its seeds shaded."""

    def draw(fig: Figure) -> None:
        axes = fig.subplots()
        for t in trials:
            if rows := [(r[0], factor * r[1]) for r in st.mean_curve([t], key)]:
                look, end = style_of(t["arm"]), {"stopped": "|", "failed": "x"}.get(t["state"], "")
                axes.plot(*zip(*rows, strict=True), color=look["color"], linestyle=look["linestyle"], linewidth=0.9, alpha=0.55)
                axes.plot(*rows[-1], color=look["color"], marker=end, markersize=7)
        for arm in st.arms_of(trials, {}) if bold else ():
            if curve := st.mean_curve([t for t in trials if t["arm"] == arm and t["state"] == "done"], key):
                xs = [row[0] for row in curve]
                mean, low, high = ([factor * row[i] for row in curve] for i in (1, 2, 3))
                axes.plot(xs, mean, **style_of(arm), linewidth=1.9, markersize=4)
                axes.fill_between(xs, low, high, color=style_of(arm)["color"], alpha=0.13, linewidth=0)
        axes.set(xlabel="epoch", ylabel=key + (" (%)" if factor == 100 else ""), title=title)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(axis="y")

    return drawing(f"curve-{key}-{title}", f"{key} by epoch. {title}", (4.6, 3.2), draw)


def curve_figures(trials: list[dict]) -> list[dict]:
    """The learning curves of the search and of the confirmation, where there are any."""
    texts = {
        "search": ("Search: every trial", "One line a trial. Bar at its end: stopped early; cross: failed."),
        "confirm": ("Confirmation: mean of the seeds", "Thick: mean of an arm's finished seeds; shaded: lowest to highest; thin: each seed."),
    }
    return [
        {"svg": curves_figure("val/mIoU", mine, 100, stage == "confirm", title), "text": text}
        for stage, (title, text) in texts.items()
        if (mine := [t for t in trials if t["stage"] == stage])
    ]


def diagnostic_figures(trials: list[dict]) -> list[dict]:
    """Small multiples, a line an arm: the mean of its confirmation trials, else of its search trials."""
    groups = {}
    for arm in st.arms_of(trials, {}):
        alive = [t for t in trials if t["arm"] == arm and t["state"] != "failed"]
        groups[arm] = [t for t in alive if t["stage"] == "confirm"] or alive

    def draw(fig: Figure, lines: dict, title: str, unit: str, reference: float | None) -> None:
        axes = fig.subplots()
        for arm, curve in lines.items():
            axes.plot([c[0] for c in curve], [c[1] for c in curve], **style_of(arm), linewidth=1.5, markersize=3.5)
        if reference is not None:
            axes.axhline(reference, color=INK, linewidth=0.9, linestyle=":")
        axes.set(xlabel="epoch", ylabel=unit, title=title)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(axis="y")

    figures = []
    for key, title, unit, text, reference in DIAGNOSTICS:
        probe = key.replace("/", "/probe_")
        curves = {arm: st.mean_curve(ts, key) or st.mean_curve(ts, probe) for arm, ts in groups.items()}
        if lines := {arm: curve for arm, curve in curves.items() if curve}:
            svg = drawing(key, f"{title} by epoch", (3.4, 2.4), draw, lines, title, unit, reference)
            figures.append({"svg": svg, "text": text})
    return figures
