"""Draw the figures over epochs, cost and severity, and the diagnostics of the masks."""

import math
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from orchestrator.reporting import numbers
from orchestrator.reporting.figures.style import INK, CaptionedFigure, drawing, style_of
from orchestrator.reporting.numbers import Trial
from orchestrator.reporting.robust_arms import RobustScore
from orchestrator.reporting.summaries import ArmSummary

Curve = list[tuple[int, float, float, float]]
"""(epoch, mean, smallest, largest), as numbers.mean_curve returns it."""


@dataclass(frozen=True)
class Diagnostic:
    """One diagnostic of the masks and how it is shown."""

    key: str
    """Name of the metric in a trial's history."""
    title: str
    unit: str
    """Label of the y axis."""
    meaning: str
    factor: float = 1
    """Factor on the values; 100 shows shares in per cent."""
    reference: float | None = None
    """Value at which the mask knows or leaks nothing of the target; drawn as a dotted line."""


DIAGNOSTICS = [
    Diagnostic(
        "aml/hidden", "hidden share", "% of image", "How much of the image the mask hid.", 100
    ),
    Diagnostic(
        "aml/hidden_target",
        "hidden share of the target",
        "% of target",
        "How much of the referent the mask hid.",
        100,
    ),
    Diagnostic(
        "aml/lift",
        "lift",
        "ratio",
        "Hidden share of the target / hidden share. 1: the mask knows nothing of it.",
        reference=1.0,
    ),
    Diagnostic(
        "aml/auroc",
        "alignment AUROC",
        "AUROC",
        "Does the alignment map rank target over background? 0.5: it does not.",
        reference=0.5,
    ),
    Diagnostic(
        "aml/mask_auroc",
        "mask AUROC",
        "AUROC",
        "Does the mask alone tell where the target is? 0.5: it does not.",
        reference=0.5,
    ),
    Diagnostic(
        "aml/leak",
        "leak",
        "mIoU, points",
        "Probe mIoU with masks on minus without. Above 0: the model reads the holes.",
        100,
        0.0,
    ),
]

# Cost


def cost_figures(arms: list[ArmSummary]) -> list[CaptionedFigure]:
    """Draw val/mIoU against the FLOPs of an arm's training, in epochs of arm off.

    There is no figure if fewer than two arms have both numbers.
    """
    known = [a for a in arms if a.seeds and math.isfinite(a.cost_ratio)]
    if len(known) < 2:
        return []
    alt = "mIoU of the arms by the FLOPs of their training"
    text = (
        "Each arm's confirmed mean with its 95% t interval. To the upper left is better; "
        "arms one above the other cost the same."
    )
    return [{"svg": drawing("cost", alt, (4.6, 3.2), _draw_cost, known), "text": text}]


def _draw_cost(fig: Figure, arms: list[ArmSummary]) -> None:
    axes = fig.subplots()
    for arm in arms:
        style = style_of(arm.arm)
        half = 100 * (arm.mIoU.high - arm.mIoU.mean)
        x = arm.cost_ratio * arm.epochs
        y = 100 * arm.mIoU.mean
        axes.errorbar(
            x,
            y,
            yerr=half if math.isfinite(half) else None,
            color=style["color"],
            marker=style["marker"],
            markersize=6,
            capsize=2,
        )
        axes.annotate(
            arm.arm,
            (x, y),
            xytext=(6, 4),
            textcoords="offset points",
            fontsize=8,
            color=style["color"],
        )
    axes.margins(x=0.25)
    axes.set(
        xlabel="FLOPs of the training, in epochs of off",
        ylabel="val mIoU (%)",
        title="Cost against quality",
    )
    axes.grid(axis="y")


# Severity of corruptions


def severity_figures(evaluations: list[tuple[str, dict, list[str]]]) -> list[CaptionedFigure]:
    """Draw mIoU by severity, with a line for each corruption.

    Args:
        evaluations: Name, content of metrics.json, and splits of each evaluation.

    Returns:
        A figure for each split of an evaluation that has corruptions.
    """
    figures: list[CaptionedFigure] = []
    for name, metrics, splits in evaluations:
        for split in splits:
            lines = _severity_lines(metrics, split)
            if not lines:
                continue
            title = f"{name}, {split}"
            svg = drawing(
                f"severity-{title}",
                f"mIoU by severity: {title}",
                (4.6, 3.2),
                _draw_severities,
                title,
                metrics[split]["mIoU"],
                lines,
            )
            figures.append({"svg": svg, "text": "Dotted: the clean pictures."})
    return figures


