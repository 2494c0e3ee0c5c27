"""Check and decode the data of a training run: one data set, or several mixed.

An evaluation image is one with a ref in a val or test split of any data set in use, by its
image_id. RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO draw on the same COCO images, so an image that
one data set trains on may be one that another tests with. Evaluation images leave training.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aml.conditions import Condition
from aml.data import PUBLISHED, decode_row, rows_of_block
from aml.errors import UserError
from orchestrator import storage, utils
from orchestrator.config import DataConfig
from orchestrator.data import convert, shards
from orchestrator.data.block_choice import (
    choose_blocks,
    choose_corrupted,
    corrupted_windows,
    merge_selections,
)
from orchestrator.data.decoded import ObjectStoreBlocks, ShardSelection
from orchestrator.data.streaming import StreamingBlocks

logger = logging.getLogger(__name__)

EVALUATION_PREFIXES = ("val", "test", "dev", "eval")
"""Beginnings of the names of evaluation splits."""

EVALUATION_SPLITS: dict[tuple[str, str], tuple[str, ...]] = {
    name: tuple(split for split in splits if split != "train") for name, splits in PUBLISHED.items()
} | {("grefcoco", "unc"): ("val", "testA", "testB")}
"""Evaluation splits that a published data set has, by (dataset, split_by)."""


@dataclass(frozen=True)
class Sources:
    """Shards of one or several data sets, checked."""

    data: DataConfig
    stores: tuple[storage.Filesystem, ...]
    manifests: tuple[dict[str, Any], ...]
    evaluation: frozenset[int]
    """image_ids that leave training."""

    @property
    def uri(self) -> str:
        """Addresses of the shards, joined by " + "."""
        return " + ".join(store.uri for store in self.stores)

    @property
    def manifest(self) -> dict[str, Any]:
        """Manifest of a single store, or a combined one of several.

        A combined manifest holds the counts of each split over all stores, before anything leaves
        training, those of the split that validates of its store alone, and a fingerprint of the
        stores and their roles.
        """
        if len(self.stores) == 1:
            return self.manifests[0]
        fingerprints = [manifest["fingerprint"] for manifest in self.manifests]
        val_number = self.data.trains.index(self.data.val_uri)
        mixed = [*fingerprints, val_number, len(self.evaluation)]
        splits: dict[str, dict[str, int]] = {}
        for manifest in self.manifests:
            for name, counts in manifest["splits"].items():
                total = splits.setdefault(name, {})
                for key, count in counts.items():
                    total[key] = total.get(key, 0) + count
        validates = self.manifests[val_number]["splits"]
        if self.data.val_split in validates:
            splits[self.data.val_split] = dict(validates[self.data.val_split])
        return {
            "dataset": " + ".join(manifest["dataset"] for manifest in self.manifests),
            "split_by": " + ".join(manifest["split_by"] for manifest in self.manifests),
            "splits": splits,
            "fingerprint": hashlib.sha256(repr(mixed).encode()).hexdigest()[:16],
        }

    def decode(self, *, windowed: bool | None = None) -> ObjectStoreBlocks | StreamingBlocks:
        """Decode training pictures of all stores and validation pictures of the validating one.

        Args:
            windowed: Whether an earlier attempt of the run read through a window. None: pictures
                are kept in Ray's object store if they fit, else read through a window.
        """
        return choose_blocks(
            self._train, self._val, self.data.size, self.data.fit, windowed=windowed
        )

    def decode_corrupted(
        self, conditions: Sequence[Condition]
    ) -> dict[Condition, ObjectStoreBlocks | StreamingBlocks]:
        """Decode the validation pictures under each condition, as far as the object store goes."""
        return choose_corrupted(self._val, self.data.size, self.data.fit, conditions)

    def corrupted(self, conditions: Sequence[Condition]) -> dict[Condition, StreamingBlocks]:
        """Return the validation pictures under each condition, through a window without Ray."""
        return corrupted_windows(self._val, self.data.size, self.data.fit, conditions)

    def windowed(self) -> StreamingBlocks:
        """Return all pictures, read through a window without Ray."""
        parts = merge_selections(self._train, self._val)
        return StreamingBlocks(tuple(parts), self.data.size, self.data.fit)

    def blocks(self) -> list[dict[str, Any]]:
        """Decode the same pictures in this process; return blocks as aml.data.Items takes them."""
        blocks = []
        for part in merge_selections(self._train, self._val):
            places = shards.picture_places(part.store, sorted(part.splits))
            rows = shards.read_rows(part.store, places)
            kept = (shards.keep_refs(row, part.splits, part.excluded) for row in rows)
            decoded = [decode_row(row, self.data.size, self.data.fit) for row in kept if row]
            if decoded:
                blocks.append(rows_of_block(decoded))
        return blocks

    @property
    def _train(self) -> list[ShardSelection]:
        split = self.data.train_split
        return [
            ShardSelection(store, frozenset({split}), {split: self.evaluation})
            for store in self.stores
        ]

    @property
    def val_store(self) -> storage.Filesystem:
        """The shards that validate."""
        return self.stores[self.data.trains.index(self.data.val_uri)]

    @property
    def _val(self) -> list[ShardSelection]:
        return [ShardSelection(self.val_store, frozenset({self.data.val_split}), {})]

    def words(self) -> list[str]:
        """Return the union of the vocabularies, the first store's words first."""
        return list(dict.fromkeys(word for store in self.stores for word in shards.words(store)))


