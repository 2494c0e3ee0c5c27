"""Score a chunk of pictures with a checkpoint: predictions, pixel counts, sums of scores."""

import itertools
import json
import math
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from aml.conditions import CLEAN
from aml.data import split_words
from aml.inference import Segmenter, resize_to_original
from aml.metrics import Sums, called_empty, intersection_over_union, score
from aml.training import segment_logits
from orchestrator.evaluation.samples import ImageVariant, SampleLoader, SentenceSample


@dataclass
class PartialScores:
    """Scores of some of an evaluation's pictures. Add two of them up with `+=`."""

    sums: dict[tuple[str, str, int], Sums] = field(default_factory=dict)
    """Metric sums by (split, corruption, severity)."""
    rows: list[bytes] = field(default_factory=list)
    """Lines of per_sentence.jsonl."""
    clean: list[tuple[dict, int, int]] = field(default_factory=list)
    """Of each sentence on its clean picture: row of sentences.jsonl, intersection and union."""
    pictures: int = 0
    words: int = 0
    """Number of words in the sentences; 0 for a model without a vocabulary."""
    unknown_words: int = 0
    """Number of those words that are not in the model's vocabulary."""
    by_checkpoint: dict[str, "PartialScores"] = field(default_factory=dict)
    """The scores of each checkpoint by name, where several score the same pictures; the sums and
    rows beside it are then empty."""

    @property
    def unknown_share(self) -> float | None:
        """Share of the words that the model does not know; None without a vocabulary."""
        return self.unknown_words / self.words if self.words else None

    def __iadd__(self, other: "PartialScores") -> "PartialScores":
        for key, sums in other.sums.items():
            self.sums[key] = self.sums.get(key, Sums()) + sums
        self.rows += other.rows
        self.clean += other.clean
        self.pictures += other.pictures
        self.words += other.words
        self.unknown_words += other.unknown_words
        for name, scores in other.by_checkpoint.items():
            self.by_checkpoint.setdefault(name, PartialScores()).__iadd__(scores)
        return self


@dataclass
class ScoringTask:
    """Everything that a worker needs to score chunks of pictures; it is sent to each worker."""

    segmenter: Segmenter
    loader: SampleLoader
    batch: int
    """Largest number of sentences decoded together."""
    chunk: int
    """Number of pictures in a chunk; they are encoded together."""
    generalised: set[str]
    """Splits that hold expressions without a target. For these the gRefCOCO rule of aml.metrics
    applies, and their rows in per_sentence.jsonl end with `called_empty`."""

    def __post_init__(self) -> None:
        self.vocabulary = set(self.segmenter.model.vocabulary or ())

    @property
    def device(self) -> torch.device:
        return self.segmenter.device

    def to(self, device: str) -> None:
        """Move the model to a device."""
        self.segmenter.to(device)

    def score(
        self, rows: list[dict], device_lock: AbstractContextManager | None = None
    ) -> PartialScores:
        """Return the scores of a chunk of pictures.

        Args:
            rows: Rows of the shards, one a picture, with their `jpeg`.
            device_lock: Lock held while the model computes; None where no other thread uses the
                device.
        """
        variants = itertools.chain.from_iterable(map(self.loader.variants, rows))
        scores = self.score_variants(variants, device_lock)
        scores.pictures = len(rows)
        self.count_words(scores, rows)
        return scores

    def count_words(self, scores: PartialScores, rows: list[dict]) -> None:
        """Count in the scores of some pictures the words that the model does not know."""
        if self.vocabulary:
            sentences = [s for row in rows for s in self.loader.sentences(row)]
            words = [word for sentence in sentences for word in split_words(sentence)]
            scores.words = len(words)
            scores.unknown_words = sum(word not in self.vocabulary for word in words)

    def score_variants(
        self, variants: Iterable[ImageVariant], device_lock: AbstractContextManager | None = None
    ) -> PartialScores:
        """Return the scores of pictures that were made ready before.

        Args:
            variants: The pictures of a chunk under every condition.
            device_lock: See `score`.
        """
        scores = PartialScores()
        variants = iter(variants)
        while some := list(itertools.islice(variants, self.chunk)):
            samples = [sample for variant in some for sample in variant.samples]
            masks = self.masks(some, samples, device_lock or nullcontext())
            overlaps = [overlap(*pair) for pair in zip(masks, samples, strict=True)]
            add_samples(scores, samples, np.array(overlaps, np.int64), self.generalised)
        return scores

    def masks(
        self,
        variants: list[ImageVariant],
        samples: list[SentenceSample],
        device_lock: AbstractContextManager,
    ) -> Iterator[np.ndarray]:
        """Yield for each sample the predicted mask, bool, in the shape of the sample's truth.

        Args:
            variants: Some pictures.
            samples: Their sentences, in order.
            device_lock: Lock held while the model computes.
        """
        image_indices = [k for k, variant in enumerate(variants) for _ in variant.samples]
        parts = self.segmenter.iter_logits(
            np.stack([variant.image for variant in variants]),
            [sample.sentence for sample in samples],
            image_indices,
            self.batch,
        )
        remaining = iter(samples)
        while True:
            with device_lock:
                logits = next(parts, None)
                if logits is None:
                    return
                some = list(itertools.islice(remaining, len(logits)))
                masks = self._masks(logits, some)
            yield from masks

    def _masks(self, logits: torch.Tensor, samples: list[SentenceSample]) -> list[np.ndarray]:
        """Return for each sample the predicted mask, bool, in the shape of the sample's truth."""
        size = self.segmenter.image_size
        threshold = self.segmenter.threshold
        if self.loader.protocol == "square":
            return list(segment_logits(logits, (size, size), threshold).cpu().numpy())
        least_logit = math.log(threshold / (1 - threshold))
        masks = []
        for one, sample in zip(logits, samples, strict=True):
            height, width = sample.truth.shape
            full = resize_to_original(one, (height, width), size, self.segmenter.fit)
            masks.append((full >= least_logit).cpu().numpy())
        return masks


