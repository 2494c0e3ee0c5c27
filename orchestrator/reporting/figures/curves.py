"""Figures over epochs, cost, severity and diagnostics."""

import math

from markupsafe import Markup
from matplotlib import colormaps
from matplotlib.figure import Figure

from orchestrator.reporting import numbers, wording
from orchestrator.reporting.figures.style import INK, SOFT, drawing, style_of

DIAGNOSTICS = [  # key, title, axis, what it means, the value at which nothing is known or leaked
    ("aml/hidden", "hidden share", "share of image", "How much of the image the mask hid.", None),
    (
        "aml/hidden_target",
        "hidden share of the target",
        "share of target",
        "How much of the referent the mask hid.",
        None,
    ),
    (
        "aml/lift",
        "lift",
        "ratio",
        "Hidden share of the target / hidden share. 1: the mask knows nothing of it.",
        1.0,
    ),
    (
        "aml/auroc",
        "alignment AUROC",
        "AUROC",
        "Does the alignment map rank target over background? 0.5: it does not.",
        0.5,
    ),
    (
        "aml/mask_auroc",
        "mask AUROC",
        "AUROC",
        "Does the mask alone tell where the target is? 0.5: it does not.",
        0.5,
    ),
    (
        "aml/leak",
        "leak",
        "mIoU",
        "Probe mIoU with masks on minus without. Above 0: the model reads the holes.",
        0.0,
    ),
]

EARLY = "Early epochs say little, as masking pays late; a sweep with search.scheduler none compares full runs."


