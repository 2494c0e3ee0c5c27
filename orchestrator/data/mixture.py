"""The data of a training run: one set of shards or several mixed, what leaves training because it is for evaluation, decoded once.

An evaluation image is one with a ref in a val or test split of any of the data sets in use, by its image_id: RefCOCO, RefCOCO+, RefCOCOg
and gRefCOCO draw on the same COCO images, and what one trains on another tests with.
"""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path

from aml.data import PUBLISHED, decode_row, rows_of_block
from aml.errors import UserError
from orchestrator import storage, utils
from orchestrator.config import DataConfig
from orchestrator.data import convert, shards
from orchestrator.data.decoded import (
    ObjectStoreBlocks,
    ShardSelection,
    StreamingBlocks,
    merged,
    place,
)

EVALUATION = ("val", "test", "dev", "eval")

"""What the names of evaluation splits begin with."""

REQUIRED = {
    key: tuple(split for split in splits if split != "train") for key, splits in PUBLISHED.items()
}

REQUIRED[("grefcoco", "unc")] = ("val", "testA", "testB")


@dataclass(frozen=True)
class Sources:
    """Shards in use, checked."""

    data: DataConfig
    stores: tuple[storage.Filesystem, ...]
    manifests: tuple[dict, ...]
    evaluation: frozenset[int]
    """Images that leave training."""

    @property
    def uri(self) -> str:
        return " + ".join(store.uri for store in self.stores)

    @property
    def manifest(self) -> dict:
        """One store's own; of several, the counts of each split together, before anything left, and a fingerprint of all and what they are for."""
        if len(self.stores) == 1:
            return self.manifests[0]
        parts = [m["fingerprint"] for m in self.manifests]
        mixed = [*parts, self.data.trains.index(self.data.val_uri), len(self.evaluation)]
        splits: dict[str, dict[str, int]] = {}
        for name, counts in (
            (name, counts) for m in self.manifests for name, counts in m["splits"].items()
        ):
            known = splits.setdefault(name, {})
            known.update({key: known.get(key, 0) + n for key, n in counts.items()})
        return {
            "dataset": " + ".join(m["dataset"] for m in self.manifests),
            "split_by": " + ".join(m["split_by"] for m in self.manifests),
            "splits": splits,
            "fingerprint": hashlib.sha256(repr(mixed).encode()).hexdigest()[:16],
        }

    def decode(
        self, *, windowed: bool | None = None, say=print
    ) -> ObjectStoreBlocks | StreamingBlocks:
        """Training pictures of every store, validation pictures of the one that validates: in Ray's object store, or through a window.

        windowed: as an earlier attempt of the run had it; None: whichever fits.
        """
        return place(
            self._train, self._val, self.data.size, self.data.fit, windowed=windowed, say=say
        )

    def windowed(self) -> StreamingBlocks:
        """All of them through a window, without Ray."""
        return StreamingBlocks(tuple(merged(self._train, self._val)), self.data.size, self.data.fit)

    def blocks(self) -> list[dict]:
        """The same pictures decoded in this process."""
        data, found = self.data, []
        for part in merged(self._train, self._val):
            rows = shards.read_rows(
                part.store, shards.picture_places(part.store, sorted(part.splits))
            )
            kept = (shards.with_refs_of(row, part.splits, part.leave) for row in rows)
            if decoded := [decode_row(row, data.size, data.fit) for row in kept if row]:
                found.append(rows_of_block(decoded))
        return found

    @property
    def _train(self) -> list[ShardSelection]:
        split = self.data.train_split
        return [
            ShardSelection(store, frozenset({split}), {split: self.evaluation})
            for store in self.stores
        ]

    @property
    def _val(self) -> list[ShardSelection]:
        return [
            ShardSelection(
                self.stores[self.data.trains.index(self.data.val_uri)],
                frozenset({self.data.val_split}),
                {},
            )
        ]

    def words(self) -> list[str]:
        """The union of the vocabularies, the first store's words first."""
        return list(dict.fromkeys(word for store in self.stores for word in shards.words(store)))


def prepare_sources(data: DataConfig, root: Path, say=print) -> Sources:
    """Checked shards; generated first where the experiment asks for generated data and none is there. Says what leaves training."""
    if (
        data.synth is not None
        and (store := storage.Filesystem(data.trains[0], root)).read(shards.COMPLETE_MARKER) is None
    ):
        with utils.exclusive_lock(root / "generated"):
            if (
                store.read(shards.COMPLETE_MARKER) is None
            ):  # still: another run may have made them meanwhile
                convert.make_synthetic(data.synth, store, root, say)
    found = check_sources(data, root)
    if len(found.stores) > 1:
        say(_said(found))
    return found


