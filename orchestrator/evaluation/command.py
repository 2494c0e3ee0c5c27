"""Score every sentence of some splits with a checkpoint, clean and corrupted.

Files in the output folder:

metrics.json: {"val": {"mIoU", "oIoU", "P@0.5" ... "P@0.9", "n"}, "val/fog:3": {...}}, shares in
    [0, 1]. The key of the clean pictures is the split's name, that of corrupted ones
    <split>/<corruption>:<severity>.
per_sentence.jsonl: one row a sentence (and corruption), from which anyone can recompute the
    scores. In a split with expressions without a target (gRefCOCO) intersection and union are
    those after its rule (aml.metrics), and `called_empty` is the decision.
sentences.jsonl: one row a sentence: its words, the referent's area at the picture's own size,
    position words, distractors.
breakdown.json: the clean scores by those (see orchestrator.evaluation.breakdown).
robustness.json: scores under corruption, mean over severities and drop; only where corruptions
    were asked for.
about.json: checkpoint, protocol, threshold, data, versions.

The protocol `square` compares at network size (the truth is resized nearest, letterbox included,
as validation in training does), `original` at the picture's own size. A corruption acts on the
picture at its own size, before any resize.
"""

import json
import logging
import platform
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from aml.conditions import CLEAN, Condition
from aml.errors import UserError
from aml.files import check_own_folder, mark_folder
from aml.inference import Segmenter, default_precision
from aml.training import read_checkpoint_config, usable_checkpoint
from orchestrator import data, storage
from orchestrator.evaluation import worker
from orchestrator.evaluation.breakdown import score_groups
from orchestrator.evaluation.results import check_comparable, read_evaluation
from orchestrator.evaluation.robustness import measure_robustness
from orchestrator.evaluation.samples import (
    SampleLoader,
    check_complete,
    check_protocol,
    chosen_splits,
    generalised_splits,
)
from orchestrator.evaluation.scoring import PartialScores, ScoringTask, json_line
from orchestrator.utils import atomic_write

logger = logging.getLogger(__name__)

KIND = "evaluation"
"""What the marker of a folder says that was filled here."""

CHECKPOINT_KEYS = (
    "run",
    "trial",
    "arm",
    "seed",
    "epoch",
    "selected_by",
    "model",
    "image_size",
    "fit",
    "threshold",
)
"""Keys of a checkpoint's configuration that about.json repeats."""


@dataclass(frozen=True)
class EvaluationRequest:
    """Request to score a checkpoint: data, splits, protocol, corruptions, workers."""

    checkpoint: Path
    """Folder of the checkpoint."""
    shards: storage.Filesystem
    splits: list[str]
    """`test` stands for testA, testB, ... where the shards have no split of that name."""
    out: Path
    """Folder for the results."""
    protocol: str = "square"
    corruptions: Iterable[Condition] = ()
    """(name, severity) pairs that are scored beside the clean pictures."""
    baseline: Path | None = None
    """Folder of an earlier evaluation that robustness is compared with."""
    batch: int | None = None
    """Pictures, and sentences, computed together; None takes worker.DEFAULT_BATCH."""
    precision: str | None = None
    """None is that of the checkpoint's training on a GPU, fp32 on a CPU."""
    workers: int = 1
    """With more than 1 that many Ray tasks share the pictures. They count the same integers as one
    does on the same kind of processor."""


@dataclass(frozen=True)
class EvaluationInputs:
    """The shards and the checkpoint of a request, read and checked."""

    manifest: dict
    config: dict
    """The checkpoint's configuration."""
    splits: list[str]
    conditions: list[Condition]
    """CLEAN, then the corruptions."""
    baseline: dict[str, dict] | None
    """metrics.json of the baseline."""
    places: list[worker.Place]
    """Positions of the pictures in the shards."""

    @property
    def sentences(self) -> int:
        """Number of sentences in the splits by the manifest."""
        return sum(self.manifest["splits"][split]["sentences"] for split in self.splits)


@dataclass(frozen=True)
class EvaluationOutcome:
    """Scores of an evaluation, and the device and time they took."""

    scores: PartialScores
    metrics: dict[str, dict]
    """The content of metrics.json."""
    device: str
    precision: str
    batch: int
    seconds: float


