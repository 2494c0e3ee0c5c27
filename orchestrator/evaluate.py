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

import functools
import itertools
import json
import platform
import re
import time
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from aml import refer
from aml.checkpoint import load_model, read_config
from aml.data import Batch, Item, Items, eval_batches
from aml.decode import fit_mask, rasterise
from aml.draws import uniform
from aml.errors import UserError
from aml.inference import Segmenter, usual_precision
from aml.learner import segment, whole
from aml.metrics import IOU_UNIT, Sums, called_empty, counts, score, settle
from aml.models import build
from orchestrator import breakdown, checkpoints, runs, scoring, shards
from orchestrator.checkpoints import find_checkpoint
from orchestrator.scoring import CLEAN
from orchestrator.trial import write_atomic

__all__ = ["baselines", "evaluate", "find_checkpoint"]

PROTOCOLS = ("square", "original")
SAY_EVERY_S = 20.0
LOGGED = ("about.json", "metrics.json", "breakdown.json", "robustness.json")
"""What MLflow gets of an evaluation; the rows stay in its folder."""

# ---- every sentence of some splits ----------------------------------------------------------------------------------


def evaluate(
    checkpoint: Path,
    store: shards.Store,
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
    and count the same integers as one.
    Returns what metrics.json holds. UserError: no checkpoint or shards there, an unknown split, protocol or corruption, an OUT that is a file,
    a baseline that measured something else.
    """
    manifest, views = shards.manifest(store), [CLEAN, *dict.fromkeys(tuple(c) for c in corruptions)]
    splits = _named(list(dict.fromkeys(splits)), manifest)
    _check(manifest, store, splits, protocol, batch, workers, Path(out))
    config = read_config(checkpoint)
    measured = {"data": {"fingerprint": manifest["fingerprint"]}, "protocol": protocol, **{key: config.get(key) for key in ("image_size", "fit")}}
    if baseline and len(views) == 1:
        raise UserError(
            "a baseline is for robustness, but no corruption was asked for; add --corrupt all:all, or compare two evaluations with `compare`"
        )
    other = _baseline(baseline, measured, splits, views) if baseline else None
    places = shards.index(store, splits)
    expected = sum(manifest["splits"][split]["sentences"] for split in splits)
    say(f"{expected} sentences of {', '.join(splits)} on {len(places)} pictures, {len(views)} view(s) each, protocol {protocol}")
    device, start = scoring.device_for(workers), time.monotonic()
    segmenter = Segmenter.load(checkpoint, device if workers == 1 else "cpu", precision or usual_precision(config, device))
    batch = batch or scoring.AT_ONCE[device]
    generalised = {split for split in splits if manifest["splits"][split].get("no_target")}
    job = scoring.Job(segmenter, splits, views, protocol, batch, scoring.pictures_at_once(len(places), batch), generalised)
    tally = scoring.tallied(job, store, places, workers, _watch(len(places), say))
    if len(tally.lines) != expected * len(views):
        raise UserError(
            f"{store.uri} holds {len(tally.lines) // len(views)} sentences of {', '.join(splits)}, but its {shards.MARKER} says {expected}; "
            "copy it again or write the shards again"
        )
    metrics = {(s if view == CLEAN else f"{s}/{view[0]}:{view[1]}"): tally.sums[s, *view].scores() for s in splits for view in views}
    about = {
        "checkpoint": str(Path(checkpoint).absolute()),
        **{key: config.get(key) for key in ("run", "trial", "arm", "seed", "epoch", "model", "image_size", "fit", "threshold")},
        "protocol": protocol,
        "splits": splits,
        "corruptions": [f"{name}:{severity}" for name, severity in views[1:]],
        "data": {"uri": store.uri, **{key: manifest[key] for key in ("dataset", "split_by", "fingerprint")}},
        "baseline": str(Path(baseline).absolute()) if baseline else None,
        "unknown_words": tally.unknown_share,
        "seconds": round(time.monotonic() - start, 2),
        "device": device,
        "precision": segmenter.precision,
        "batch": batch,
        "workers": workers,
        "versions": {"python": platform.python_version(), **{p: version(p) for p in ("torch", "numpy", "pillow", "opencv-python-headless")}},
    }
    write_atomic(Path(out) / "per_sentence.jsonl", b"".join(tally.lines))
    write_atomic(Path(out) / "sentences.jsonl", b"".join(json.dumps(line).encode() + b"\n" for line, _, _ in tally.clean))
    write_atomic(Path(out) / "breakdown.json", json.dumps(breakdown.breakdown(tally.clean), indent=1).encode())
    (Path(out) / "robustness.json").unlink(missing_ok=True)
    if found := breakdown.robustness(metrics, other):
        write_atomic(Path(out) / "robustness.json", json.dumps(found, indent=1).encode())
    write_atomic(Path(out) / "about.json", json.dumps(about, indent=1).encode())
    write_atomic(Path(out) / "metrics.json", json.dumps(metrics, indent=1).encode())
    if tally.unknown_share:
        say(f"{tally.unknown_share:.1%} of the words are not in the checkpoint's vocabulary; the model reads them all as one unknown word")
    return metrics


def log(checkpoint: Path, out: Path, say=print) -> None:
    """Put the evaluation in OUT on the MLflow run that its checkpoint belongs to; nothing where it belongs to none, or tracks nowhere.

    Metrics eval/<data set>/<split>/<protocol>[/<corruption>-<severity>]/<score>, at the checkpoint's epoch; files under evaluations/<name of OUT>.
    """
    from orchestrator import mlflow_store

    if (owner := checkpoints.owner(checkpoint)) is None:
        return
    run, key = owner
    experiment = run.experiment()
    if experiment.tracking.uri == "none" or experiment.root != run.folder.parent:  # a copied run is not the one that MLflow knows
        return
    uri = mlflow_store.tracking_uri(experiment.tracking.uri, experiment.root)
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        return
    about, metrics = breakdown.read(out)
    try:
        with run.locked(say):
            tracker = runs.open_tracker(run, experiment)
            tracker.data(key, [runs.data_set({"splits": {}} | about["data"], split, "evaluation") for split in about["splits"]])
            tracker.metrics(key, about["epoch"] or 0, eval_metrics(about, metrics))
            for name in LOGGED:
                if (Path(out) / name).exists():
                    tracker.artifact(key, Path(out) / name, f"evaluations/{Path(out).absolute().name}")
            remaining = tracker.close(60 if tracker.ready(30) else 0)
    except UserError as error:  # the figures are in OUT whatever MLflow says
        remaining = f"not logged in MLflow: {error}"
    say(remaining or f"logged on {run.name}{'' if key == 'train' else f' {key}'} in MLflow")


def eval_metrics(about: dict, metrics: dict[str, dict]) -> dict[str, float]:
    """metrics.json under the names that MLflow takes: all scores of clean pictures, mIoU and oIoU of corrupted ones."""
    found = {}
    for view, scores in metrics.items():
        split, _, corruption = view.partition("/")
        place = "/".join(["eval", about["data"]["dataset"], split, about["protocol"], *([corruption.replace(":", "-")] if corruption else [])])
        kept = {k: v for k, v in scores.items() if not corruption or k in ("mIoU", "oIoU")}
        found |= {f"{place}/{name}": value for name, value in kept.items()}
    return found


def _named(splits: list[str], manifest: dict) -> list[str]:
    """The splits; `test`, where none is called so, stands for testA and testB, as it does in REFER."""
    tests = [split for split in manifest["splits"] if re.fullmatch("test[A-Z]", split)]
    whole = [tests if split == "test" and split not in manifest["splits"] and tests else [split] for split in splits]
    return list(dict.fromkeys(itertools.chain(*whole)))


def _baseline(folder: Path, measured: dict, splits: list[str], views: list[tuple[str, int]]) -> dict:
    """The metrics of an earlier evaluation of the same views. UserError before anything is computed where it is another."""
    about, metrics = breakdown.read(folder)
    breakdown.check_same(measured, about, "this evaluation", str(folder))
    wanted = [split if view == CLEAN else f"{split}/{view[0]}:{view[1]}" for split in splits for view in views]
    if lacking := [key for key in wanted if key not in metrics]:
        raise UserError(f"the baseline {folder} holds no {lacking[0]}; evaluate it with the same --splits and --corrupt first")
    return metrics


def _check(manifest: dict, store: shards.Store, splits: list[str], protocol: str, batch: int | None, workers: int, out: Path) -> None:
    if protocol not in PROTOCOLS:
        raise UserError(f"protocol is {protocol!r}; use square (network size) or original (the picture's own size)")
    unknown = [split for split in splits if split not in manifest["splits"]]
    if unknown or not splits:
        raise UserError(f"{store.uri} has no split {unknown[0] if unknown else ''!r}; it has {', '.join(manifest['splits'])}")
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


# ---- what a score is worth ------------------------------------------------------------------------------------------


def baselines(checkpoint: Path, items: Items, *, batch: int = 64, device="cpu", seed: int = 0) -> dict:
    """The checkpoint beside what needs no training or does not read the sentence; square protocol, as in validation.

    champion        the checkpoint
    untrained       its architecture freshly initialised from `seed`
    random_object   one of the picture's annotated objects, the referent among them, drawn evenly. Nothing is drawn: mIoU is the exact
                    expectation (each sentence counts the mean of its objects' I/U), oIoU the expected I over the expected U
    largest_object  the annotated object of the largest area; the first of equal ones
    wrong_sentence  the checkpoint given a sentence of another referent of the same picture and split, drawn by u(seed, item), scored
                    against the first referent. Only sentences on pictures with such a referent take part, `n` of them;
                    champion_mIoU and champion_oIoU are the checkpoint's own on the same ones

    Each is {"mIoU", "oIoU", "n"} in [0, 1] (0 where n is 0); "n" beside them is the number of sentences.
    items: unit `sentence`, decoded at the checkpoint's image size. UserError where it is another.
    """
    model, config = load_model(checkpoint, device)
    if (items.size, items.fit) != (config["image_size"], config["fit"]):
        raise UserError(
            f"the pictures are decoded at {items.size} px ({items.fit}), but {checkpoint} was trained at {config['image_size']} px "
            f"({config['fit']}); decode them as the checkpoint needs"
        )
    threshold, chosen = config["threshold"], items.picks(np.arange(len(items)), 0, 0)
    spec = dict(config["model"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        untrained = build(spec.pop("name"), vocabulary=config["vocabulary"], **spec).to(device).eval()
    own = _predicted(model, eval_batches(items, model, batch=batch), threshold, device)
    others = [(k, s) for k, item in enumerate(chosen) if (s := _other_sentence(items, item, seed)) is not None]
    where = np.array([k for k, _ in others], int)
    wrong = _predicted(model, _with_sentences(items, model, others, batch), threshold, device).sums()
    same = _pair(own.sums(where))
    random, largest = _object_scores(items, chosen)
    return {
        "champion": _pair(own.sums()),
        "untrained": _pair(_predicted(untrained, eval_batches(items, untrained, batch=batch), threshold, device).sums()),
        "random_object": random,
        "largest_object": largest,
        "wrong_sentence": _pair(wrong) | {"champion_mIoU": same["mIoU"], "champion_oIoU": same["oIoU"]},
        "n": len(items),
    }


def _pair(sums: Sums) -> dict:
    return {key: value for key, value in sums.scores().items() if key in ("mIoU", "oIoU", "n")}


class _Outcome(NamedTuple):
    """What became of n sentences, each field (n,)."""

    intersection: torch.Tensor
    union: torch.Tensor
    no_target: torch.Tensor
    empty: torch.Tensor
    """The prediction is called empty; False everywhere in a split whose every expression has a target."""

    def sums(self, where=slice(None)) -> Sums:
        return score(self.intersection[where], self.union[where], no_target=self.no_target[where], empty=self.empty[where])


def _outcome(prediction: torch.Tensor, truth: torch.Tensor, no_target: torch.Tensor, generalised: bool) -> _Outcome:
    """prediction, truth (B, H, W) bool"""
    empty = called_empty(prediction.flatten(1).sum(1), truth[0].numel()) & generalised
    return _Outcome(*(x.cpu() for x in (*counts(prediction, truth), no_target, empty)))


@torch.inference_mode()
def _predicted(model, batches: Iterable[Batch], threshold: float, device) -> _Outcome:
    """Of all sentences of the batches."""
    nothing = torch.zeros(0, dtype=torch.int64)
    found = [_Outcome(nothing, nothing, nothing.bool(), nothing.bool())]
    for batch in batches:
        batch = batch.to(device)
        found.append(_outcome(segment(whole(model, batch).float(), batch.mask.shape[1:], threshold), batch.mask, batch.no_target, batch.generalised))
    return _Outcome(*(torch.cat(column) for column in zip(*found, strict=True)))


def _other_sentence(items: Items, item: Item, seed: int) -> str | None:
    """A sentence of another referent of the same picture and split; None where the picture has none, or the item's own names nothing."""
    own = set(refer.targets(items.ref(item)))
    refs = [ref for ref in items.row(item)["refs"] if own and ref["split"] == items.split]
    others = [s["sent"] for ref in refs if refer.targets(ref) and set(refer.targets(ref)) != own for s in ref["sentences"]]
    draw = float(uniform(seed, 0, torch.tensor([item.key]), "wrong-sentence"))
    return others[int(draw * len(others))] if others else None


def _with_sentences(items: Items, model, chosen: list[tuple[int, str]], batch: int) -> Iterator[Batch]:
    """Items by index, each with the sentence given here in place of its own."""
    for start in range(0, len(chosen), batch):
        part = chosen[start : start + batch]
        made = items.batch(np.array([k for k, _ in part]), model)
        made.tokens, made.token_mask = model.tokenise([sentence for _, sentence in part])
        yield made


def _object_scores(items: Items, chosen: list[Item]) -> tuple[dict, dict]:
    """Of random_object and largest_object (see `baselines`)."""

    @functools.lru_cache(maxsize=2)
    def objects(block: int, row: int) -> tuple[torch.Tensor, int]:
        meta = items.meta[block][row]
        masks = [rasterise(o["rle"], meta["height"], meta["width"]) for o in meta["objects"]]
        masks = masks or [np.zeros((meta["height"], meta["width"]), np.uint8)]  # nothing to choose from: an empty prediction
        return torch.from_numpy(np.stack([fit_mask(m, items.size, items.fit) for m in masks])), int(np.argmax([m.sum() for m in masks]))

    largest, means = Sums(), torch.zeros(3, dtype=torch.float64)
    for item in chosen:
        masks, biggest = objects(item.block, item.row)
        no_target = torch.tensor([not refer.targets(items.ref(item))]).expand(len(masks))
        outcome = _outcome(masks, torch.from_numpy(items.mask(item))[None].expand_as(masks), no_target, items.generalised)
        largest += outcome.sums([biggest])
        i, u, iou = (x.double() for x in settle(*outcome))
        means += torch.stack([iou.mean() / IOU_UNIT, i.mean(), u.mean()])
    iou, i, u = means.tolist()
    return {"mIoU": iou / len(chosen), "oIoU": i / max(u, 1.0), "n": len(chosen)}, _pair(largest)
