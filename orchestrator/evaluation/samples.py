"""Prepare pictures and sentences of shards for scoring.

Shapes: S network size, H and W a picture's own height and width.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from aml.conditions import CLEAN, Condition
from aml.data import (
    corrupt,
    fit_image,
    fit_mask,
    rasterise,
    referent,
    row_picture,
    targets_of,
)
from aml.errors import UserError
from orchestrator import data, storage
from orchestrator.evaluation.breakdown import describe_sentence

PROTOCOLS = ("square", "original")


@dataclass
class SentenceSample:
    """One sentence about one picture under one condition."""

    sentence: str
    truth: np.ndarray
    """(S, S) bool in the square protocol, (H, W) bool in the original one."""
    truth_pixels: int
    """Number of True pixels in `truth`."""
    identity: dict
    """First columns of the sentence's row in per_sentence.jsonl: dataset ... sent_id."""
    setting: dict
    """Last columns of that row: no_target, protocol, corruption, severity."""
    description: dict
    """The sentence's row in sentences.jsonl."""

    @property
    def condition(self) -> Condition:
        return self.setting["corruption"], self.setting["severity"]


@dataclass
class ImageVariant:
    """A picture, clean or corrupted, with the sentences about it."""

    image: np.ndarray
    """(S, S, 3) uint8"""
    samples: list[SentenceSample]


@dataclass(frozen=True)
class SampleLoader:
    """Decode rows of shards into network images, corrupted and clean, and ground-truth masks."""

    splits: list[str]
    """Sentences of other splits are left out."""
    conditions: list[Condition]
    protocol: str
    """"square" or "original": the size at which truth and prediction are compared."""
    image_size: int
    """Side of the network image, S, in pixels."""
    fit: str
    """How a picture becomes square, "square" or "letterbox"."""
    chosen: frozenset[tuple[int, int]] | None = None
    """(ref_id, sent_id) of the sentences to read; None for all of the splits."""

    def refs(self, row: dict) -> list[dict]:
        """Return the refs of a picture that belong to the splits, with their chosen sentences."""
        refs = [ref for ref in row["refs"] if ref["split"] in self.splits]
        if self.chosen is None:
            return refs
        kept = [
            ref
            | {
                "sentences": [
                    s for s in ref["sentences"] if (ref["ref_id"], s["sent_id"]) in self.chosen
                ]
            }
            for ref in refs
        ]
        return [ref for ref in kept if ref["sentences"]]

    def sentences(self, row: dict) -> list[str]:
        """Return the sentences of a picture that belong to the splits."""
        return [s["sent"] for ref in self.refs(row) for s in ref["sentences"]]

    def variants(self, row: dict) -> Iterator[ImageVariant]:
        """Yield a picture under each condition, with every sentence of the splits about it.

        A corruption acts on the picture at its own size, before any resize. Its draws depend on
        the picture's image_id.
        """
        image = np.asarray(row_picture(row))
        # Masks and descriptions are the same under every condition.
        clean = self.samples(row)
        for condition in self.conditions:
            name, severity = condition
            seen = image if condition == CLEAN else corrupt(image, name, severity, row["image_id"])
            changed = {"corruption": name, "severity": severity}
            samples = [replace(sample, setting=sample.setting | changed) for sample in clean]
            yield ImageVariant(fit_image(seen, self.image_size, self.fit), samples)

    def samples(self, row: dict) -> list[SentenceSample]:
        """Return the sentences of the splits about a picture, which is not decoded, as clean."""
        return [sample for ref in self.refs(row) for sample in self._samples(row, ref)]

    def _samples(self, row: dict, ref: dict) -> Iterator[SentenceSample]:
        """Yield the sentences of a ref under the clean condition."""
        full = rasterise(referent(row, ref), row["height"], row["width"])
        if self.protocol == "original":
            truth = full.astype(bool)
        else:
            truth = fit_mask(full, self.image_size, self.fit)
        area = int(full.sum())
        name, severity = CLEAN
        for sentence in ref["sentences"]:
            yield SentenceSample(
                sentence=sentence["sent"],
                truth=truth,
                truth_pixels=int(truth.sum()),
                identity={
                    "dataset": row["dataset"],
                    "split_by": row["split_by"],
                    "split": ref["split"],
                    "image_id": row["image_id"],
                    "ref_id": ref["ref_id"],
                    "sent_id": sentence["sent_id"],
                },
                setting={
                    "no_target": not targets_of(ref),
                    "protocol": self.protocol,
                    "corruption": name,
                    "severity": severity,
                },
                description=describe_sentence(row, ref, sentence, area),
            )


def check_protocol(protocol: str) -> None:
    """Raise UserError where a protocol is unknown."""
    if protocol not in PROTOCOLS:
        raise UserError(
            f"protocol is {protocol!r}; use square (network size) or original (the picture's own "
            "size)"
        )


def chosen_splits(splits: list[str], manifest: dict, shards: storage.Filesystem) -> list[str]:
    """Return the splits that a person named, with `test` as testA, testB, ... as REFER has it.

    A data set that has a split named `test` keeps it.

    Args:
        splits: The names.
        manifest: The manifest of the shards.
        shards: The shards, for messages.

    Raises:
        UserError: There is no such split, or one is named twice.
    """
    held = manifest["splits"]
    parts = [split for split in held if re.fullmatch("test[A-Z]", split)]
    found: list[str] = []
    for split in splits:
        found += parts if split == "test" and split not in held and parts else [split]
    found = list(dict.fromkeys(found))
    unknown = [split for split in found if split not in held]
    if unknown or not found:
        raise UserError(
            f"{shards.uri} has no split {unknown[0] if unknown else ''!r}; it has {', '.join(held)}"
        )
    if twice := [split for split in splits if splits.count(split) > 1]:
        raise UserError(f"splits {','.join(splits)} name {twice[0]} twice; name each split once")
    return found


def generalised_splits(manifest: dict, splits: list[str]) -> set[str]:
    """Return those of the splits that hold expressions without a target."""
    return {split for split in splits if manifest["splits"][split].get("no_target")}


def check_complete(found: int, shards: storage.Filesystem, manifest: dict, splits: list[str]):
    """Raise UserError where shards hold another number of sentences than their manifest says.

    Args:
        found: Number of sentences that were read.
        shards: The shards.
        manifest: Their manifest.
        splits: The splits that were read.
    """
    wanted = sum(manifest["splits"][split]["sentences"] for split in splits)
    if found != wanted:
        raise UserError(
            f"{shards.uri} holds {found} sentences of {', '.join(splits)}, but its "
            f"{data.COMPLETE_MARKER} says {wanted}; copy it again or write the shards again"
        )
