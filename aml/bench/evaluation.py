"""Measure evaluation: a picture encoded once for its n sentences against once for each.

With V the time of encoding a picture, T of reading a sentence and D of the rest of a sentence's way
to its logits, encoding once can be faster by n (V + T + D) / (V + n (T + D)) at most. The three are
measured alone, the two ways as whole batches, all in turn in one run.
"""

import platform
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from aml.inference import Segmenter
from aml.models import build_model
from aml.training import VOCABULARY, synchronize

WARM = 2
"""First rounds that are not counted: they fill caches and, on a GPU, load kernels."""


def limit(visual: float, text: float, decode: float, sentences: int) -> float:
    """Return how many times faster encoding once can be.

    Args:
        visual: V of a picture, in any unit.
        text: T of a sentence, in the same unit.
        decode: D of a sentence, in the same unit.
        sentences: n, of a picture.
    """
    return sentences * (visual + text + decode) / (visual + sentences * (text + decode))


def measure(
    spec: dict, *, size: int, batch: int, sentences: int, precision: str, device: str, rounds: int
) -> dict:
    """Time both ways.

    `batch` pictures are encoded and as many sentences decoded at a time in both ways. Where the
    model fuses words into its encoder there is nothing to share: V is null, the limit 1, and both
    ways do the same.

    Returns:
        Medians over the rounds: V, T, D in ms, both ways in sentences a second, the speed-up,
        paired
        by round, and its limit.
    """
    torch.manual_seed(0)
    spec = dict(spec)
    model = build_model(spec.pop("name"), vocabulary=VOCABULARY, **spec)
    segmenter = Segmenter(model, image_size=size, device=device, precision=precision)
    images = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
    said = [" ".join(VOCABULARY[i : i + 5]) for i in range(batch * sentences)]
    of = [picture for picture in range(batch) for _ in range(sentences)]
    ways: dict[str, Callable] = {
        "once": lambda: list(segmenter.iter_logits(images, said, of, batch)),
        "each": lambda: _each(segmenter, images, said, of, batch),
    }
    if not model.fuses:
        seen = segmenter.encode(images)
        ways |= {
            "visual": lambda: segmenter.encode(images),
            "text": lambda: _read(segmenter, seen, said[:batch]),
            "sentence": lambda: segmenter.decode(seen, said[:batch]),
        }
    times = _in_turn(ways, rounds, torch.device(device))
    ratio = [each / once for each, once in zip(times["each"], times["once"], strict=True)]
    median = {way: statistics.median(t) for way, t in times.items()}
    parts = dict.fromkeys(("visual_ms", "text_ms", "decode_ms"))
    if not model.fuses:
        text = min(median["text"], median["sentence"])
        each = median["visual"], text, median["sentence"] - text
        parts = {
            name: round(1e3 * seconds / batch, 4) for name, seconds in zip(parts, each, strict=True)
        }
    most = 1.0 if model.fuses else limit(*each, sentences)
    return {
        "model": {"name": model.name, **spec},
        "fuses": model.fuses,
        "image_size": size,
        "batch": batch,
        "sentences": sentences,
        "precision": precision,
        "device": device,
        "device_name": torch.cuda.get_device_name(device)
        if device.startswith("cuda")
        else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        **parts,
        "once_per_s": round(len(said) / median["once"], 1),
        "each_per_s": round(len(said) / median["each"], 1),
        "speedup": round(statistics.median(ratio), 4),
        "speedup_quartiles": [round(q, 4) for q in statistics.quantiles(ratio, n=4)[::2]]
        if rounds > 1
        else None,
        "limit": round(most, 4),
        "share_of_limit": round(statistics.median(ratio) / most, 4),
    }


def lines(found: dict) -> list[str]:
    """Return what `measure` found as lines of text."""
    rates = f"once {found['once_per_s']:.1f} sentences/s, each {found['each_per_s']:.1f}"
    reached = f"{rates}: x{found['speedup']:.3f}"
    if found["fuses"]:
        return [
            f"{found['model']['name']} reads the words inside its visual encoder: nothing of a "
            "picture can be shared by its sentences",
            reached,
        ]
    return [
        f"a picture {found['visual_ms']:.3f} ms (V); a sentence {found['text_ms']:.3f} ms text "
        f"(T) and {found['decode_ms']:.3f} ms decoding (D)",
        f"limit n(V+T+D)/(V+n(T+D)) at n = {found['sentences']}: x{found['limit']:.3f}",
        f"{reached}, {found['share_of_limit']:.1%} of the limit",
    ]


def _in_turn(
    ways: dict[str, Callable], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Return the seconds of each way in each round, one after another within a round."""
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds + WARM):
        for way, run in ways.items():
            synchronize(device)
            start = time.perf_counter()
            run()
            synchronize(device)
            times[way].append(time.perf_counter() - start)
    return {way: t[WARM:] for way, t in times.items()}


def _each(
    segmenter: Segmenter, images: np.ndarray, sentences: list[str], of: list[int], batch: int
) -> None:
    for start in range(0, len(sentences), batch):
        segmenter.logits(images[of[start : start + batch]], sentences[start : start + batch])


@torch.inference_mode()
def _read(segmenter: Segmenter, seen: list, sentences: list[str]) -> None:
    """Read the sentences alone, as alignment at `encoder` does with the maps at hand."""
    tokens, token_mask = segmenter.tokenise(sentences)
    with segmenter.autocast():
        segmenter.model.features(None, tokens, token_mask, "encoder", seen)
