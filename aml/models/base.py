"""The interface by which training loop and masking know a model; see `Model`."""

from collections.abc import Callable
from importlib import import_module
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from aml.errors import UserError
from aml.models.options import options_class
from aml.own_classes import load_class, names_own_class

Tokens = tuple[torch.Tensor, torch.Tensor]
"""Tokens (B, L) int64 and which of them are not padding, (B, L) bool."""


class Features(NamedTuple):
    """Visual and text features that alignment is computed from."""

    visual: torch.Tensor
    """(B, D_v, h, w)"""
    text: torch.Tensor
    """(B, L, D_t)"""
    words: torch.Tensor
    """(B, L) bool: tokens that are words of the sentence."""
    pooled: torch.Tensor
    """(B, L) bool: the one token the model pools the sentence into."""


class Model(nn.Module):
    """Base class of all models, with the defaults of the interface.

    A model is a class derived from this one: here a file of its own and a class of options named in
    aml.models.options.MODELS, elsewhere any class named as `model.name: package.module:MyModel` or
    `model.name: path/file.py:MyModel`. `aml.models.check(MyModel)` says what such a class lacks.

    It is made as `MyModel(options, vocabulary, assets)` and calls `super().__init__` with the same
    arguments. It has:

    - `Options`, a dataclass or pydantic class whose fields are the settings `model.*`;
    - `normalise(image)`: uint8 (B, 3, H, W) to float, with the mean of the data at 0;
    - `tokenise(sentences)`: a list of B sentences to tokens (B, L) int64 and token_mask (B, L)
      bool; L is fixed, padding comes last, and a sentence gets the same tokens in every batch;
    - `encode(x)`: normalised images to visual maps [(B, C, h, w), ...]; no word is read yet;
    - `decode(maps, tokens, token_mask)`: those maps to foreground logits (B, h, w), where h and w
      are any fixed share of H and W;
    - `features(x, tokens, token_mask, upto, maps=None)`: the `Features` at the source `encoder` or
      `joint`, no deeper than that needs; `maps` is encode(x), if at hand.

    A model whose encoder can leave patches out sets `drops = True` and has `encode_visible(x,
    visible)`. A model that reads words inside its visual encoder sets `fuses = True`, has its own
    `forward(x, tokens, token_mask)`, and no `encode`, no `decode` and no `maps` in `features`.
    """

    Options: ClassVar[type | None] = None
    """Class of the options of a model outside this project; built-in ones are in MODELS."""
    name: ClassVar[str] = ""
    """Name in messages; of a class without one the class's own name."""
    sources: ClassVar[tuple[str, ...]] = ("prediction",)
    """Where alignment can be read: prediction, and of encoder and joint those `features` gives."""
    image_multiple: int = 1
    """The sides of an image must be multiples of it."""
    fuses: ClassVar[bool] = False
    """Whether words are read inside the visual encoder."""
    drops: bool = False
    """Whether `encode_visible` reads some patches alone, each `image_multiple` pixels wide."""
    encoders: tuple[str, ...] = ()
    """Prefixes of the parameters trained at optim.encoder_lr times the rate."""
    no_decay: tuple[str, ...] = ()
    """Prefixes of parameters that are never decayed, as 0-d and 1-d ones are not either."""
    mask_token: int | None = None
    """Token that a masked word becomes; None: a random word stands in."""
    special_tokens: tuple[int, ...] = ()
    """Tokens that are no words."""
    word_ids: tuple[int, int]
    """First and end of the range of tokens that are words."""
    tokenise: Callable[[list[str]], Tokens]
    normalise: Callable[[torch.Tensor], torch.Tensor]

    spec: dict[str, Any]
    """Name and all options, from which `build_model` makes the model anew."""

    def __init_subclass__(cls, **arguments: Any) -> None:
        """Name a class that gives itself no name."""
        super().__init_subclass__(**arguments)
        if not cls.name:
            cls.name = cls.__name__

    def __init__(
        self, options: Any, vocabulary: list[str], assets: dict[str, Any] | None = None
    ) -> None:
        """Keep what a rebuild needs.

        Args:
            options: The options, an instance of the model's class of options.
            vocabulary: Words of the data set.
            assets: JSON that a rebuild without network needs besides (configurations, a
                tokenizer's vocabulary), as a model built before has it; then nothing is fetched.
        """
        super().__init__()
        self.options = options
        self.vocabulary = list(vocabulary)
        self.assets = dict(assets or {})

    def take_tokens(self, tokens: Any) -> None:
        """Take over which tokens are words and which are special.

        Args:
            tokens: Turns sentences into tokens; has mask_token, special_tokens and word_ids.
        """
        self.mask_token = tokens.mask_token
        self.special_tokens = tokens.special_tokens
        self.word_ids = tokens.word_ids

    def patch_grid(self, x: torch.Tensor) -> tuple[int, int]:
        """Return how many patches of `image_multiple` pixels an image has, down and across.

        Raises:
            UserError: The sides of x (B, 3, H, W) are no multiples of a patch.
        """
        height, width = x.shape[2:]
        # torch.compile knows no divmod of sizes that vary
        if height % self.image_multiple or width % self.image_multiple:
            raise UserError(
                f"an image of {height} x {width}: model {self.name} takes multiples of "
                f"{self.image_multiple}; resize it"
            )
        return height // self.image_multiple, width // self.image_multiple

    def forward(
        self,
        x: torch.Tensor,
        tokens: torch.Tensor,
        token_mask: torch.Tensor,
        visible: torch.Tensor | None = None,
        upto: str | None = None,
        drop: bool = False,
    ) -> Any:
        """Return foreground logits.

        Args:
            x: (B, 3, H, W) normalised images.
            tokens: (B, L) int64.
            token_mask: (B, L) bool.
            visible: (B, H, W) bool; hides places of the encoder's maps instead of the image.
            upto: Source of which features are wanted, too.
            drop: Whether the encoder reads the visible patches alone.

        Returns:
            Logits (B, h, w); with `upto` a pair of logits and the `Features` of the same run of
            the encoder.
        """
        if visible is None:
            seen = maps = self.encode(x)
        elif drop:
            seen = maps = self.encode_visible(x, visible)
        else:
            maps = self.encode(x)
            seen = self.see(maps, visible)
        logits = self.decode(seen, tokens, token_mask)
        if upto is None:
            return logits
        with torch.no_grad():
            return logits, self.features(x, tokens, token_mask, upto, [m.detach() for m in maps])

    def encode(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return the visual maps [(B, C, h, w), ...] of normalised images."""
        raise NotImplementedError(f"{type(self).__name__} has no encode(x)")

    def encode_visible(self, x: torch.Tensor, visible: torch.Tensor) -> list[torch.Tensor]:
        """Return the maps of `encode` as the visible patches alone give them, zero elsewhere.

        Args:
            x: (B, 3, H, W) normalised images, of which hidden patches are not read.
            visible: (B, H, W) bool, the same throughout a patch.
        """
        raise NotImplementedError(f"{type(self).__name__} has no encode_visible(x, visible)")

    def decode(
        self, maps: list[torch.Tensor], tokens: torch.Tensor, token_mask: torch.Tensor
    ) -> torch.Tensor:
        """Return foreground logits (B, h, w) of visual maps and sentences."""
        raise NotImplementedError(f"{type(self).__name__} has no decode(maps, tokens, token_mask)")

    def features(
        self,
        x: torch.Tensor,
        tokens: torch.Tensor,
        token_mask: torch.Tensor,
        upto: str,
        maps: list[torch.Tensor] | None = None,
    ) -> Features:
        """Return what alignment is computed from at the source `upto`."""
        raise NotImplementedError(
            f"{type(self).__name__} has no features(x, tokens, token_mask, upto, maps)"
        )

    def see(self, maps: list[torch.Tensor], visible: torch.Tensor) -> list[torch.Tensor]:
        """Return maps with hidden places at zero, partly hidden ones by their visible share.

        Args:
            maps: [(B, C, h, w), ...]
            visible: (B, H, W) bool.
        """
        return [
            m * F.interpolate(visible[:, None].to(m.dtype), m.shape[2:], mode="area") for m in maps
        ]


def word_range(special: tuple[int, ...], size: int) -> tuple[int, int]:
    """Return first and end of the longest run of ids below `size` without special tokens."""
    stops = sorted({-1, *special, size})
    return max(
        ((a + 1, b) for a, b in zip(stops, stops[1:], strict=False)),
        key=lambda run: run[1] - run[0],
    )


def find_class(name: str) -> type[Model]:
    """Return the class behind a model's name, built-in or given as module:ClassName.

    The class of one's own is imported, which runs its file: names out of checkpoints go through
    aml.own_classes.check_allowed first.

    Raises:
        UserError: There is no such class, its file fails, or the class lacks a method.
    """
    if names_own_class(name):
        cls: type[Model] = load_class(name, "model.name", Model)
        if lacking := _missing_methods(cls):
            raise UserError(
                f"model.name is {name}, whose class has no {' and no '.join(lacking)}; write what "
                "is missing, and see what aml.models.check says of the class"
            )
        return cls
    module, _, class_name = options_class(name).built_by.partition(":")
    return getattr(import_module(module), class_name)


def _missing_methods(cls: type[Model]) -> list[str]:
    """Return the methods that a class has to write itself and does not."""
    needed = ["forward"] if cls.fuses else ["encode", "decode"]
    if set(cls.sources) - {"prediction"}:
        needed.append("features")
    if cls.drops:
        needed.append("encode_visible")
    return [name for name in needed if getattr(cls, name) is getattr(Model, name)]