class LastDecoded:
    """Decoded pictures of the last data set, for sweeps of the same data that follow each other."""

    def __init__(self) -> None:
        """Hold nothing yet."""
        self._key: tuple = ()
        self._blocks: ObjectStoreBlocks | StreamingBlocks | None = None

    def decode(
        self, sources: Sources, *, windowed: bool | None = None
    ) -> ObjectStoreBlocks | StreamingBlocks:
        """Return the pictures of some sources: those held, or newly decoded in their place.

        Args:
            sources: The data.
            windowed: See `Sources.decode`.
        """
        data = sources.data
        fingerprints = tuple(manifest["fingerprint"] for manifest in sources.manifests)
        splits = data.train_split, data.val_split, data.val_uri, sources.evaluation
        key = sources.uri, fingerprints, splits, data.size, data.fit
        is_windowed = isinstance(self._blocks, StreamingBlocks)
        if self._blocks is None or key != self._key or windowed not in (None, is_windowed):
            self._blocks = None  # leaves the object store before others come
            self._blocks = sources.decode(windowed=windowed)
            self._key = key
        return self._blocks


def prepare_sources(data: DataConfig, root: Path) -> Sources:
    """Check the shards in use, and log what leaves the training of a mixture.

    Generated data that the experiment asks for and that are missing are generated first.

    Raises:
        UserError: See check_sources.
    """
    if data.synth is not None:
        store = storage.Filesystem(data.trains[0], root)
        if store.read(shards.COMPLETE_MARKER) is None:
            with utils.exclusive_lock(root / "generated"):
                # Another run may have generated them meanwhile.
                if store.read(shards.COMPLETE_MARKER) is None:
                    convert.make_synthetic(data.synth, store, root)
    sources = check_sources(data, root)
    if sources is None:
        raise UserError(
            f"{data.trains[0]} lost its {shards.COMPLETE_MARKER} while it was being read; start "
            "the command again"
        )
    if len(sources.stores) > 1:
        logger.info(_describe_mixture(sources))
    return sources


def check_sources(data: DataConfig, root: Path) -> Sources | None:
    """Return the shards in use; None if the data are still to be generated.

    Raises:
        UserError: There are no shards, and nothing to generate them of; a split in use is empty;
            the training split has
            evaluation images and data.allow_eval_images is not set; the evaluation images of a
            mixture cannot be known, or it holds a data set twice.
    """
    stores = tuple(storage.Filesystem(uri, root) for uri in data.trains)
    if data.synth is not None and stores[0].read(shards.COMPLETE_MARKER) is None:
        convert.synthetic_note(data.synth)  # refuses photographs that are missing
        convert.check_own_store(stores[0])
        stores[0].check_writable("data.train", 0)
        return None
    manifests = tuple(shards.read_manifest(store) for store in stores)
    for uri, store, manifest in zip(data.trains, stores, manifests, strict=True):
        used = {"train_split": data.train_split}
        if uri == data.val_uri:
            used["val_split"] = data.val_split
        _check_store(data, store, manifest, used)
    if len(stores) > 1:
        _check_mixture(data, stores, manifests)
    evaluation = frozenset[int]() if data.allow_eval_images else _evaluation_images(data, stores)
    return Sources(data, stores, manifests, evaluation)


def is_evaluation(split: str, data: DataConfig) -> bool:
    """Check by its name if a split is for evaluation."""
    return split == data.val_split or split.lower().startswith(EVALUATION_PREFIXES)


