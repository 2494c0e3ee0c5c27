"""Gather the items of a split by index into batches of tensors.

`Items` holds the refs or sentences of a split over decoded blocks (see `decode`); `Items.batch`
makes a `Batch`. Shapes: B samples, H and W of the network image, L tokens.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch

from aml.data import augment as augment_module
from aml.data.decode import parse_rows, placement
from aml.data.refer_counts import generalised, targets_of
from aml.data.window import Window
from aml.draws import uniform
from aml.errors import UserError


class Tokeniser(Protocol):
    """The part of a model that `Items` uses."""

    def tokenise(self, sentences: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return token ids (n, L) int64 and which of them are valid (n, L) bool."""


@dataclass
class Batch:
    """Samples of one step on one rank.

    The image is raw, since each model normalises in its own way. There are more than ten fields,
    since the loop, the losses and the masking read different ones of the same samples.
    """

    image: torch.Tensor
    """(B, 3, H, W) uint8"""
    tokens: torch.Tensor
    """(B, L) int64"""
    token_mask: torch.Tensor
    """(B, L) bool"""
    mask: torch.Tensor
    """(B, H, W) bool: the referent."""
    real: torch.Tensor
    """(B, 4) int64: top, left, bottom and right of the picture inside its letterbox."""
    size: torch.Tensor
    """(B, 2) int64: original height and width."""
    valid: torch.Tensor
    """(B,) bool: False for padding."""
    no_target: torch.Tensor
    """(B,) bool: the expression names nothing in the picture."""
    item: torch.Tensor
    """(B,) int64: hash of (dataset, split_by, ref_id, sent_id), the key of every draw."""
    image_id: torch.Tensor
    """(B,) int64, as the two following ids."""
    ref_id: torch.Tensor
    sent_id: torch.Tensor
    dataset: torch.Tensor
    """(B,) int64: index in Items.datasets."""
    index: torch.Tensor
    """(B,) int64: index in Items, -1 for padding."""
    total: int
    """Valid samples of this step on all ranks, by which the loss is divided."""
    generalised: bool = False
    """True where the split has expressions without a target."""
    view: torch.Tensor | None = None
    """(B, 4) float: where the image was taken from by flip and crop, as scale of y, scale of x,
    shift of y, shift of x: a place p of the image shows the place scale * p + shift of the picture
    as it is without them, both from -1 to 1 along each side. None: without either."""

    @property
    def ids(self) -> torch.Tensor:
        """(B, 3) int64, from 0: index in Items, number of the picture, ref_id."""
        picture = (self.image_id * 64 + self.dataset) & (2**63 - 1)
        return torch.stack([self.index, picture, self.ref_id], 1)

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch on a device."""
        tensors = self._tensors()
        return replace(self, **{k: v.to(device, non_blocking=True) for k, v in tensors.items()})

    def part(self, rows: slice) -> "Batch":
        """Return some of the rows, for a micro-step; `total` stays that of the whole step."""
        return replace(self, **{k: v[rows] for k, v in self._tensors().items()})

    def _tensors(self) -> dict[str, Any]:
        """Return the fields that are tensors."""
        return {k: v for k, v in vars(self).items() if isinstance(v, torch.Tensor)}


def item_key(dataset: str, split_by: str, ref_id: int, sent_id: int) -> int:
    """Return a stable signed 64-bit hash of an item's identity."""
    identity = f"{dataset}/{split_by}/{ref_id}/{sent_id}".encode()
    digest = hashlib.blake2b(identity, digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


@dataclass(frozen=True, slots=True)
class Item:
    """One ref with one of its sentences."""

    block: int
    row: int
    ref: int
    """Index of the ref, and of its mask, in the row."""
    sentence: dict
    key: int
    """See `item_key`."""


class Items:
    """Items of a split over decoded blocks, gathered by index into batches.

    The class is long, and has more than ten attributes, since the loop and the evaluation read the
    arguments back and look up every part of an item here.

    Args:
        blocks: decoded blocks (see `decode.rows_of_block`).
        split: name of the split.
        size: side of the network image.
        fit: see `decode.placement`.
        unit: "ref" makes one item a ref, whose sentence is drawn anew each epoch by
            u(seed, epoch, ref); "sentence" makes one item a sentence.
        limit: keep the first items only.
        augment: augmentations that `batch` applies, of "flip", "crop" and "colour".
        meta: `meta` of the items of another split of the same blocks.

    Raises:
        UserError: the split holds nothing.
    """

    def __init__(
        self,
        blocks: list[dict] | Window,
        split: str,
        *,
        size: int,
        fit: str = "square",
        unit: str = "ref",
        limit: int | None = None,
        augment: Sequence[str] = (),
        meta: list[list[dict]] | None = None,
    ) -> None:
        self.blocks = blocks
        self.split = split
        self.size = size
        self.fit = fit
        self.unit = unit
        self.augment = tuple(augment)
        self.meta: list[list[dict]] = meta or [parse_rows(block["meta"]) for block in blocks]
        self.refs = [
            (b, r, k)
            for b, rows in enumerate(self.meta)
            for r, row in enumerate(rows)
            for k, ref in enumerate(row["refs"])
            if ref["split"] == split
        ]
        # sorted, since the plan must not depend on how rows were spread over blocks
        self.refs.sort(key=self._identity)
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
        self._token_table: _TokenTable | None = None

    def __len__(self) -> int:
        return len(self.choices)

    def pick(self, index: int, seed: int, epoch: int) -> Item:
        """Return the item at an index in an epoch."""
        return self.picks(np.array([index]), seed, epoch)[0]

    def picks(self, indices: np.ndarray, seed: int, epoch: int) -> list[Item]:
        """Return the items at indices (n,) in an epoch."""
        keys = self._ref_keys[torch.as_tensor(indices)]
        draws = uniform(seed, epoch, keys, "sentence")[:, 0].tolist()
        return [
            self.choices[i][int(draw * len(self.choices[i]))]
            for i, draw in zip(indices.tolist(), draws, strict=True)
        ]

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """Return a permutation of all items for an epoch.

        Where pictures are read through a window, it keeps the items of a window together.
        """
        rng = np.random.default_rng([seed, epoch])
        if not isinstance(self.blocks, Window):
            return rng.permutation(len(self))
        return self.blocks.order(np.array([choice[0].block for choice in self.choices]), rng)

    def ahead(self, batches: list[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the same batches of indices.

        Pictures that are not in memory are decoded when their batch is yielded, and meanwhile
        those of the next batches are prepared.
        """
        if not isinstance(self.blocks, Window):
            yield from batches
            return
        places = [
            [(self.choices[i][0].block, self.choices[i][0].row) for i in batch] for batch in batches
        ]
        with closing(self.blocks.ahead(places)) as ready:
            yield from (batch for batch, _ in zip(batches, ready, strict=True))

    def image(self, item: Item) -> np.ndarray:
        """Return the picture at network size, (H, W, 3) uint8."""
        return self.blocks[item.block]["image"][item.row]

    def mask(self, item: Item) -> np.ndarray:
        """Return the referent's mask at network size, (H, W) bool."""
        packed = np.frombuffer(self.blocks[item.block]["masks"][item.row], np.uint8)
        step = -(-self.size * self.size // 8)
        bits = np.unpackbits(
            packed[item.ref * step : (item.ref + 1) * step], count=self.size * self.size
        )
        return bits.reshape(self.size, self.size).astype(bool)

    def row(self, item: Item) -> dict:
        """Return the row of an item without picture, masks, objects and raw sentences."""
        return self.meta[item.block][item.row]

    def objects(self, block: int, row: int) -> list[dict]:
        """Return the objects of a picture, which are parsed anew: they are half of all memory."""
        return json.loads(self.blocks[block]["meta"][row])["objects"]

    def ref(self, item: Item) -> dict:
        """Return the ref of an item."""
        return self.row(item)["refs"][item.ref]

    def batch(
        self,
        indices: np.ndarray,
        model: Tokeniser,
        *,
        seed: int = 0,
        epoch: int = 0,
        total: int | None = None,
        pad_to: int | None = None,
    ) -> Batch:
        """Return a batch of items.

        Args:
            indices: (n,) indices of the items.
            model: tokenises the sentences.
            seed: seed of the run.
            epoch: number of the epoch.
            total: valid samples of the step on all ranks; by default n.
            pad_to: rows of the batch; repeats of the first item, marked invalid, fill them up.
        """
        items = self.picks(indices, seed, epoch)
        n = len(items)
        if pad_to is not None:
            items = items + items[:1] * (pad_to - n)
        rows = [self.row(item) for item in items]
        views = self._views(items, seed, epoch)
        places = [augment_module.place(v.real, v.window, v.mirrored, self.size) for v in views]
        tokens, token_mask = self._tokens_of(model).look_up([view.sentence for view in views])

        def column(values: list) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.int64)

        return Batch(
            image=torch.from_numpy(np.stack([view.image for view in views])).permute(0, 3, 1, 2),
            tokens=tokens,
            token_mask=token_mask,
            mask=torch.from_numpy(np.stack([view.mask for view in views])),
            real=column([view.real for view in views]),
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
            view=torch.tensor(places) if {"crop", "flip"} & {*self.augment} else None,
        )

    def _identity(self, place: tuple[int, int, int]) -> tuple[str, str, int, int]:
        """Return the sort key of a ref, given as (block, row, index in the row)."""
        row = self.meta[place[0]][place[1]]
        return row["dataset"], row["split_by"], row["image_id"], self._ref(place)["ref_id"]

    def _ref(self, place: tuple[int, int, int]) -> dict:
        """Return a ref, given as (block, row, index in the row)."""
        block, row, ref = place
        return self.meta[block][row]["refs"][ref]

    def _item(self, block: int, row: int, ref: int, sentence: dict) -> Item:
        """Return the item of a ref and one of its sentences."""
        meta = self.meta[block][row]
        key = item_key(
            meta["dataset"], meta["split_by"], meta["refs"][ref]["ref_id"], sentence["sent_id"]
        )
        return Item(block, row, ref, sentence, key)

    def _views(self, items: list[Item], seed: int, epoch: int) -> list["_View"]:
        """Return each item as the model sees it in an epoch, augmented."""
        views = [self._view(item) for item in items]
        keys = torch.tensor([item.key for item in items])
        if "crop" in self.augment:
            draws = uniform(seed, epoch, keys, "crop", 3).tolist()
            for view, three in zip(views, draws, strict=True):
                view.window = augment_module.window(view.mask, view.real, three)
                view.image, view.mask = augment_module.crop(view.image, view.mask, view.real, three)
        if "colour" in self.augment:
            draws = uniform(seed, epoch, keys, "colour", 4).tolist()
            for view, four in zip(views, draws, strict=True):
                if not augment_module.names_colour(view.sentence):
                    view.image = augment_module.jitter(view.image, view.real, four)
        if "flip" in self.augment:
            for view, drawn in zip(views, augment_module.flips(keys, seed, epoch), strict=True):
                if drawn and (swapped := augment_module.mirrored(view.sentence)) is not None:
                    view.sentence = swapped
                    view.mirrored = True
                    view.image, view.mask, view.real = augment_module.flip(
                        view.image, view.mask, view.real
                    )
        return views

    def _tokens_of(self, model: Tokeniser) -> "_TokenTable":
        """Return the tokens of all sentences of the split, made anew for another model."""
        if self._token_table is None or self._token_table.model is not model:
            sentences = (item.sentence["sent"] for items in self.choices for item in items)
            self._token_table = _TokenTable(model, sentences, mirrored="flip" in self.augment)
        return self._token_table

    def _view(self, item: Item) -> "_View":
        """Return an item without augmentation."""
        row = self.row(item)
        return _View(
            self.image(item),
            self.mask(item),
            placement(row["height"], row["width"], self.size, self.fit),
            item.sentence["sent"],
        )


@dataclass
class _View:
    """An item at network size S."""

    image: np.ndarray
    """(S, S, 3) uint8."""
    mask: np.ndarray
    """(S, S) bool, the referent."""
    real: augment_module.Box
    """The picture inside its letterbox."""
    sentence: str
    window: augment_module.Box | None = None
    """The part of the picture that a crop shows."""
    mirrored: bool = False


class _TokenTable:
    """Tokens of all sentences of a split, made once for a model.

    Args:
        model: tokenises the sentences.
        sentences: the different sentences.
        mirrored: also hold the mirrored form of each sentence that has one.
    """

    def __init__(self, model: Tokeniser, sentences: Iterable[str], mirrored: bool) -> None:
        every = dict.fromkeys(sentences)
        if mirrored:
            forms = [augment_module.mirrored(sentence) for sentence in every]
            every |= dict.fromkeys(form for form in forms if form is not None)
        self.model = model
        self.tokens, self.valid = model.tokenise(list(every))
        self.row_of = {sentence: i for i, sentence in enumerate(every)}

    def look_up(self, sentences: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the tokens of sentences, (n, L) int64, and which are valid, (n, L) bool."""
        rows = torch.tensor([self.row_of[sentence] for sentence in sentences])
        return self.tokens[rows], self.valid[rows]