def check_sources(data: DataConfig, root: Path) -> Sources | None:
    """The shards in use; None where the data are still to be generated.

    UserError: no shards, a split in use that holds nothing, training on evaluation images without data.allow_eval_images, a mixture whose
    evaluation images cannot be known or that holds a data set twice.
    """
    stores = tuple(storage.Filesystem(uri, root) for uri in data.trains)
    if data.synth is not None and stores[0].read(shards.COMPLETE_MARKER) is None:
        return None
    manifests = tuple(shards.read_manifest(store) for store in stores)
    for uri, store, found in zip(data.trains, stores, manifests, strict=True):
        _check_splits(
            store,
            found,
            {"train_split": data.train_split}
            | ({"val_split": data.val_split} if uri == data.val_uri else {}),
        )
        wanted = asdict(data.synth) if data.synth else None
        if wanted and found.get("synth") and found["synth"] != wanted:
            raise UserError(
                f"{store.uri} was generated with {found['synth']}, but data.synth is {wanted}; give data.train another folder or delete that one"
            )
        if is_evaluation(data.train_split, data) and not data.allow_eval_images:
            raise UserError(
                f"data.train_split {data.train_split!r} is there for evaluation, and a model that trained on it cannot be tested with it; "
                "name another split, or set data.allow_eval_images=true"
            )
    if len(stores) > 1:
        _check_mixture(data, stores, manifests)
    return Sources(
        data,
        stores,
        manifests,
        frozenset() if data.allow_eval_images else _evaluation_images(data, stores),
    )


def is_evaluation(split: str, data: DataConfig) -> bool:
    """Whether a split of this name is one to evaluate with."""
    return split == data.val_split or split.lower().startswith(EVALUATION)


def _check_splits(store: storage.Filesystem, found: dict, used: dict[str, str]) -> None:
    for key, split in used.items():
        if split not in found["splits"]:
            raise UserError(
                f"data.{key} {split!r} is empty: {store.uri} holds {', '.join(found['splits'])}; name one of them"
            )


def _check_mixture(
    data: DataConfig, stores: tuple[storage.Filesystem, ...], manifests: tuple[dict, ...]
) -> None:
    if data.train_split == data.val_split:
        raise UserError(
            f"data.train_split and data.val_split are both {data.val_split!r}; a mixture needs two splits, name another for one of them"
        )
    names = [(m["dataset"], m["split_by"]) for m in manifests]
    for k, (store, found, name) in enumerate(zip(stores, manifests, names, strict=True)):
        title = f"{store.uri} ({name[0]}, {name[1]})"
        if name in names[:k]:
            raise UserError(
                f"data.train names {name[0]} ({name[1]}) twice, {stores[names.index(name)].uri} and {store.uri}; leave one of them out"
            )
        missing = [split for split in REQUIRED.get(name, ()) if split not in found["splits"]]
        if (
            missing or not any(is_evaluation(split, data) for split in found["splits"])
        ) and not data.allow_eval_images:
            lack = ", ".join(missing) or "any evaluation split"
            raise UserError(
                f"{title} lacks {lack}, so nobody can know which images of a mixture are for evaluation; convert the whole data set, "
                "or set data.allow_eval_images=true"
            )


def _evaluation_images(data: DataConfig, stores: tuple[storage.Filesystem, ...]) -> frozenset[int]:
    """Every image with a ref in an evaluation split of any store. UserError where a store by itself mixes them with training images."""
    images, training = set(), set()
    for store in stores:
        for image_id, splits in shards.splits_of(store).items():
            if any(is_evaluation(split, data) for split in splits):
                images.add(image_id)
            if data.train_split in splits:
                training.add(image_id)
    if len(stores) == 1 and images & training:
        raise UserError(
            f"{len(images & training)} of the {len(training)} training images of {stores[0].uri} also hold refs for evaluation (its splits are by "
            "object, not by image); set data.allow_eval_images=true to train on them as it is published"
        )
    if not training - images:
        raise UserError(
            f"no image of split {data.train_split!r} is left: each holds refs for evaluation; add a data set or name another split"
        )
    return frozenset(images) if len(stores) > 1 else frozenset()


def _said(found: Sources) -> str:
    """What leaves training, or that it stays."""
    train = {
        store.uri: {
            i for i, splits in shards.splits_of(store).items() if found.data.train_split in splits
        }
        for store in found.stores
    }
    if found.data.allow_eval_images:
        return f"mixed training on {len(set().union(*train.values()))} images: images for evaluation stay, as data.allow_eval_images asks"
    left = {uri: len(images & found.evaluation) for uri, images in train.items()}
    every = set().union(*train.values())
    parts = ", ".join(f"{n} of the {len(train[uri])} of {uri}" for uri, n in left.items())
    return f"mixed training: {len(every & found.evaluation)} of {len(every)} images are for evaluation in one of the data sets and leave training ({parts})"
