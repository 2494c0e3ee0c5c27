"""Score several checkpoints on the same pictures, which are decoded once for all of them."""

import itertools
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ray
import torch

from aml.conditions import CLEAN, Condition
from aml.errors import UserError
from aml.inference import Segmenter, default_precision
from aml.training import read_checkpoint_config
from orchestrator import data, storage
from orchestrator.evaluation import command, worker
from orchestrator.evaluation.results import read_evaluation, read_rows
from orchestrator.evaluation.samples import SampleLoader, check_complete
from orchestrator.evaluation.scoring import PartialScores, SharedScoringTask


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
    request = SharedRequest(checkpoints, shards, split, protocol, workers)
    found, _ = _score(request, [CLEAN, *conditions], limit=limit, keep_rows=False)
    return {
        name: {f"{key[1]}:{key[2]}": sums.scores() for key, sums in scores.sums.items()}
        for name, scores in found.items()
    }


@dataclass(frozen=True)
class SharedRequest:
    """Request to score several checkpoints on a split."""

    checkpoints: Mapping[str, Path]
    """Folders of checkpoints by name, all of one image size and fit."""
    shards: storage.Filesystem
    split: str
    protocol: str = "square"
    workers: int | None = None
    """As `score_conditions` takes it."""


def evaluate_together(request: SharedRequest, out: Path, *, beside: bool) -> dict[str, dict]:
    """Score checkpoints on a split and write for each what `evaluate_checkpoint` writes.

    Args:
        request: Checkpoints, data and split.
        out: The files of a checkpoint go into its folder here, which has the checkpoint's name.
        beside: Keep what such a folder holds of other splits, where the same checkpoint was scored
            on the same data under the same protocol.

    Returns:
        {name: {"mIoU", "oIoU", ..., "n"}}, scores in [0, 1].

    Raises:
        UserError: See `score_conditions`; or the shards lack sentences.
    """
    start = time.monotonic()
    manifest = data.read_manifest(request.shards)
    scored, how = _score(request, [CLEAN], limit=None, keep_rows=True)
    seconds = round(time.monotonic() - start, 2)
    found = {}
    for name, scores in scored.items():
        check_complete(len(scores.rows), request.shards, manifest, [request.split])
        found[name] = scores.sums[request.split, *CLEAN].scores()
        folder = request.checkpoints[name]
        config = read_checkpoint_config(folder)
        about = {
            "checkpoint": str(folder.absolute()),
            **{key: config.get(key) for key in command.CHECKPOINT_KEYS},
            "protocol": request.protocol,
            "splits": [request.split],
            "corruptions": [],
            "data": command.about_data(request.shards, manifest),
            "baseline": None,
            "unknown_words": scores.unknown_share,
            "seconds": seconds,
            **how,
            "versions": command.about_versions(),
        }
        metrics = {request.split: found[name]}
        if beside:
            scores, metrics, about = _with_other_splits(out / name, scores, metrics, about)
        command.write_evaluation(out / name, scores, metrics, about)
    return found


def _with_other_splits(
    out: Path, scores: PartialScores, metrics: dict[str, dict], about: dict
) -> tuple[PartialScores, dict[str, dict], dict]:
    """Return scores of a split together with those that a folder holds of other splits.

    Args:
        out: The folder, which need not exist.
        scores: Scores of the split.
        metrics: What metrics.json is to hold of it.
        about: What about.json is to hold.
    """
    same = ("checkpoint", "protocol", "data", "epoch")
    try:
        held, known = read_evaluation(out)
        if any(held.get(key) != about[key] for key in same):
            return scores, metrics, about
        lines = (out / "per_sentence.jsonl").read_bytes().splitlines(keepends=True)
        described = map(json.loads, (out / "sentences.jsonl").read_bytes().splitlines())
        rows = zip(lines, described, read_rows(out), strict=True)
        kept = [one for one in rows if one[2]["split"] not in metrics]
    except (UserError, OSError, ValueError, KeyError):  # absent, or damaged: it is written anew
        return scores, metrics, about
    words = sum(text["words"] for _, text, _ in kept) if scores.words else 0
    total = PartialScores(
        rows=[line for line, _, _ in kept],
        clean=[(text, row["intersection"], row["union"]) for _, text, row in kept],
        words=words,
        unknown_words=round((held["unknown_words"] or 0) * words),
    )
    total += scores
    splits = [split for split in held["splits"] if split not in metrics]
    metrics = {split: known[split] for split in splits} | metrics
    together = {"splits": splits + about["splits"], "unknown_words": total.unknown_share}
    return total, metrics, about | together


def _score(
    request: SharedRequest, conditions: list[Condition], *, limit: int | None, keep_rows: bool
) -> tuple[dict[str, PartialScores], dict]:
    """Return the scores of each checkpoint, and on what they were computed.

    Args:
        request: Checkpoints, data and split.
        conditions: Conditions of the pictures.
        limit: As `score_conditions` takes it.
        keep_rows: Whether the scores have rows of sentences.
    """
    checkpoints, shards, split = request.checkpoints, request.shards, request.split
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
    workers = request.workers or worker.most_workers()
    device = worker.choose_device(workers)
    batch = worker.DEFAULT_BATCH[device]
    chunk = worker.chunk_size(len(places), batch)
    workers = min(workers, -(-len(places) // chunk))
    task = SharedScoringTask(
        segmenters={},
        loader=SampleLoader([split], conditions, request.protocol, size, fit, chosen),
        batch=batch,
        chunk=chunk,
        generalised={split} if generalised else set(),
        device=torch.device(device),
        keep_rows=keep_rows,
    )
    precision = ""
    for name, folder in checkpoints.items():
        precision = default_precision(configs[name], device)
        if workers > 1:
            task.segmenters[name] = ray.put(Segmenter.load(folder, "cpu", precision))
        else:
            task.segmenters[name] = Segmenter.load(folder, device, precision)
    under = f" under {len(conditions)} conditions" if len(conditions) > 1 else ""
    what = f"scoring {len(checkpoints)} checkpoints{under}"
    scores = worker.score_pictures(task, shards, places, workers, what).by_checkpoint
    how = {"device": device, "precision": precision, "batch": batch, "workers": workers}
    return scores, how


def _sentences(
    shards: storage.Filesystem, places: list, split: str
) -> Iterator[tuple[int, tuple[int, int]]]:
    """Yield image_id and (ref_id, sent_id) of a split's sentences in the order of validation."""
    for row in data.read_rows(shards, places, jpeg=False):
        for ref in sorted(row["refs"], key=lambda ref: ref["ref_id"]):
            if ref["split"] == split:
                for sentence in ref["sentences"]:
                    yield row["image_id"], (ref["ref_id"], sentence["sent_id"])
