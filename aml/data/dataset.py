"""Arrays to batches; which items a step takes is a plan, not a stream.

block    decoded rows, stacked                                                                    (aml.decode)
Items    refs or sentences of a split over decoded blocks, gathered by index                      (Batch)

B samples, H W network image, L tokens
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, fields

import numpy as np
import torch

from aml.data import augment as augment_module
from aml.data.decode import placement
from aml.data.refer_counts import generalised, targets_of
from aml.data.window import Window
from aml.draws import uniform
from aml.errors import UserError


@dataclass
class Batch:
    """One step's samples on one rank. The image is raw; normalisation is the model's."""

    image: torch.Tensor
    """(B, 3, H, W) uint8"""
    tokens: torch.Tensor
    """(B, L) int64"""
    token_mask: torch.Tensor
    """(B, L) bool"""
    mask: torch.Tensor
    """(B, H, W) bool: the referent"""
    real: torch.Tensor
    """(B, 4) int64: top, left, bottom, right of the picture inside its letterbox"""
    size: torch.Tensor
    """(B, 2) int64: original height, width"""
    valid: torch.Tensor
    """(B,) bool: False for padding"""
    no_target: torch.Tensor
    """(B,) bool: the expression names nothing in the picture"""
    item: torch.Tensor
    """(B,) int64: hash of (dataset, split_by, ref_id, sent_id), the key of every draw"""
    image_id: torch.Tensor
    ref_id: torch.Tensor
    sent_id: torch.Tensor
    dataset: torch.Tensor
    """(B,) int64: place in Items.datasets"""
    index: torch.Tensor
    """(B,) int64: place in Items"""
    total: int
    """Valid samples of this step on all ranks: what the loss is divided by."""
    generalised: bool = False
    """Expressions without a target are among the split's."""

    def to(self, device) -> "Batch":
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return Batch(
            **{
                k: v.to(device, non_blocking=True) if isinstance(v, torch.Tensor) else v
                for k, v in moved.items()
            }
        )

    def part(self, rows: slice) -> "Batch":
        """Some of the rows, for micro-steps; `total` stays that of the whole step."""
        cut = {f.name: getattr(self, f.name) for f in fields(self)}
        return Batch(**{k: v[rows] if isinstance(v, torch.Tensor) else v for k, v in cut.items()})


def item_key(dataset: str, split_by: str, ref_id: int, sent_id: int) -> int:
    """A stable signed 64-bit hash of an item's identity."""
    digest = hashlib.blake2b(
        f"{dataset}/{split_by}/{ref_id}/{sent_id}".encode(), digest_size=8
    ).digest()
    return int.from_bytes(digest, "little", signed=True)


@dataclass(frozen=True, slots=True)
class Item:
    """One ref with one of its sentences."""

    block: int
    row: int
    ref: int
    """Place of the ref, and of its mask, in the row."""
    sentence: dict
    key: int


