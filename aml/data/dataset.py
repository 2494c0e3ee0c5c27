"""Gather the items of a split by index into batches of tensors.

`Items` holds the refs or sentences of a split over decoded blocks (see `decode`); `Items.batch`
makes a `Batch`. Shapes: B samples, H and W of the network image, L tokens.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch

from aml.data import augment as augment_module
from aml.data.annotations import Annotations
from aml.data.decode import placement
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


@dataclass(frozen=True, slots=True)
class Item:
    """One ref with one of its sentences."""

    block: int
    row: int
    ref: int
    """Index of the ref, and of its mask, in the row."""
    sentence: dict
    """Its `sent_id` and its text `sent`."""
    key: int
    """See `annotations.item_key`."""
    height: int
    """Of the original picture, as `width`."""
    width: int


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
        annotations: `annotations` of the items of another split of the same blocks.

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
        annotations: Annotations | None = None,
    ) -> None:
        self.blocks = blocks
        self.split = split
        self.size = size
        self.fit = fit
        self.unit = unit
        self.augment = tuple(augment)
        self.annotations = annotations or Annotations(blocks)
        self.datasets = self.annotations.names["dataset"]
        self.sentences = self.annotations.split(split)
        """(m,) annotations.SENTENCE."""
        if not len(self.sentences):
            have = ", ".join(self.annotations.names["split"])
            raise UserError(f"split {split!r} is empty; the data hold {have or 'no refs at all'}")
        self.generalised = bool(self.sentences["no_target"].any())
        starts = np.arange(len(self.sentences))
        if unit == "ref":
            place = self.sentences[["block", "row", "ref"]]
            starts = np.flatnonzero(np.append(True, place[1:] != place[:-1]))
        self.choices = np.stack([starts, np.append(starts[1:], len(self.sentences))], 1)[:limit]
        """(n, 2) int64: first of the item's sentences among `sentences`, and the one after them."""
        self.sentences = self.sentences[: self.choices[-1, 1]]
        self._token_table: _TokenTable | None = None

    def __len__(self) -> int:
        return len(self.choices)

    def pick(self, index: int, seed: int, epoch: int) -> Item:
        """Return the item at an index in an epoch."""
        return self.picks(np.array([index]), seed, epoch)[0]

    def picks(self, indices: np.ndarray, seed: int, epoch: int) -> list[Item]:
        """Return the items at indices (n,) in an epoch."""
        return self._items(self.sentences[self._draw(indices, seed, epoch)])

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """Return a permutation of all items for an epoch.

        Where pictures are read through a window, it keeps the items of a window together.
        """
        rng = np.random.default_rng([seed, epoch])
        if not isinstance(self.blocks, Window):
            return rng.permutation(len(self))
        return self.blocks.order(self.places()[:, 0], rng)

    def places(self, indices: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Return block and row of the items at indices (n,), or of all: (n, 2) int32."""
        taken = self.sentences[self.choices[indices, 0]]
        return np.stack([taken["block"], taken["row"]], 1)

    def ahead(self, batches: list[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the same batches of indices.

        Pictures that are not in memory are decoded when their batch is yielded, and meanwhile
        those of the next batches are prepared.
        """
        if not isinstance(self.blocks, Window):
            yield from batches
            return
        places = [self.places(batch) for batch in batches]
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
        """Return the row of an item without picture and masks, parsed anew."""
        return self.annotations.row(item.block, item.row)

    def ref(self, item: Item) -> dict:
        """Return the ref of an item, parsed anew."""
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
        n = len(indices)
        drawn = self._draw(indices, seed, epoch)
        if pad_to is not None:
            drawn = np.append(drawn, np.repeat(drawn[:1], pad_to - n))
        taken = self.sentences[drawn]
        items = self._items(taken)
        views = self._views(items, seed, epoch)
        places = [augment_module.place(v.real, v.window, v.mirrored, self.size) for v in views]
        mirrored = np.array([view.mirrored for view in views])
        tokens, token_mask = self._tokens_of(model).look_up(drawn, mirrored)

        def column(name: str) -> torch.Tensor:
            return torch.from_numpy(taken[name].astype(np.int64))

        return Batch(
            image=torch.from_numpy(np.stack([view.image for view in views])).permute(0, 3, 1, 2),
            tokens=tokens,
            token_mask=token_mask,
            mask=torch.from_numpy(np.stack([view.mask for view in views])),
            real=torch.tensor([view.real for view in views], dtype=torch.int64),
            size=torch.stack([column("height"), column("width")], 1),
            valid=torch.arange(len(items)) < n,
            no_target=torch.from_numpy(taken["no_target"].copy()),
            item=column("key"),
            image_id=column("image_id"),
            ref_id=column("ref_id"),
            sent_id=column("sent_id"),
            dataset=column("dataset"),
            index=torch.tensor([*indices.tolist(), *[-1] * (len(items) - n)], dtype=torch.int64),
            total=n if total is None else total,
            generalised=self.generalised,
            view=torch.tensor(places) if {"crop", "flip"} & {*self.augment} else None,
        )

    def _draw(self, indices: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        """Return the numbers of the sentences that items show in an epoch, (n,) int64."""
        first, end = self.choices[indices].T
        keys = torch.from_numpy(self.sentences["key"][first])
        draws = uniform(seed, epoch, keys, "sentence")[:, 0].double().numpy()
        return first + (draws * (end - first)).astype(np.int64)

    def _items(self, taken: np.ndarray) -> list[Item]:
        """Return the items of some sentences, (n,) annotations.SENTENCE."""
        names = ("block", "row", "ref", "key", "height", "width", "sent_id")
        columns = [taken[name].tolist() for name in names]
        return [
            Item(block, row, ref, {"sent_id": sent_id, "sent": sent}, key, height, width)
            for block, row, ref, key, height, width, sent_id, sent in zip(
                *columns, self.annotations.texts(taken), strict=True
            )
        ]

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
            sentences = self.annotations.texts(self.sentences)
            self._token_table = _TokenTable(model, sentences, mirrored="flip" in self.augment)
        return self._token_table

    def _view(self, item: Item) -> "_View":
        """Return an item without augmentation."""
        return _View(
            self.image(item),
            self.mask(item),
            placement(item.height, item.width, self.size, self.fit),
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
        sentences: the sentences.
        mirrored: also hold the mirrored form of each sentence that has one.
    """

    def __init__(self, model: Tokeniser, sentences: Iterable[str], mirrored: bool) -> None:
        rows: dict[str, int] = {}
        own = (rows.setdefault(sentence, len(rows)) for sentence in sentences)
        self.own = np.fromiter(own, np.int32)
        """(n,) row of each sentence in the tables of tokens; equal ones share a row."""
        self.mirrored: np.ndarray | None = None
        """By row of a sentence, that of its mirrored form; its own where it has none."""
        if mirrored:
            forms = [augment_module.mirrored(sentence) or sentence for sentence in rows]
            self.mirrored = np.array([rows.setdefault(form, len(rows)) for form in forms])
        self.model = model
        tokens, self.valid = model.tokenise(list(rows))
        self.tokens = tokens.int()  # half of the memory

    def look_up(
        self, numbers: np.ndarray, mirrored: np.ndarray
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the tokens of sentences, (n, L) int64, and which are valid, (n, L) bool.

        Args:
            numbers: (n,) number of each sentence among all.
            mirrored: (n,) bool, which of them are mirrored.
        """
        rows = self.own[numbers]
        if self.mirrored is not None:
            rows = np.where(mirrored, self.mirrored[rows], rows)
        return self.tokens[rows].long(), self.valid[rows]