def line_figures(line: list[dict]) -> list[dict]:
    """val/mIoU against tau along tau rho = r, with the ends of each line in words: a figure for each arm and epoch read.

    Lines read at different epochs never share a figure, as a later epoch alone lifts a line; those read before the last have hollow points.
    """

    def draw(fig: Figure, title: str, lines: list[tuple[str, float, list[dict]]]) -> None:
        axes = fig.subplots()
        first = lines[0][2][0]
        early, off = first["epoch"] < first["of_epochs"], 100 * first["off"]
        values = [100 * p["mIoU"] for *_, spots in lines for p in spots] + (
            [off] if math.isfinite(off) else []
        )
        pad = max(0.2, 0.15 * (max(values) - min(values)))
        low, high = min(values) - pad, max(values) + pad
        label = -math.inf
        for i, (_, r, spots) in enumerate(lines):
            color, mark = (
                colormaps["viridis"](0.05 + 0.7 * i / max(len(lines) - 1, 1)),
                "osD^vPXph"[i % 9],
            )
            xs, ys = [p["tau"] for p in spots], [100 * p["mIoU"] for p in spots]
            axes.plot(xs, ys, color=color, linewidth=1.6, linestyle=("-", "--", "-.", ":")[i % 4])
            look = {
                "color": color,
                "marker": mark,
                "markersize": 6,
                "markerfacecolor": "white" if early else color,
                "linewidth": 1,
                "capsize": 2,
            }
            for x, y, sd in zip(xs, ys, [100 * p["mIoU_sd"] for p in spots], strict=True):
                axes.errorbar(x, y, yerr=None if math.isnan(sd) else sd, **look)
            label = max(ys[-1], label + (high - low) / 15)
            box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.6}
            axes.text(
                xs[-1] + 0.03,
                label,
                f"r = {r:.2g}",
                va="center",
                fontsize=8,
                color=color,
                clip_on=False,
                bbox=box,
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

    figures = []
    for arm, epoch in sorted(
        dict.fromkeys((row["line_arm"], row["epoch"]) for row in line), key=lambda pair: -pair[1]
    ):
        mine = wording.by_line(
            [row for row in line if (row["line_arm"], row["epoch"]) == (arm, epoch)]
        )
        texts = [wording.line_text(r, spots) for _, r, spots in mine] + [EARLY] * (
            epoch < mine[0][2][0]["of_epochs"]
        )
        title = f"{arm}, {wording.at_epoch(mine[0][2])}"
        mine.sort(key=lambda item: item[2][-1]["mIoU"])
        svg = drawing(
            f"line-{arm}-{epoch}",
            f"mIoU of {title}, along lines of equal hidden share",
            (4.6, 3.5),
            draw,
            title,
            mine,
        )
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
            axes.errorbar(
                x,
                y,
                yerr=half if math.isfinite(half) else None,
                color=look["color"],
                marker=look["marker"],
                markersize=6,
                capsize=2,
            )
            axes.annotate(
                a["arm"],
                (x, y),
                xytext=(6, 4),
                textcoords="offset points",
                fontsize=8,
                color=look["color"],
            )
        axes.margins(x=0.25)
        axes.set(
            xlabel="FLOPs of the training, in epochs of off",
            ylabel="val mIoU (%)",
            title="Cost against quality",
        )
        axes.grid(axis="y")

    text = "Each arm's confirmed mean with its 95% t interval. To the upper left is better; arms one above the other cost the same."
    return [
        {
            "svg": drawing(
                "cost", "mIoU of the arms by the FLOPs of their training", (4.6, 3.2), draw
            ),
            "text": text,
        }
    ]


def severity_figures(evaluations: list[tuple[str, dict, list[str]]]) -> list[dict]:
    """mIoU by severity, a line a corruption, of each split of an evaluation with corruptions.   (name, metrics.json, splits) each"""

    def draw(
        fig: Figure, title: str, clean: float, lines: dict[str, list[tuple[int, float]]]
    ) -> None:
        axes = fig.subplots()
        for i, (name, spots) in enumerate(lines.items()):
            look = {
                "color": colormaps["viridis"](0.9 * i / max(len(lines) - 1, 1)),
                "marker": "osD^vPX"[i % 7],
                "markersize": 4,
                "linewidth": 1.4,
            }
            axes.plot([s for s, _ in spots], [100 * v for _, v in spots], label=name, **look)
        axes.axhline(100 * clean, color=INK, linewidth=0.9, linestyle=":")
        axes.set(
            xlabel="severity", ylabel="mIoU (%)", title=title, xticks=range(1, 6), ylim=(0, None)
        )
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
                svg = drawing(
                    f"severity-{title}",
                    f"mIoU by severity: {title}",
                    (4.6, 3.2),
                    draw,
                    title,
                    metrics[split]["mIoU"],
                    order,
                )
                figures.append({"svg": svg, "text": "Dotted: the clean pictures."})
    return figures


def curves_figure(
    key: str, trials: list[dict], factor: float, bold: bool, title: str = ""
) -> Markup:
    """One thin line a trial, coloured by arm; with `bold`, each arm's mean on top and the range of its seeds shaded."""

    def draw(fig: Figure) -> None:
        axes = fig.subplots()
        for t in trials:
            if rows := [(r[0], factor * r[1]) for r in numbers.mean_curve([t], key)]:
                look, end = style_of(t["arm"]), {"stopped": "|", "failed": "x"}.get(t["state"], "")
                axes.plot(
                    *zip(*rows, strict=True),
                    color=look["color"],
                    linestyle=look["linestyle"],
                    linewidth=0.9,
                    alpha=0.55,
                )
                axes.plot(*rows[-1], color=look["color"], marker=end, markersize=7)
        for arm in numbers.arms_of(trials, {}) if bold else ():
            if curve := numbers.mean_curve(
                [t for t in trials if t["arm"] == arm and t["state"] == "done"], key
            ):
                xs = [row[0] for row in curve]
                mean, low, high = ([factor * row[i] for row in curve] for i in (1, 2, 3))
                axes.plot(xs, mean, **style_of(arm), linewidth=1.9, markersize=4)
                axes.fill_between(
                    xs, low, high, color=style_of(arm)["color"], alpha=0.13, linewidth=0
                )
        axes.set(xlabel="epoch", ylabel=key + (" (%)" if factor == 100 else ""), title=title)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(axis="y")

    return drawing(f"curve-{key}-{title}", f"{key} by epoch. {title}", (4.6, 3.2), draw)


def curve_figures(trials: list[dict]) -> list[dict]:
    """The learning curves of the search and of the confirmation, where there are any."""
    texts = {
        "search": (
            "Search: every trial",
            "One line a trial. Bar at its end: stopped early; cross: failed.",
        ),
        "confirm": (
            "Confirmation: mean of the seeds",
            "Thick: mean of an arm's finished seeds; shaded: lowest to highest; thin: each seed.",
        ),
    }
    return [
        {"svg": curves_figure("val/mIoU", mine, 100, stage == "confirm", title), "text": text}
        for stage, (title, text) in texts.items()
        if (mine := [t for t in trials if t["stage"] == stage])
    ]


def diagnostic_figures(trials: list[dict]) -> list[dict]:
    """Small multiples, a line an arm: the mean of its confirmation trials, else of its search trials."""
    groups = {}
    for arm in numbers.arms_of(trials, {}):
        alive = [t for t in trials if t["arm"] == arm and t["state"] != "failed"]
        groups[arm] = [t for t in alive if t["stage"] == "confirm"] or alive

    def draw(fig: Figure, lines: dict, title: str, unit: str, reference: float | None) -> None:
        axes = fig.subplots()
        for arm, curve in lines.items():
            axes.plot(
                [c[0] for c in curve],
                [c[1] for c in curve],
                **style_of(arm),
                linewidth=1.5,
                markersize=3.5,
            )
        if reference is not None:
            axes.axhline(reference, color=INK, linewidth=0.9, linestyle=":")
        axes.set(xlabel="epoch", ylabel=unit, title=title)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(axis="y")

    figures = []
    for key, title, unit, text, reference in DIAGNOSTICS:
        probe = key.replace("/", "/probe_")
        curves = {
            arm: numbers.mean_curve(ts, key) or numbers.mean_curve(ts, probe)
            for arm, ts in groups.items()
        }
        if lines := {arm: curve for arm, curve in curves.items() if curve}:
            svg = drawing(key, f"{title} by epoch", (3.4, 2.4), draw, lines, title, unit, reference)
            figures.append({"svg": svg, "text": text})
    return figures
