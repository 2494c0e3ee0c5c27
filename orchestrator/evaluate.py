"""A checkpoint against every sentence of some splits, against baselines that cost nothing, and against one picture.

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
import math
import platform
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from aml import refer
from aml.checkpoint import load_model, read_config
from aml.corruptions import corrupt
from aml.data import Batch, Item, Items, decode_image, eval_batches, fit_image, fit_mask, rasterise
from aml.draws import uniform
from aml.errors import UserError
from aml.inference import Segmenter, to_original
from aml.learner import segment
from aml.metrics import IOU_UNIT, Sums, called_empty, counts, score, settle
from aml.models import build
from orchestrator import breakdown, shards
from orchestrator.checkpoints import find_checkpoint
from orchestrator.trial import write_atomic

__all__ = ["baselines", "evaluate", "find_checkpoint", "predict"]

PROTOCOLS = ("square", "original")
CLEAN = ("clean", 0)
SAY_EVERY_S = 20.0

# ---- every sentence of some splits ----------------------------------------------------------------------------------


@dataclass
class Sample:
    """One sentence under one view of its picture."""

    image: np.ndarray
    """(S, S, 3) uint8"""
    sentence: str
    truth: np.ndarray
    """(S, S) or (H, W) bool, by protocol."""
    row: dict
    """What per_sentence.jsonl says of it, the counts still to come."""
    fact: dict
    """What sentences.jsonl says of it."""


@dataclass
class Tally:
    """Sums by split and view, the lines of per_sentence.jsonl, and of the clean view (fact, I, U)."""

    generalised: set[str]
    """Splits with expressions without a target: the rule for them holds, and `called_empty` ends their lines."""
    sums: dict[tuple, Sums] = field(default_factory=dict)
    lines: list[bytes] = field(default_factory=list)
    clean: list[tuple[dict, int, int]] = field(default_factory=list)

    def add(self, samples: list[Sample], predictions: list[torch.Tensor]) -> None:
        """predictions: (S, S) or (H, W) bool, one a sample."""
        for sample, prediction in zip(samples, predictions, strict=True):
            truth, row = torch.from_numpy(sample.truth), sample.row
            intersection, union = counts(prediction.cpu()[None], truth[None])
            key, ruled = (row["split"], row["corruption"], row["severity"]), row["split"] in self.generalised
            if ruled:
                absent, empty = torch.tensor([row["no_target"]]), called_empty(prediction.sum(), truth.numel()).cpu()[None]
                self.sums[key] = self.sums.get(key, Sums()) + score(intersection, union, no_target=absent, empty=empty)
                intersection, union, _ = settle(intersection, union, absent, empty)
            else:
                self.sums[key] = self.sums.get(key, Sums()) + score(intersection, union)
            counted = {"intersection": int(intersection), "union": int(union), "pred_pixels": int(prediction.sum()), "gt_pixels": int(truth.sum())}
            names = ("no_target", "protocol", "corruption", "severity")
            line = {k: v for k, v in row.items() if k not in names} | counted | {name: row[name] for name in names}
            line |= {"called_empty": bool(empty)} if ruled else {}
            self.lines.append(json.dumps(line).encode() + b"\n")
            if (row["corruption"], row["severity"]) == CLEAN:
                self.clean.append((sample.fact, int(intersection), int(union)))


def evaluate(
    checkpoint: Path,
    store: shards.Store,
    splits: list[str],
    *,
    protocol: str = "square",
    corruptions: Iterable[tuple[str, int]] = (),
    out: Path,
    baseline: Path | None = None,
    batch: int = 64,
    device="cpu",
    say=print,
) -> dict[str, dict]:
    """Score every sentence of the splits exactly once, clean and under each (corruption, severity); write the files of OUT.

    baseline: an earlier evaluation's folder that robustness is also given against.
    Returns what metrics.json holds. UserError: no checkpoint or shards there, an unknown split, protocol or corruption, an OUT that is a file,
    a baseline that measured something else.
    """
    manifest, views = shards.manifest(store), [CLEAN, *dict.fromkeys(tuple(c) for c in corruptions)]
    splits = _named(list(dict.fromkeys(splits)), manifest)
    _check(manifest, store, splits, protocol, batch, Path(out))
    segmenter, config = Segmenter.load(checkpoint, device), read_config(checkpoint)
    measured = {"data": {"fingerprint": manifest["fingerprint"]}, "protocol": protocol, **{key: config.get(key) for key in ("image_size", "fit")}}
    if baseline and len(views) == 1:
        raise UserError(
            "a baseline is for robustness, but no corruption was asked for; add --corrupt all:all, or compare two evaluations with `compare`"
        )
    other = _baseline(baseline, measured, splits, views) if baseline else None
    places = shards.index(store, splits)
    expected = sum(manifest["splits"][split]["sentences"] for split in splits)
    say(f"{expected} sentences of {', '.join(splits)} on {len(places)} pictures, {len(views)} view(s) each, protocol {protocol}")
    tally = Tally({split for split in splits if manifest["splits"][split].get("no_target")})
    words, start = _Words(segmenter.model), time.monotonic()
    rows = _watched(shards.read(store, places), len(places), say)
    samples = (sample for row in rows for sample in _samples(words.add(row, splits), splits, views, segmenter, protocol))
    while some := list(itertools.islice(samples, batch)):
        tally.add(some, _predict(segmenter, some, protocol))
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
        "unknown_words": words.share,
        "seconds": round(time.monotonic() - start, 2),
        "device": str(device),
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
    if words.share:
        say(f"{words.share:.1%} of the words are not in the checkpoint's vocabulary; the model reads them all as one unknown word")
    return metrics


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


def _check(manifest: dict, store: shards.Store, splits: list[str], protocol: str, batch: int, out: Path) -> None:
    if protocol not in PROTOCOLS:
        raise UserError(f"protocol is {protocol!r}; use square (network size) or original (the picture's own size)")
    unknown = [split for split in splits if split not in manifest["splits"]]
    if unknown or not splits:
        raise UserError(f"{store.uri} has no split {unknown[0] if unknown else ''!r}; it has {', '.join(manifest['splits'])}")
    if batch < 1:
        raise UserError(f"batch is {batch}; it must be at least 1")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; give a folder for the results")


def _watched(rows: Iterator[dict], total: int, say) -> Iterator[dict]:
    """The rows, with a line now and then on how far they are."""
    start = said = time.monotonic()
    for done, row in enumerate(rows):
        if time.monotonic() - said > SAY_EVERY_S:
            said = time.monotonic()
            say(f"{done} of {total} pictures, {said - start:.0f} s")
        yield row


def _samples(row: dict, splits: list[str], views: list[tuple[str, int]], segmenter: Segmenter, protocol: str) -> Iterator[Sample]:
    """Every sentence of the picture's refs in the splits, under each view; a view is made once a picture."""
    image = decode_image(row["jpeg"], row["file_name"])
    refs = [ref for ref in row["refs"] if ref["split"] in splits]
    truths = [rasterise(refer.referent(row, ref), row["height"], row["width"]) for ref in refs]
    areas = [int(t.sum()) for t in truths]
    truths = [t.astype(bool) if protocol == "original" else fit_mask(t, segmenter.image_size, segmenter.fit) for t in truths]
    for name, severity in views:
        seen = image if (name, severity) == CLEAN else corrupt(image, name, severity, row["image_id"])
        small = fit_image(seen, segmenter.image_size, segmenter.fit)
        for ref, truth, area in zip(refs, truths, areas, strict=True):
            of_ref = {
                **{key: row[key] for key in ("dataset", "split_by")},
                "split": ref["split"],
                "image_id": row["image_id"],
                "ref_id": ref["ref_id"],
            }
            for sentence in ref["sentences"]:
                what = {
                    "sent_id": sentence["sent_id"],
                    "no_target": not refer.targets(ref),
                    "protocol": protocol,
                    "corruption": name,
                    "severity": severity,
                }
                yield Sample(small, sentence["sent"], truth, of_ref | what, breakdown.fact(row, ref, sentence, area))


