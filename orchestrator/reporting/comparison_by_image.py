"""Compare two evaluations by a paired bootstrap over images."""

import json
import math
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np

from aml.errors import UserError
from orchestrator import evaluation
from orchestrator.reporting import wording
from orchestrator.reporting.significance import (
    RESAMPLES,
    Difference,
    ImageSums,
    holm,
    image_difference,
)
from orchestrator.reporting.wording import _sure, _verdict_words, verdict

FEW_IMAGES = 50


def _evaluations(names: list[str], say: Callable) -> dict:
    if len(names) < 2:
        raise UserError(f"{names[0]} is one evaluation; name two or more to compare")
    read = [evaluation.read_sentence_scores(Path(name)) for name in names]
    for (name, (about, _)), (other, (about_b, _)) in combinations(zip(names, read, strict=True), 2):
        evaluation.check_same_sentences(about, about_b, name, other)
    splits = [s for s in read[0][0]["splits"] if all(s in about["splits"] for about, _ in read)]
    if not splits:
        have = "; ".join(
            f"{name}: {', '.join(about['splits'])}"
            for name, (about, _) in zip(names, read, strict=True)
        )
        raise UserError(
            f"no split is in all of the evaluations ({have}); evaluate the same --splits"
        )
    rows = {name: _rows(Path(name)) for name in names}
    views = {
        c
        for c in read[0][0]["corruptions"]
        if not c.endswith(":0") and all(c in about["corruptions"] for about, _ in read)
    }
    found = []
    for split in splits:
        for what, chosen in (("clean", {"clean:0"}), (f"corrupted ({len(views)} views)", views)):
            if chosen:
                sums = {name: _sums(rows[name], split, chosen) for name in names}
                found += [
                    (split, what, a, b, image_difference(*_paired(sums, a, b)))
                    for a, b in combinations(names, 2)
                ]
    rows_out = []
    for metric in evaluation.METRICS:
        adjusted = holm([d[metric].p for *_, d in found])
        for (split, what, a, b, d), p in zip(found, adjusted, strict=True):
            text = image_words(a, b, d[metric], p, len(found), f"{metric} on {split}, {what}")
            say(text)
            rows_out.append(
                _row(a, b, d[metric], p)
                | {"metric": metric, "split": split, "view": what, "words": text}
            )
    if min(d["mIoU"].n[0] for *_, d in found) < FEW_IMAGES:
        say(f"note: on fewer than {FEW_IMAGES} images a bootstrap interval is too narrow")
    say(
        f"Paired bootstrap over images, {RESAMPLES} resamples, protocol {read[0][0]['protocol']}; Holm's correction within each metric. It tells these "
        "checkpoints apart, not their methods: another seed may turn it round, which comparing runs over seeds shows."
    )
    return _no_nan(
        {
            "kind": "images",
            "protocol": read[0][0]["protocol"],
            "tests": len(found),
            "sides": [{"label": n} for n in names],
            "comparisons": rows_out,
        }
    )


def _rows(folder: Path) -> list[dict]:
    with open(folder / "per_sentence.jsonl", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _sums(rows: list[dict], split: str, views: set[str]) -> tuple[list, ImageSums]:
    """Which sentences (with the pixels of their truth) of some views, and the sums of each image, in the order of image_id."""
    mine = [
        r for r in rows if r["split"] == split and f"{r['corruption']}:{r['severity']}" in views
    ]
    which = sorted(
        (r["image_id"], r["ref_id"], r["sent_id"], r["corruption"], r["severity"], r["gt_pixels"])
        for r in mine
    )
    _, place = np.unique([r["image_id"] for r in mine], return_inverse=True)

    def summed(values: list[float]) -> np.ndarray:
        return np.bincount(place, weights=values)

    iou = [r["intersection"] / r["union"] if r["union"] else 0.0 for r in mine]
    return which, ImageSums(
        summed(iou),
        summed([1.0] * len(mine)),
        summed([r["intersection"] for r in mine]),
        summed([r["union"] for r in mine]),
    )


def _paired(sums: dict[str, tuple[list, ImageSums]], a: str, b: str) -> tuple[ImageSums, ImageSums]:
    (which, one), (which_b, two) = sums[a], sums[b]
    if which != which_b:
        raise UserError(
            f"{a} and {b} do not hold the same sentences ({len(which)} and {len(which_b)} rows); evaluate both on the same shards again"
        )
    if len(one.n) < 2:
        raise UserError(
            f"{a} and {b} hold {len(one.n)} image, and a bootstrap over images needs two; evaluate a larger split"
        )
    return one, two


def image_words(a: str, b: str, d: Difference, p: float, tests: int, what: str) -> str:
    lead = f"{a} is {wording.pct(abs(d.difference))} points {'above' if d.difference >= 0 else 'below'} {b} in {what}"
    return f"{lead} ({_sure(d, p, tests)}, {d.n[0]} images): {_verdict_words(d, p, tests, 'the choice of images', 'these images')}"


def _row(a: str, b: str, d: Difference, p: float) -> dict:
    return {"a": a, "b": b, **d._asdict(), "p_holm": p, "verdict": verdict(d, p)}


def _no_nan(value):
    """JSON has no NaN: null instead."""
    if isinstance(value, dict):
        return {k: _no_nan(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_no_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