def evaluate_checkpoint(request: EvaluationRequest) -> dict[str, dict]:
    """Score every sentence of the splits once under each condition, and write the output files.

    Returns:
        What metrics.json holds.

    Raises:
        UserError: There is no checkpoint or there are no shards, a split, protocol, corruption or
            precision is unknown, the output folder holds other files, the baseline measured
            something else, or the shards lack sentences.
    """
    # before Ray may start; in place of a damaged checkpoint it is the one before
    request = replace(request, checkpoint=usable_checkpoint(request.checkpoint))
    inputs = _load_inputs(request)
    outcome = _score(request, inputs)
    about = _about(request, inputs, outcome)
    write_evaluation(request.out, outcome.scores, outcome.metrics, about, inputs.baseline)
    if share := outcome.scores.unknown_share:
        logger.info(
            f"{share:.1%} of the words are not in the checkpoint's vocabulary; the model reads "
            "them all as one unknown word"
        )
    return outcome.metrics


def write_evaluation(
    out: Path,
    scores: PartialScores,
    metrics: dict[str, dict],
    about: dict,
    baseline: dict[str, dict] | None = None,
) -> None:
    """Write the files that the module's docstring lists; metrics.json comes last.

    Args:
        out: The folder.
        scores: Rows and sums of the sentences.
        metrics: The content of metrics.json.
        about: The content of about.json.
        baseline: metrics.json of the evaluation that robustness is compared with.
    """
    out = Path(out)
    mark_folder(out, KIND)
    atomic_write(out / "per_sentence.jsonl", b"".join(scores.rows))
    descriptions = b"".join(json_line(description) for description, _, _ in scores.clean)
    atomic_write(out / "sentences.jsonl", descriptions)
    _write_json(out / "breakdown.json", score_groups(scores.clean))
    # An earlier evaluation may have left one, and this one need not have corruptions.
    (out / "robustness.json").unlink(missing_ok=True)
    if robustness := measure_robustness(metrics, baseline):
        _write_json(out / "robustness.json", robustness)
    _write_json(out / "about.json", about)
    _write_json(out / "metrics.json", metrics)


def _load_inputs(request: EvaluationRequest) -> EvaluationInputs:
    """Read and check everything that a request names, before anything is computed."""
    check_own_folder(request.out, "--out", KIND)
    if request.baseline and Path(request.baseline).resolve() == Path(request.out).resolve():
        raise UserError(f"--out {request.out} is the baseline itself; give another folder")
    manifest = data.read_manifest(request.shards)
    corruptions = [(name, severity) for name, severity in request.corruptions]
    conditions = list(dict.fromkeys([CLEAN, *corruptions]))
    splits = chosen_splits(request.splits, manifest, request.shards)
    check_protocol(request.protocol)
    _check_numbers(request)
    config = read_checkpoint_config(request.checkpoint)
    if request.baseline and len(conditions) == 1:
        raise UserError(
            "a baseline is for robustness, but no corruption was asked for; add --corrupt "
            "all:all, or compare two evaluations with `compare`"
        )
    baseline = None
    if request.baseline:
        measured = {
            "data": {"fingerprint": manifest["fingerprint"]},
            "protocol": request.protocol,
            "image_size": config.get("image_size"),
            "fit": config.get("fit"),
        }
        baseline = _read_baseline(request.baseline, measured, splits, conditions)
    places = data.picture_places(request.shards, splits)
    return EvaluationInputs(manifest, config, splits, conditions, baseline, places)