def _predict(segmenter: Segmenter, samples: list[Sample], protocol: str) -> list[torch.Tensor]:
    """-> a bool mask of the shape of each sample's truth"""
    logits = segmenter.logits(np.stack([s.image for s in samples]), [s.sentence for s in samples])
    if protocol == "square":
        return list(segment(logits, (segmenter.image_size,) * 2, segmenter.threshold))
    cut = math.log(segmenter.threshold / (1 - segmenter.threshold))
    return [to_original(z, s.truth.shape, segmenter.image_size, segmenter.fit) >= cut for z, s in zip(logits, samples, strict=True)]


class _Words:
    """Share of the sentences' words that a model with a word list does not know; None for a model without one."""

    def __init__(self, model):
        self.known, self.n, self.unknown = set(model.vocabulary or ()), 0, 0

    def add(self, row: dict, splits: list[str]) -> dict:
        """Count a row's words; the row comes back."""
        sentences = [s["sent"] for ref in row["refs"] if ref["split"] in splits for s in ref["sentences"]]
        found = [word for sentence in sentences for word in refer.words(sentence)]
        self.n, self.unknown = self.n + len(found), self.unknown + sum(word not in self.known for word in found)
        return row

    @property
    def share(self) -> float | None:
        return self.unknown / max(1, self.n) if self.known else None


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
        logits = model(model.normalise(batch.image), batch.tokens, batch.token_mask).float()
        found.append(_outcome(segment(logits, batch.mask.shape[1:], threshold), batch.mask, batch.no_target, batch.generalised))
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


# ---- one picture ----------------------------------------------------------------------------------------------------


def predict(checkpoint: Path, image_path: Path, text: str, out: Path, overlay: Path | None = None, *, device="cpu") -> str:
    """Segment what `text` names in a picture: OUT is a PNG (255 the referent, 0 the rest) of the picture's size as it is seen
    (its EXIF orientation applied); `overlay` a PNG of the picture with the rest dimmed.   -> what came out, in words

    UserError: a picture that cannot be read, a sentence without a word, no checkpoint there.
    """
    from PIL import Image

    from aml import pictures

    words = refer.words(text)
    if not words:
        raise UserError(f'the sentence {text!r} holds no word; say what to look for, as in --text "the left dog"')
    image, segmenter = _open(Path(image_path)), Segmenter.load(checkpoint, device)
    mask = segmenter.mask(image, text)
    write_atomic(Path(out), pictures.png(Image.fromarray(mask.astype(np.uint8) * 255)))
    if overlay:
        write_atomic(Path(overlay), pictures.png(Image.fromarray(pictures.overlay(image, mask, pictures.PREDICTION))))
    found = f"{mask.mean():.1%} of the picture, {int(mask.sum())} of {mask.size} pixels: {out}" + (f", {overlay}" if overlay else "")
    known = set(segmenter.model.vocabulary or ())
    if known and not known & set(words):
        found += f"\nno word of {text!r} is in the checkpoint's vocabulary of {len(known)} words: the mask says nothing about the sentence"
    return found


def _open(path: Path) -> np.ndarray:
    """A picture file as it is seen.   -> (H, W, 3) uint8"""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            return np.array(ImageOps.exif_transpose(file).convert("RGB"))
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, DecompressionBombError ... on what it cannot read
        what = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UserError(f"{path} cannot be read as a picture ({what}); give a JPEG or PNG file") from None
