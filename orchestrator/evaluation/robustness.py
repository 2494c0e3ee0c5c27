"""Score checkpoints under corruption, and compare that with clean scores and with a baseline."""

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from aml.conditions import CLEAN, CORRUPTIONS, Condition, mean_by_corruption
from aml.errors import UserError
from orchestrator import data, storage

logger = logging.getLogger(__name__)

METRICS = ("mIoU", "oIoU")
"""The metrics that are reported under corruption, and compared between evaluations."""


def score_conditions(
    checkpoints: Mapping[str, Path],
    shards: storage.Filesystem,
    split: str,
    conditions: Sequence[Condition],
    *,
    protocol: str = "square",
    limit: int | None = None,
    workers: int | None = None,
) -> dict[str, dict[str, dict]]:
    """Score several checkpoints on the same clean and corrupted pictures of a split.

    Every picture is decoded, corrupted and resized once for all checkpoints. The scores are those
    that `evaluate_checkpoint` gives.

    Args:
        checkpoints: Folders of checkpoints by name, all of one image size and fit.
        shards: Shards of the data set.
        split: Name of the split.
        conditions: Corruptions with their severities; the clean pictures are scored beside them.
        protocol: square or original, see `orchestrator.evaluation.command`.
        limit: Number of sentences, the first ones as validation takes them; None for all.
        workers: Ray tasks that share the pictures; 1 scores in this process, None takes as many
            as the cluster has GPUs or, without GPUs, cores.

    Returns:
        {name: {"clean:0": {"mIoU", "oIoU", ..., "n"}, "fog:3": ...}}, scores in [0, 1].

    Raises:
        UserError: A checkpoint or picture cannot be read, or the checkpoints were trained at
            different sizes.
    """
    import ray
    import torch

    from aml.inference import Segmenter, default_precision
    from aml.training import read_checkpoint_config
    from orchestrator.evaluation import worker
    from orchestrator.evaluation.samples import SampleLoader
    from orchestrator.evaluation.scoring import SharedScoringTask

    configs = {name: read_checkpoint_config(folder) for name, folder in checkpoints.items()}
    sizes = {(config["image_size"], config["fit"]) for config in configs.values()}
    if len(sizes) > 1:
        raise UserError(
            f"the checkpoints were trained at {len(sizes)} different sizes ("
            + ", ".join(f"{size} px {fit}" for size, fit in sorted(sizes))
            + "), so they cannot share pictures; score each with `evaluate`"
        )
    ((size, fit),) = sizes
    generalised = data.read_manifest(shards)["splits"][split].get("no_target")
    places = data.picture_places(shards, [split])
    chosen = None
    if limit is not None:
        found = list(itertools.islice(_sentences(shards, places, split), limit))
        pictures = {picture for picture, _ in found}
        places = [place for place in places if place[0] in pictures]
        chosen = frozenset(sentence for _, sentence in found)
    workers = workers or worker.most_workers()
    device = worker.choose_device(workers)
    batch = worker.DEFAULT_BATCH[device]
    chunk = worker.chunk_size(len(places), batch)
    workers = min(workers, -(-len(places) // chunk))
    task = SharedScoringTask(
        segmenters={},
        loader=SampleLoader([split], [CLEAN, *conditions], protocol, size, fit, chosen),
        batch=batch,
        chunk=chunk,
        generalised={split} if generalised else set(),
        device=torch.device(device),
    )
    for name, folder in checkpoints.items():
        precision = default_precision(configs[name], device)
        if workers > 1:
            task.segmenters[name] = ray.put(Segmenter.load(folder, "cpu", precision))
        else:
            task.segmenters[name] = Segmenter.load(folder, device, precision)
    what = f"scoring {len(checkpoints)} checkpoints under {len(conditions) + 1} conditions"
    sums = worker.score_pictures(task, shards, places, workers, what).sums
    scores: dict[str, dict[str, dict]] = {name: {} for name in checkpoints}
    for (name, corruption, severity), found_sums in sums.items():
        scores[name][f"{corruption}:{severity}"] = found_sums.scores()
    return scores


def _sentences(
    shards: storage.Filesystem, places: list, split: str
) -> Iterator[tuple[int, tuple[int, int]]]:
    """Yield image_id and (ref_id, sent_id) of a split's sentences in the order of validation."""
    for row in data.read_rows(shards, places, jpeg=False):
        for ref in sorted(row["refs"], key=lambda ref: ref["ref_id"]):
            if ref["split"] == split:
                for sentence in ref["sentences"]:
                    yield row["image_id"], (ref["ref_id"], sentence["sent_id"])


def mean_over_severities(scores: Mapping[str, dict], metric: str = "mIoU") -> dict[str, float]:
    """Return a checkpoint's score clean, under each corruption, and in the mean of these.

    Args:
        scores: {"clean:0": {"mIoU": ...}, "fog:3": ...} as `score_conditions` returns it.
        metric: Name of the score.

    Returns:
        {"clean": ..., "fog": ..., "mean": ...}: each corruption's mean over its severities, and
        the mean over the corruptions, where there are any.
    """
    by_condition: dict[Condition, float] = {}
    for key, score in scores.items():
        name, _, severity = key.partition(":")
        by_condition[name, int(severity)] = score[metric]
    means = mean_by_corruption(by_condition)
    corrupted = [value for name, value in means.items() if name != CLEAN[0]]
    return means | ({"mean": _mean(corrupted)} if corrupted else {})


def measure_robustness(
    metrics: dict[str, dict], baseline: dict[str, dict] | None = None
) -> dict[str, dict[str, dict]]:
    """Return the mean score under each corruption and how far it is below the clean score.

    Args:
        metrics: What metrics.json of an evaluation holds.
        baseline: The same of an earlier evaluation with the same splits and corruptions.

    Returns:
        {split: {"fog": {...}, ..., "mean": {...}}} with the splits and corruptions that were
        measured. Each corruption has `severities` and, for mIoU and oIoU, `<metric>`, the mean
        over its severities, and `drop_<metric>` = 1 - mean / clean. "mean" has the same averaged
        over the corruptions. With a baseline there are also `over_baseline_<metric>`, the mean
        minus the baseline's mean, and `relative_drop_<metric>`, the loss (clean - mean) divided
        by the baseline's: below 1 it loses less than the baseline. A value is None where it would
        be a division by 0.
    """
    found = {}
    for split in (key for key in metrics if "/" not in key):
        severities = _severities(metrics, split)
        lines = {
            name: _compare_corruption(metrics, baseline, split, name, severities[name])
            for name in CORRUPTIONS
            if name in severities
        }
        if not lines:
            continue
        means = {m: _mean(line[m] for line in lines.values()) for m in METRICS}
        line_of_means: dict = {"severities": []}
        if baseline is None:
            line_of_means |= _compare(metrics[split], means)
        else:
            baseline_means = {
                m: _mean(line[m] - line[f"over_baseline_{m}"] for line in lines.values())
                for m in METRICS
            }
            line_of_means |= _compare(metrics[split], means, baseline[split], baseline_means)
        found[split] = lines | {"mean": line_of_means}
    return found


def robustness_lines(robustness: dict) -> list[str]:
    """Return what robustness.json holds as lines for a person.

    There is one line a corruption: the mean over its severities, the drop, and how both compare
    with the baseline.
    """
    lines = []
    for split, corruptions in robustness.items():
        for name, line in corruptions.items():
            how = "mean of these"
            if line["severities"]:
                how = f"severities {','.join(map(str, line['severities']))}"
            text = (
                f"{split:12} {name:10} {how:21}"
                f" mIoU {line['mIoU']:.4f}  drop {_percent(line['drop_mIoU'])}"
                f"  oIoU {line['oIoU']:.4f}  drop {_percent(line['drop_oIoU'])}"
            )
            if "over_baseline_mIoU" in line:
                ratio = line["relative_drop_mIoU"]
                text += (
                    f"  mIoU over the baseline {100 * line['over_baseline_mIoU']:+.2f} points,"
                    f" loses x{'–' if ratio is None else f'{ratio:.2f}'} of its loss"
                )
            lines.append(text)
    return lines


def _severities(metrics: dict[str, dict], split: str) -> dict[str, list[int]]:
    """Return the severities above 0 of each corruption of a split, in rising order."""
    found: dict[str, list[int]] = {}
    for key in metrics:
        if key.startswith(f"{split}/"):
            name, _, severity = key.removeprefix(f"{split}/").partition(":")
            if severity != "0":
                found.setdefault(name, []).append(int(severity))
    return {name: sorted(severities) for name, severities in found.items()}


def _compare_corruption(
    metrics: dict[str, dict],
    baseline: dict[str, dict] | None,
    split: str,
    name: str,
    severities: list[int],
) -> dict:
    """Return the line of robustness.json for one corruption of a split."""

    def means(scores: dict[str, dict]) -> dict[str, float]:
        keys = [f"{split}/{name}:{severity}" for severity in severities]
        return {m: _mean(scores[key][m] for key in keys) for m in METRICS}

    line: dict = {"severities": severities}
    if baseline is None:
        return line | _compare(metrics[split], means(metrics))
    return line | _compare(metrics[split], means(metrics), baseline[split], means(baseline))


def _compare(
    clean: dict,
    corrupted: dict,
    baseline_clean: dict | None = None,
    baseline_corrupted: dict | None = None,
) -> dict[str, float | None]:
    """Return mean, drop and the comparison with a baseline for each metric.

    Args:
        clean: Scores on the clean pictures.
        corrupted: Mean scores under corruption.
        baseline_clean: The baseline's scores on the clean pictures.
        baseline_corrupted: The baseline's mean scores under corruption.
    """
    line: dict[str, float | None] = {}
    for m in METRICS:
        line[m] = corrupted[m]
        line[f"drop_{m}"] = 1 - corrupted[m] / clean[m] if clean[m] else None
        if baseline_clean and baseline_corrupted:
            loss = clean[m] - corrupted[m]
            baseline_loss = baseline_clean[m] - baseline_corrupted[m]
            line[f"over_baseline_{m}"] = corrupted[m] - baseline_corrupted[m]
            line[f"relative_drop_{m}"] = loss / baseline_loss if baseline_loss else None
    return line


def _mean(values) -> float:
    found = list(values)
    return sum(found) / len(found)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"