class Items:
    """The items of a split over decoded blocks, gathered by index into batches.

    unit `ref`: one item a ref, its sentence drawn anew each epoch by u(seed, epoch, ref). unit `sentence`: one item a sentence.
    augment: names out of aml.augment.AUGMENTATIONS that `batch` applies. meta: the rows of the blocks, where the items of another split
    have parsed them. UserError where the split holds nothing.
    """

    def __init__(
        self,
        blocks: list[dict] | Window,
        split: str,
        *,
        size: int,
        fit="square",
        unit="ref",
        limit: int | None = None,
        augment=(),
        meta=None,
    ):
        self.blocks, self.split, self.size, self.fit, self.unit, self.augment = (
            blocks,
            split,
            size,
            fit,
            unit,
            tuple(augment),
        )
        self.meta: list[list[dict]] = meta or [
            [json.loads(text) for text in block["meta"]] for block in blocks
        ]
        self.refs = [
            (b, r, k)
            for b, rows in enumerate(self.meta)
            for r, row in enumerate(rows)
            for k, ref in enumerate(row["refs"])
            if ref["split"] == split
        ]
        self.refs.sort(
            key=self._identity
        )  # the plan must not depend on how rows were spread over blocks
        if not self.refs:
            have = sorted(
                {ref["split"] for rows in self.meta for row in rows for ref in row["refs"]}
            )
            raise UserError(
                f"split {split!r} is empty; the data hold {', '.join(have) or 'no refs at all'}"
            )
        self.datasets = sorted({row["dataset"] for rows in self.meta for row in rows})
        self.generalised = generalised(self._ref(place) for place in self.refs)
        self.choices = [
            [self._item(*place, s) for s in self._ref(place)["sentences"]] for place in self.refs
        ]
        if unit == "sentence":
            self.choices = [[item] for items in self.choices for item in items]
        self.choices = self.choices[:limit]
        self._ref_keys = torch.tensor([items[0].key for items in self.choices])
        self._tokens: tuple[object, torch.Tensor, torch.Tensor, dict[str, int]] | None = None

    def __len__(self) -> int:
        return len(self.choices)

    def pick(self, index: int, seed: int, epoch: int) -> Item:
        """The item at this index in this epoch."""
        return self.picks(np.array([index]), seed, epoch)[0]

    def picks(self, indices: np.ndarray, seed: int, epoch: int) -> list[Item]:
        u = uniform(seed, epoch, self._ref_keys[torch.as_tensor(indices)], "sentence")[
            :, 0
        ].tolist()
        return [
            self.choices[i][int(x * len(self.choices[i]))]
            for i, x in zip(indices.tolist(), u, strict=True)
        ]

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """A permutation of all items for an epoch; where pictures are read through a window, one that keeps a window's items together."""
        rng = np.random.default_rng([seed, epoch])
        if not isinstance(self.blocks, Window):
            return rng.permutation(len(self))
        return self.blocks.order(np.array([choice[0].block for choice in self.choices]), rng)

    def ahead(self, batches: list[np.ndarray]) -> Iterator[np.ndarray]:
        """The same batches of indices. Pictures that are not in memory are at hand when theirs is yielded, and got ready for the next ones."""
        if not isinstance(self.blocks, Window):
            yield from batches
            return
        places = [
            [(self.choices[i][0].block, self.choices[i][0].row) for i in batch] for batch in batches
        ]
        with closing(self.blocks.ahead(places)) as ready:
            yield from (batch for batch, _ in zip(batches, ready, strict=True))

    def image(self, item: Item) -> np.ndarray:
        """(H, W, 3) uint8 at network size."""
        return self.blocks[item.block]["image"][item.row]

    def mask(self, item: Item) -> np.ndarray:
        """(H, W) bool at network size."""
        packed = np.frombuffer(self.blocks[item.block]["masks"][item.row], np.uint8)
        step = -(-self.size * self.size // 8)
        bits = np.unpackbits(
            packed[item.ref * step : (item.ref + 1) * step], count=self.size * self.size
        )
        return bits.reshape(self.size, self.size).astype(bool)

    def row(self, item: Item) -> dict:
        return self.meta[item.block][item.row]

    def ref(self, item: Item) -> dict:
        return self.row(item)["refs"][item.ref]

    def batch(
        self,
        indices: np.ndarray,
        model,
        *,
        seed: int = 0,
        epoch: int = 0,
        total: int | None = None,
        pad_to: int | None = None,
    ) -> Batch:
        """Items by index, padded with repeats marked invalid up to pad_to. The model only tokenises."""
        items = self.picks(indices, seed, epoch)
        n = len(items)
        if pad_to is not None:
            items = items + items[:1] * (pad_to - n)
        rows = [self.row(item) for item in items]
        seen = self._seen(items, seed, epoch)
        tokens, token_mask = self._tokenise(model, [view.sentence for view in seen])

        def column(values):
            return torch.tensor(values, dtype=torch.int64)

        return Batch(
            image=torch.from_numpy(np.stack([view.image for view in seen])).permute(0, 3, 1, 2),
            tokens=tokens,
            token_mask=token_mask,
            mask=torch.from_numpy(np.stack([view.mask for view in seen])),
            real=column([view.real for view in seen]),
            size=column([(r["height"], r["width"]) for r in rows]),
            valid=torch.arange(len(items)) < n,
            no_target=torch.tensor([not targets_of(self.ref(i)) for i in items]),
            item=column([i.key for i in items]),
            image_id=column([r["image_id"] for r in rows]),
            ref_id=column([self.ref(i)["ref_id"] for i in items]),
            sent_id=column([i.sentence["sent_id"] for i in items]),
            dataset=column([self.datasets.index(r["dataset"]) for r in rows]),
            index=column([*indices.tolist(), *[-1] * (len(items) - n)]),
            total=n if total is None else total,
            generalised=self.generalised,
        )

    def _identity(self, place_: tuple[int, int, int]) -> tuple[str, str, int, int]:
        row = self.meta[place_[0]][place_[1]]
        return row["dataset"], row["split_by"], row["image_id"], self._ref(place_)["ref_id"]

    def _ref(self, place_: tuple[int, int, int]) -> dict:
        block, row, ref = place_
        return self.meta[block][row]["refs"][ref]

    def _item(self, block: int, row: int, ref: int, sentence: dict) -> Item:
        meta = self.meta[block][row]
        key = item_key(
            meta["dataset"], meta["split_by"], meta["refs"][ref]["ref_id"], sentence["sent_id"]
        )
        return Item(block, row, ref, sentence, key)

    def _seen(self, items: list[Item], seed: int, epoch: int) -> list["_View"]:
        """Each item as the model is to see it in this epoch."""
        views = [self._view(item) for item in items]
        keys = torch.tensor([item.key for item in items])
        if "crop" in self.augment:
            draws = uniform(seed, epoch, keys, "crop", 3).tolist()
            for view, three in zip(views, draws, strict=True):
                view.image, view.mask = augment_module.crop(view.image, view.mask, view.real, three)
        if "flip" in self.augment:
            for view, drawn in zip(views, augment_module.flips(keys, seed, epoch), strict=True):
                if drawn and (swapped := augment_module.mirrored(view.sentence)) is not None:
                    view.sentence = swapped
                    view.image, view.mask, view.real = augment_module.flip(
                        view.image, view.mask, view.real
                    )
        return views

    def _view(self, item: Item) -> "_View":
        row = self.row(item)
        return _View(
            self.image(item),
            self.mask(item),
            placement(row["height"], row["width"], self.size, self.fit),
            item.sentence["sent"],
        )

    def _tokenise(self, model, sentences: list[str]):
        """All sentences of the split, and what a flip makes of them, are tokenised once for a model, then looked up."""
        if self._tokens is None or self._tokens[0] is not model:
            every = dict.fromkeys(item.sentence["sent"] for items in self.choices for item in items)
            if "flip" in self.augment:
                every |= dict.fromkeys(
                    swapped
                    for sentence in every
                    if (swapped := augment_module.mirrored(sentence)) is not None
                )
            tokens, token_mask = model.tokenise(list(every))
            self._tokens = (
                model,
                tokens,
                token_mask,
                {sentence: i for i, sentence in enumerate(every)},
            )
        _, tokens, token_mask, where = self._tokens
        rows = torch.tensor([where[sentence] for sentence in sentences])
        return tokens[rows], token_mask[rows]


@dataclass
class _View:
    """An item at network size: picture, referent, where the picture lies inside its letterbox, sentence."""

    image: np.ndarray
    mask: np.ndarray
    real: tuple[int, int, int, int]
    sentence: str


def steps_per_epoch(n: int, batch: int) -> int:
    """Whole global batches in n items; at least one. The rest of an epoch's permutation waits for another epoch."""
    return max(1, n // batch)


def rank_part(batch: int, rank: int, world: int) -> slice:
    """A rank's places in a global batch: contiguous, and no rank has more than one more than another."""
    return slice(rank * batch // world, (rank + 1) * batch // world)


def rank_rows(batch: int, world: int, accumulate: int = 1) -> int:
    """Rows of every rank's tensors: the largest part, padded to whole micro-steps, so that all ranks do the same work."""
    return -(-batch // (world * accumulate)) * accumulate


def train_batches(
    items: Items,
    model,
    *,
    batch: int,
    seed: int,
    epoch: int,
    rank: int = 0,
    world: int = 1,
    accumulate: int = 1,
    start: int = 0,
) -> Iterator[Batch]:
    """One rank's batches of an epoch, from step `start` on: step k takes order[kB:(k+1)B] of Items.order(seed, epoch), rank r its r-th contiguous part.

    So a global step holds the same items on any number of ranks; where they do not divide, the shorter parts are padded with invalid rows.
    """
    order, rows = items.order(seed, epoch), rank_rows(batch, world, accumulate)
    steps = [
        order[k * batch : (k + 1) * batch] for k in range(start, steps_per_epoch(len(items), batch))
    ]
    mine = [whole[rank_part(batch, rank, world)] for whole in steps]
    # a rank without items of its own, where there are fewer than ranks, steps along with another's
    shown = [own if len(own) else whole[:1] for own, whole in zip(mine, steps, strict=True)]
    for own, whole, indices in zip(mine, steps, items.ahead(shown), strict=True):
        made = items.batch(indices, model, seed=seed, epoch=epoch, total=len(whole), pad_to=rows)
        if not len(own):
            made.valid[:] = False
        yield made


def eval_batches(
    items: Items, model, *, batch: int, rank: int = 0, world: int = 1
) -> Iterator[Batch]:
    """Every item exactly once over all ranks, in order; the last batch of a rank is shorter."""
    low, high = rank * len(items) // world, (rank + 1) * len(items) // world
    yield from some_batches(items, model, np.arange(low, high), batch)


def some_batches(items: Items, model, indices: np.ndarray, batch: int) -> Iterator[Batch]:
    """These items in this order."""
    for some in items.ahead(
        [indices[start : start + batch] for start in range(0, len(indices), batch)]
    ):
        yield items.batch(some, model)