def _check_store(
    data: DataConfig, store: storage.Filesystem, manifest: dict[str, Any], used: dict[str, str]
) -> None:
    """Check one data set by itself.

    Args:
        data: Settings.
        store: Folder of the shards.
        manifest: Its manifest.
        used: Splits in use by the name of their setting.

    Raises:
        UserError: See check_sources.
    """
    for key, split in used.items():
        if split not in manifest["splits"]:
            raise UserError(
                f"data.{key} {split!r} is empty: {store.uri} holds "
                f"{', '.join(manifest['splits'])}; name one of them"
            )
    held = manifest.get("synth")
    if data.synth is not None and held:
        wanted = convert.synthetic_note(data.synth, held)
        if held != wanted:
            raise UserError(
                f"{store.uri} was generated with {held}, but data.synth is {wanted}; give "
                "data.train another folder or delete that one"
            )
    if is_evaluation(data.train_split, data) and not data.allow_eval_images:
        raise UserError(
            f"data.train_split {data.train_split!r} is there for evaluation, and a model that "
            "trained on it cannot be tested with it; name another split, or set "
            "data.allow_eval_images=true"
        )


def _check_mixture(
    data: DataConfig,
    stores: tuple[storage.Filesystem, ...],
    manifests: tuple[dict[str, Any], ...],
) -> None:
    """Check that a mixture has two splits, no data set twice, and known evaluation images."""
    if data.train_split == data.val_split:
        raise UserError(
            f"data.train_split and data.val_split are both {data.val_split!r}; a mixture needs two "
            "splits, name another for one of them"
        )
    names = [(manifest["dataset"], manifest["split_by"]) for manifest in manifests]
    for number, (store, manifest, name) in enumerate(zip(stores, manifests, names, strict=True)):
        if name in names[:number]:
            raise UserError(
                f"data.train names {name[0]} ({name[1]}) twice, {stores[names.index(name)].uri} "
                f"and {store.uri}; leave one of them out"
            )
        if data.allow_eval_images:
            continue
        splits = manifest["splits"]
        missing = [split for split in EVALUATION_SPLITS.get(name, ()) if split not in splits]
        if missing or not any(is_evaluation(split, data) for split in splits):
            raise UserError(
                f"{store.uri} ({name[0]}, {name[1]}) lacks "
                f"{', '.join(missing) or 'any evaluation split'}, so nobody can know which images "
                "of a mixture are for evaluation; convert the whole data set, or set "
                "data.allow_eval_images=true"
            )


def _evaluation_images(data: DataConfig, stores: tuple[storage.Filesystem, ...]) -> frozenset[int]:
    """Return the image_ids with a ref in an evaluation split of any store of a mixture.

    Returns:
        An empty set for a single store, whose evaluation splits hold other images.

    Raises:
        UserError: A single store has refs of the same image in training and evaluation splits, or
            no training image is left.
    """
    images: set[int] = set()
    training: set[int] = set()
    for store in stores:
        for image_id, splits in shards.splits_of(store).items():
            if any(is_evaluation(split, data) for split in splits):
                images.add(image_id)
            if data.train_split in splits:
                training.add(image_id)
    if len(stores) == 1 and images & training:
        raise UserError(
            f"{len(images & training)} of the {len(training)} training images of {stores[0].uri} "
            "also hold refs for evaluation (its splits are by object, not by image); set "
            "data.allow_eval_images=true to train on them as it is published"
        )
    if not training - images:
        raise UserError(
            f"no image of split {data.train_split!r} is left: each holds refs for evaluation; add "
            "a data set or name another split"
        )
    return frozenset(images) if len(stores) > 1 else frozenset()


def _describe_mixture(sources: Sources) -> str:
    """Return a sentence on how many images leave training, or that they stay."""
    split = sources.data.train_split
    train = {
        store.uri: {
            image_id for image_id, splits in shards.splits_of(store).items() if split in splits
        }
        for store in sources.stores
    }
    every = set().union(*train.values())
    if sources.data.allow_eval_images:
        return (
            f"mixed training on {len(every)} images: images for evaluation stay, as "
            "data.allow_eval_images asks"
        )
    parts = ", ".join(
        f"{len(images & sources.evaluation)} of the {len(images)} of {uri}"
        for uri, images in train.items()
    )
    return (
        f"mixed training: {len(every & sources.evaluation)} of {len(every)} images are for "
        f"evaluation in one of the data sets and leave training ({parts})"
    )