def _severity_lines(metrics: dict, split: str) -> dict[str, list[tuple[int, float]]]:
    """Return (severity, mIoU) of each corruption of a split, sorted by severity."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for key, scores in metrics.items():
        corruption, _, severity = key.removeprefix(f"{split}/").partition(":")
        if key.startswith(f"{split}/") and severity != "0":
            lines.setdefault(corruption, []).append((int(severity), scores["mIoU"]))
    return {corruption: sorted(line) for corruption, line in lines.items()}


def _draw_severities(
    fig: Figure, title: str, clean: float, lines: dict[str, list[tuple[int, float]]]
) -> None:
    axes = fig.subplots()
    for i, (name, line) in enumerate(lines.items()):
        axes.plot(
            [severity for severity, _ in line],
            [100 * score for _, score in line],
            label=name,
            color=colormaps["viridis"](0.9 * i / max(len(lines) - 1, 1)),
            marker="osD^vPX"[i % 7],
            markersize=4,
            linewidth=1.4,
        )
    axes.axhline(100 * clean, color=INK, linewidth=0.9, linestyle=":")
    axes.set(xlabel="severity", ylabel="mIoU (%)", title=title, xticks=range(1, 6), ylim=(0, None))
    axes.legend(fontsize=7.5, frameon=False, ncols=2)
    axes.grid(axis="y")


def robust_figures(scores: list[RobustScore]) -> list[CaptionedFigure]:
    """Draw the arms' mIoU clean, under each corruption and in the mean; none without scores."""
    if not scores:
        return []
    svg = drawing(
        "robust-arms",
        "mIoU of each arm, clean and under each corruption",
        (6.4, 3.2),
        _draw_robust_arms,
        scores,
    )
    text = "Markers: mean over seeds. Bars: 95% t interval, cut where it leaves the picture."
    return [{"svg": svg, "text": text}]


def _draw_robust_arms(fig: Figure, scores: list[RobustScore]) -> None:
    axes = fig.subplots()
    arms = list(dict.fromkeys(s.arm for s in scores))
    names = list(dict.fromkeys(s.corruption for s in scores))
    for i, arm in enumerate(arms):
        own = [s for s in scores if s.arm == arm]
        shift = 0.6 * ((i + 0.5) / len(arms) - 0.5)
        style = style_of(arm)
        places = [names.index(s.corruption) + shift for s in own]
        means = [100 * s.mIoU.mean for s in own]
        axes.plot(
            places,
            means,
            linestyle="",
            marker=style["marker"],
            color=style["color"],
            label=arm,
            markersize=5,
        )
        for place, score in zip(places, own, strict=True):
            if math.isfinite(score.mIoU.low):
                ends = [100 * score.mIoU.low, 100 * score.mIoU.high]
                axes.plot([place, place], ends, color=style["color"], linewidth=1)
    top = max(100 * s.mIoU.mean for s in scores)
    axes.set(ylabel="mIoU (%)", ylim=(0, 1.25 * top or 1), xticks=range(len(names)))
    axes.set_xticklabels(names)
    axes.legend(fontsize=7.5, frameon=False, ncols=3)
    axes.grid(axis="y")


# Learning curves


def curve_figures(trials: list[Trial]) -> list[CaptionedFigure]:
    """Draw the learning curves of the search and of the confirmation, if there are any."""
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
    figures: list[CaptionedFigure] = []
    for stage, (title, text) in texts.items():
        members = [t for t in trials if t["stage"] == stage]
        if members:
            svg = curves_figure("val/mIoU", members, 100, stage == "confirm", title)
            figures.append({"svg": svg, "text": text})
    return figures