def _score(request: EvaluationRequest, inputs: EvaluationInputs) -> EvaluationOutcome:
    """Score the pictures, and check that every sentence was scored."""
    corrupted = len(inputs.conditions) - 1
    under = f" and under {corrupted} corruption(s)" if corrupted else ""
    logger.info(
        f"{inputs.sentences} sentences of {', '.join(inputs.splits)} on {len(inputs.places)} "
        f"pictures, clean{under}, protocol {request.protocol}"
    )
    device = worker.choose_device(request.workers)
    start = time.monotonic()
    # Ray tasks move the model to their own device.
    segmenter = Segmenter.load(
        request.checkpoint,
        device if request.workers == 1 else "cpu",
        request.precision or default_precision(inputs.config, device),
    )
    batch = request.batch or worker.DEFAULT_BATCH[device]
    task = ScoringTask(
        segmenter=segmenter,
        loader=SampleLoader(
            inputs.splits,
            inputs.conditions,
            request.protocol,
            segmenter.image_size,
            segmenter.fit,
        ),
        batch=batch,
        chunk=worker.chunk_size(len(inputs.places), batch),
        generalised=generalised_splits(inputs.manifest, inputs.splits),
    )
    scores = worker.score_pictures(task, request.shards, inputs.places, request.workers)
    conditions = inputs.conditions
    found = len(scores.rows) // len(conditions)
    check_complete(found, request.shards, inputs.manifest, inputs.splits)
    metrics = {
        metrics_key(split, condition): scores.sums[split, *condition].scores()
        for split in inputs.splits
        for condition in conditions
    }
    seconds = round(time.monotonic() - start, 2)
    return EvaluationOutcome(scores, metrics, device, segmenter.precision, batch, seconds)


def metrics_key(split: str, condition: Condition) -> str:
    """Return the key of metrics.json for a split under a condition."""
    name, severity = condition
    return split if condition == CLEAN else f"{split}/{name}:{severity}"


def _about(
    request: EvaluationRequest, inputs: EvaluationInputs, outcome: EvaluationOutcome
) -> dict:
    """Return the content of about.json."""
    return {
        "checkpoint": str(Path(request.checkpoint).absolute()),
        **{key: inputs.config.get(key) for key in CHECKPOINT_KEYS},
        "protocol": request.protocol,
        "splits": inputs.splits,
        "corruptions": [f"{name}:{severity}" for name, severity in inputs.conditions[1:]],
        "data": about_data(request.shards, inputs.manifest),
        "baseline": str(Path(request.baseline).absolute()) if request.baseline else None,
        "unknown_words": outcome.scores.unknown_share,
        "seconds": outcome.seconds,
        "device": outcome.device,
        "precision": outcome.precision,
        "batch": outcome.batch,
        "workers": request.workers,
        "versions": about_versions(),
    }


def about_data(shards: storage.Filesystem, manifest: dict) -> dict:
    """Return what about.json says of the shards."""
    known = {key: manifest[key] for key in ("dataset", "split_by", "fingerprint")}
    return {"uri": shards.uri, **known}


def about_versions() -> dict[str, str]:
    """Return what about.json says of Python and of the packages that compute."""
    packages = ("torch", "numpy", "pillow", "opencv-python-headless")
    versions = {package: version(package) for package in packages}
    return {"python": platform.python_version(), **versions}


def _read_baseline(
    folder: Path, measured: dict, splits: list[str], conditions: list[Condition]
) -> dict[str, dict]:
    """Return the metrics of an earlier evaluation of the same sentences and conditions.

    Args:
        folder: The earlier evaluation.
        measured: What this evaluation measures, under the keys of about.json.
        splits: Splits of this evaluation.
        conditions: Conditions of this evaluation.

    Raises:
        UserError: The earlier evaluation measured something else.
    """
    about, metrics = read_evaluation(folder)
    check_comparable(measured, about, "this evaluation", str(folder))
    wanted = [metrics_key(split, condition) for split in splits for condition in conditions]
    if missing := [key for key in wanted if key not in metrics]:
        raise UserError(
            f"the baseline {folder} holds no {missing[0]}; evaluate it with the same --splits "
            "and --corrupt first"
        )
    return metrics


def _check_numbers(request: EvaluationRequest) -> None:
    """Raise UserError where a number of the request is unfit."""
    if request.workers < 1 or (request.batch is not None and request.batch < 1):
        raise UserError(
            f"batch is {request.batch} and workers {request.workers}; each must be at least 1"
        )


def _write_json(path: Path, content: dict) -> None:
    atomic_write(path, json.dumps(content, indent=1).encode())
