"""A checkpoint against every sentence of some splits, and against baselines that cost nothing.

    OUT/metrics.json          {"val": {"mIoU", "oIoU", "P@0.5" ... "P@0.9", "n"}, "val/fog:3": {...}}: shares in [0, 1]; a split's own
                              name is the clean pictures, <split>/<corruption>:<severity> the corrupted ones
    OUT/per_sentence.jsonl    one row a sentence (and corruption), from which anyone can recompute the scores; in a split with expressions
                              without a target (gRefCOCO) I and U are those after its rule (aml.metrics), and `called_empty` is the decision
    OUT/sentences.jsonl       one row a sentence: its words, the referent's area at the picture's own size, position words, distractors
    OUT/breakdown.json        the clean scores by those (see orchestrator.breakdown)
    OUT/robustness.json       under corruption: mean over severities, drop; only where corruptions were asked for
    OUT/about.json            checkpoint, protocol, threshold, data, versions

Protocols: `square` compares at network size (truth resized nearest, letterbox included, as validation does in training), `original` at the
picture's own size. A corruption acts on the native picture, before any resize.

    S network size, H W a picture's own size
"""

import itertools
import json
import platform
import re
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from aml.errors import UserError
from aml.inference import Segmenter, usual_precision
from aml.training import read_checkpoint_config
from orchestrator import data, storage
from orchestrator.evaluation import breakdown, worker
from orchestrator.evaluation.tally import CLEAN
from orchestrator.storage import storage_root
from orchestrator.utils import atomic_write

PROTOCOLS = ("square", "original")

SAY_EVERY_S = 20.0

LOGGED = ("about.json", "metrics.json", "breakdown.json", "robustness.json")

"""What MLflow gets of an evaluation; the rows stay in its folder."""


def evaluate_checkpoint(
    checkpoint: Path,
    store: storage.Filesystem,
    splits: list[str],
    *,
    protocol: str = "square",
    corruptions: Iterable[tuple[str, int]] = (),
    out: Path,
    baseline: Path | None = None,
    batch: int | None = None,
    precision: str | None = None,
    workers: int = 1,
    say=print,
) -> dict[str, dict]:
    """Score every sentence of the splits exactly once, clean and under each (corruption, severity); write the files of OUT.

    baseline: an earlier evaluation's folder that robustness is also given against. batch: pictures, and sentences, computed at a time; None:
    what suits the device. precision: None is training's on a GPU, fp32 on a CPU. workers: above 1 that many Ray tasks share the pictures,
    and count the same integers as one does on the same kind of processor.
    Returns what metrics.json holds. UserError: no checkpoint or shards there, an unknown split, protocol or corruption, an OUT that is a file,
    a baseline that measured something else.
    """
    manifest, views = (
        data.read_manifest(store),
        [CLEAN, *dict.fromkeys(tuple(c) for c in corruptions)],
    )
    splits = _named(list(dict.fromkeys(splits)), manifest)
    _check(manifest, store, splits, protocol, batch, workers, Path(out))
    config = read_checkpoint_config(checkpoint)
    measured = {
        "data": {"fingerprint": manifest["fingerprint"]},
        "protocol": protocol,
        **{key: config.get(key) for key in ("image_size", "fit")},
    }
    if baseline and len(views) == 1:
        raise UserError(
            "a baseline is for robustness, but no corruption was asked for; add --corrupt all:all, or compare two evaluations with `compare`"
        )
    other = _baseline(baseline, measured, splits, views) if baseline else None
    places = data.picture_places(store, splits)
    expected = sum(manifest["splits"][split]["sentences"] for split in splits)
    say(
        f"{expected} sentences of {', '.join(splits)} on {len(places)} pictures, {len(views)} view(s) each, protocol {protocol}"
    )
    device, start = worker.device_for(workers), time.monotonic()
    segmenter = Segmenter.load(
        checkpoint, device if workers == 1 else "cpu", precision or usual_precision(config, device)
    )
    batch = batch or worker.AT_ONCE[device]
    generalised = {split for split in splits if manifest["splits"][split].get("no_target")}
    job = worker.Job(
        segmenter,
        splits,
        views,
        protocol,
        batch,
        worker.pictures_at_once(len(places), batch),
        generalised,
    )
    tally = worker.tallied(job, store, places, workers, _watch(len(places), say))
    if len(tally.lines) != expected * len(views):
        raise UserError(
            f"{store.uri} holds {len(tally.lines) // len(views)} sentences of {', '.join(splits)}, but its {data.COMPLETE_MARKER} says {expected}; "
            "copy it again or write the shards again"
        )
    metrics = {
        (s if view == CLEAN else f"{s}/{view[0]}:{view[1]}"): tally.sums[s, *view].scores()
        for s in splits
        for view in views
    }
    about = {
        "checkpoint": str(Path(checkpoint).absolute()),
        **{
            key: config.get(key)
            for key in (
                "run",
                "trial",
                "arm",
                "seed",
                "epoch",
                "model",
                "image_size",
                "fit",
                "threshold",
            )
        },
        "protocol": protocol,
        "splits": splits,
        "corruptions": [f"{name}:{severity}" for name, severity in views[1:]],
        "data": {
            "uri": store.uri,
            **{key: manifest[key] for key in ("dataset", "split_by", "fingerprint")},
        },
        "baseline": str(Path(baseline).absolute()) if baseline else None,
        "unknown_words": tally.unknown_share,
        "seconds": round(time.monotonic() - start, 2),
        "device": device,
        "precision": segmenter.precision,
        "batch": batch,
        "workers": workers,
        "versions": {
            "python": platform.python_version(),
            **{p: version(p) for p in ("torch", "numpy", "pillow", "opencv-python-headless")},
        },
    }
    atomic_write(Path(out) / "per_sentence.jsonl", b"".join(tally.lines))
    atomic_write(
        Path(out) / "sentences.jsonl",
        b"".join(json.dumps(line).encode() + b"\n" for line, _, _ in tally.clean),
    )
    atomic_write(
        Path(out) / "breakdown.json",
        json.dumps(breakdown.breakdown(tally.clean), indent=1).encode(),
    )
    (Path(out) / "robustness.json").unlink(missing_ok=True)
    if found := breakdown.robustness(metrics, other):
        atomic_write(Path(out) / "robustness.json", json.dumps(found, indent=1).encode())
    atomic_write(Path(out) / "about.json", json.dumps(about, indent=1).encode())
    atomic_write(Path(out) / "metrics.json", json.dumps(metrics, indent=1).encode())
    if tally.unknown_share:
        say(
            f"{tally.unknown_share:.1%} of the words are not in the checkpoint's vocabulary; the model reads them all as one unknown word"
        )
    return metrics