def curves_figure(
    key: str, trials: list[Trial], factor: float, show_means: bool, title: str = ""
) -> Markup:
    """Draw a metric by epoch, with a thin line for each trial in the colour of its arm.

    Args:
        key: Name of the metric in a trial's history.
        trials: Trials to draw.
        factor: Factor on the values; 100 shows shares in per cent.
        show_means: Whether to draw each arm's mean on top, with the range of its seeds shaded.
        title: Title of the figure.
    """
    alt = f"{key} by epoch. {title}"
    return drawing(
        f"curve-{key}-{title}",
        alt,
        (4.6, 3.2),
        _draw_curves,
        key,
        trials,
        factor,
        show_means,
        title,
    )


def _draw_curves(
    fig: Figure, key: str, trials: list[Trial], factor: float, show_means: bool, title: str
) -> None:
    axes = fig.subplots()
    for trial in trials:
        line = [(row[0], factor * row[1]) for row in numbers.mean_curve([trial], key)]
        if not line:
            continue
        style = style_of(trial["arm"])
        end = {"stopped": "|", "failed": "x"}.get(trial["state"], "")
        axes.plot(
            *zip(*line, strict=True),
            color=style["color"],
            linestyle=style["linestyle"],
            linewidth=0.9,
            alpha=0.55,
        )
        axes.plot(*line[-1], color=style["color"], marker=end, markersize=7)
    for arm in numbers.arms_of(trials, {}) if show_means else ():
        done = [t for t in trials if t["arm"] == arm and t["state"] == "done"]
        curve = numbers.mean_curve(done, key)
        if curve:
            epochs = [row[0] for row in curve]
            mean, low, high = ([factor * row[i] for row in curve] for i in (1, 2, 3))
            axes.plot(epochs, mean, **style_of(arm), linewidth=1.9, markersize=4)
            color = style_of(arm)["color"]
            axes.fill_between(epochs, low, high, color=color, alpha=0.13, linewidth=0)
    unit = " (%)" if factor == 100 else ""
    _label_epochs(axes, f"{key}{unit}", title)


def _label_epochs(axes: Axes, ylabel: str, title: str) -> None:
    """Label axes over epochs, which have ticks at whole numbers."""
    axes.set(xlabel="epoch", ylabel=ylabel, title=title)
    locator = axes.xaxis.get_major_locator()
    assert isinstance(locator, MaxNLocator)
    locator.set_params(integer=True)
    axes.grid(axis="y")


# Diagnostics


def diagnostic_curves(trials: list[Trial]) -> list[tuple[Diagnostic, dict[str, Curve]]]:
    """Return each diagnostic of the masks that was recorded, with a curve for each arm.

    A curve is the mean over the arm's confirmation trials, or over its search trials if it has
    none. Where the training stream has no value the one of the fixed validation probe is used.
    """
    groups: dict[str, list[Trial]] = {}
    for arm in numbers.arms_of(trials, {}):
        alive = [t for t in trials if t["arm"] == arm and t["state"] != "failed"]
        groups[arm] = [t for t in alive if t["stage"] == "confirm"] or alive
    found = []
    for diagnostic in DIAGNOSTICS:
        key = diagnostic.key
        probe = key.replace("/", "/probe_")
        curves = {
            arm: numbers.mean_curve(members, key) or numbers.mean_curve(members, probe)
            for arm, members in groups.items()
        }
        curves = {arm: curve for arm, curve in curves.items() if curve}
        if curves:
            found.append((diagnostic, curves))
    return found


def diagnostic_figures(trials: list[Trial]) -> list[CaptionedFigure]:
    """Draw a small figure for each diagnostic of the masks, with a line for each arm."""
    return [
        {
            "svg": drawing(
                diagnostic.key,
                f"{diagnostic.title} by epoch",
                (3.4, 2.4),
                _draw_diagnostic,
                diagnostic,
                curves,
            ),
            "text": diagnostic.meaning,
        }
        for diagnostic, curves in diagnostic_curves(trials)
    ]


def _draw_diagnostic(fig: Figure, diagnostic: Diagnostic, curves: dict[str, Curve]) -> None:
    axes = fig.subplots()
    for arm, curve in curves.items():
        epochs = [row[0] for row in curve]
        means = [diagnostic.factor * row[1] for row in curve]
        axes.plot(epochs, means, **style_of(arm), linewidth=1.5, markersize=3.5)
    if diagnostic.reference is not None:
        axes.axhline(diagnostic.reference, color=INK, linewidth=0.9, linestyle=":")
    _label_epochs(axes, diagnostic.unit, diagnostic.title)