@dataclass
class SharedScoringTask:
    """A ScoringTask of several checkpoints, which score the same pictures.

    A picture is decoded, corrupted and resized once for all checkpoints. Its `score` returns
    scores by checkpoint.
    """

    segmenters: dict[str, Any]
    """By name, a Segmenter or Ray's reference to one. A reference is fetched for each chunk, so
    that a worker holds one model at a time."""
    loader: SampleLoader
    batch: int
    chunk: int
    generalised: set[str]
    device: torch.device
    keep_rows: bool = False
    """Whether the scores have the rows of sentences, which many checkpoints and conditions make
    large."""

    def to(self, device: str) -> None:
        """Name the device on which the models compute."""
        self.device = torch.device(device)

    def score(
        self, rows: list[dict], device_lock: AbstractContextManager | None = None
    ) -> PartialScores:
        """Return every checkpoint's scores of a chunk of pictures; see ScoringTask.score."""
        variants = list(itertools.chain.from_iterable(map(self.loader.variants, rows)))
        scores = PartialScores(pictures=len(rows))
        for name, given in self.segmenters.items():
            segmenter = given if isinstance(given, Segmenter) else _fetched(given, self.device)
            task = ScoringTask(segmenter, self.loader, self.batch, self.chunk, self.generalised)
            found = task.score_variants(variants, device_lock)
            if self.keep_rows:
                task.count_words(found, rows)
            else:
                found = PartialScores(sums=found.sums)
            scores.by_checkpoint[name] = found
        return scores


def _fetched(reference: Any, device: torch.device) -> Segmenter:
    """Return the Segmenter that a reference of Ray's stands for, on a device."""
    import ray

    segmenter = ray.get(reference)
    segmenter.to(device)
    return segmenter


def overlap(mask: np.ndarray, sample: SentenceSample) -> tuple[int, int]:
    """Return the pixels of a mask (bool) that are the sample's truth too, and all of the mask."""
    return int(np.count_nonzero(mask & sample.truth)), int(np.count_nonzero(mask))


def add_samples(
    scores: PartialScores,
    samples: list[SentenceSample],
    overlaps: np.ndarray,
    generalised: set[str],
) -> None:
    """Add the metric sums and output rows of some samples to `scores`.

    Args:
        scores: Changed in place.
        samples: n samples.
        overlaps: (n, 2) int64: pixels of prediction and truth both, pixels of the prediction.
        generalised: Splits to which the rule for expressions without a target applies.
    """
    both, predicted = torch.from_numpy(overlaps).reshape(-1, 2).unbind(1)
    rule_applies = torch.tensor([s.identity["split"] in generalised for s in samples])
    absent = torch.tensor([s.setting["no_target"] for s in samples]) & rule_applies
    areas = torch.tensor([s.truth.size for s in samples])
    empty = called_empty(predicted, areas) & rule_applies
    truth = torch.tensor([s.truth_pixels for s in samples])
    intersection, union, _ = intersection_over_union(both, predicted + truth - both, absent, empty)

    keys = [(s.identity["split"], *s.condition) for s in samples]
    for key in dict.fromkeys(keys):
        chosen = torch.tensor([k == key for k in keys])
        sums = score(
            intersection[chosen], union[chosen], no_target=absent[chosen], empty=empty[chosen]
        )
        scores.sums[key] = scores.sums.get(key, Sums()) + sums

    columns = zip(
        samples,
        intersection.tolist(),
        union.tolist(),
        predicted.tolist(),
        rule_applies.tolist(),
        empty.tolist(),
        strict=True,
    )
    for sample, i, u, pixels, ruled, nothing in columns:
        counts = {
            "intersection": i,
            "union": u,
            "pred_pixels": pixels,
            "gt_pixels": sample.truth_pixels,
        }
        row = sample.identity | counts | sample.setting
        if ruled:
            row["called_empty"] = nothing
        scores.rows.append(json_line(row))
        if sample.condition == CLEAN:
            scores.clean.append((sample.description, i, u))


def json_line(row: dict) -> bytes:
    """Return the row as one line of a JSON Lines file."""
    return json.dumps(row).encode() + b"\n"


def total_scores(parts: Iterable[PartialScores]) -> PartialScores:
    """Return the sum of the parts, their rows in the order of the parts."""
    total = PartialScores()
    for part in parts:
        total += part
    return total