def log_evaluation(checkpoint: Path, out: Path, say=print) -> None:
    """Put the evaluation in OUT on the MLflow run that its checkpoint belongs to; nothing where it belongs to none, or tracks nowhere.

    Metrics eval/<data set>/<split>/<protocol>[/<corruption>-<severity>]/<score>, at the checkpoint's epoch; files under evaluations/<name of OUT>.
    """
    from orchestrator import tracking

    if (owner := tracking.checkpoint_owner(checkpoint)) is None:
        return
    run, key = owner
    experiment = run.experiment()
    if (
        experiment.tracking.uri == "none"
        or storage_root(experiment.storage.root) != run.folder.parent
    ):  # a copied run is not the one that MLflow knows
        return
    uri = tracking.tracking_uri(experiment.tracking.uri, storage_root(experiment.storage.root))
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        return
    about, metrics = breakdown.read_sentence_scores(out)
    try:
        with run.locked(say):
            tracker = tracking.open_tracker(run, experiment)
            tracker.data(
                key,
                [
                    tracking.describe_dataset({"splits": {}} | about["data"], split, "evaluation")
                    for split in about["splits"]
                ],
            )
            tracker.metrics(key, about["epoch"] or 0, eval_metrics(about, metrics))
            for name in LOGGED:
                if (Path(out) / name).exists():
                    tracker.artifact(
                        key, Path(out) / name, f"evaluations/{Path(out).absolute().name}"
                    )
            remaining = tracker.close(60 if tracker.ready(30) else 0)
    except UserError as error:  # the figures are in OUT whatever MLflow says
        remaining = f"not logged in MLflow: {error}"
    say(remaining or f"logged on {run.name}{'' if key == 'train' else f' {key}'} in MLflow")


def eval_metrics(about: dict, metrics: dict[str, dict]) -> dict[str, float]:
    """metrics.json under the names that MLflow takes: all scores of clean pictures, mIoU and oIoU of corrupted ones."""
    found = {}
    for view, scores in metrics.items():
        split, _, corruption = view.partition("/")
        place = "/".join(
            [
                "eval",
                about["data"]["dataset"],
                split,
                about["protocol"],
                *([corruption.replace(":", "-")] if corruption else []),
            ]
        )
        kept = {k: v for k, v in scores.items() if not corruption or k in ("mIoU", "oIoU")}
        found |= {f"{place}/{name}": value for name, value in kept.items()}
    return found


def _named(splits: list[str], manifest: dict) -> list[str]:
    """The splits; `test`, where none is called so, stands for testA and testB, as it does in REFER."""
    tests = [split for split in manifest["splits"] if re.fullmatch("test[A-Z]", split)]
    whole = [
        tests if split == "test" and split not in manifest["splits"] and tests else [split]
        for split in splits
    ]
    return list(dict.fromkeys(itertools.chain(*whole)))


def _baseline(
    folder: Path, measured: dict, splits: list[str], views: list[tuple[str, int]]
) -> dict:
    """The metrics of an earlier evaluation of the same views. UserError before anything is computed where it is another."""
    about, metrics = breakdown.read_sentence_scores(folder)
    breakdown.check_same_sentences(measured, about, "this evaluation", str(folder))
    wanted = [
        split if view == CLEAN else f"{split}/{view[0]}:{view[1]}"
        for split in splits
        for view in views
    ]
    if lacking := [key for key in wanted if key not in metrics]:
        raise UserError(
            f"the baseline {folder} holds no {lacking[0]}; evaluate it with the same --splits and --corrupt first"
        )
    return metrics


def _check(
    manifest: dict,
    store: storage.Filesystem,
    splits: list[str],
    protocol: str,
    batch: int | None,
    workers: int,
    out: Path,
) -> None:
    if protocol not in PROTOCOLS:
        raise UserError(
            f"protocol is {protocol!r}; use square (network size) or original (the picture's own size)"
        )
    unknown = [split for split in splits if split not in manifest["splits"]]
    if unknown or not splits:
        raise UserError(
            f"{store.uri} has no split {unknown[0] if unknown else ''!r}; it has {', '.join(manifest['splits'])}"
        )
    if workers < 1 or (batch is not None and batch < 1):
        raise UserError(f"batch is {batch} and workers {workers}; each must be at least 1")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; give a folder for the results")


def _watch(total: int, say):
    """watch(n): n pictures more are done; a line now and then on how far they are."""
    start = said = time.monotonic()
    done = 0

    def watch(pictures: int) -> None:
        nonlocal said, done
        done += pictures
        if time.monotonic() - said > SAY_EVERY_S:
            said = time.monotonic()
            say(f"{done} of {total} pictures, {said - start:.0f} s")

    return watch
