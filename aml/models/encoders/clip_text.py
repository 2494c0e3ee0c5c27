"""CLIP's text side, shared by the models that read with it: tokens, pooled token, weights.

Weights come from a hub or a folder, or are random. A sentence is start, its words or their pieces,
end, then padding. CLIP pools the end token and its attention is causal: neither that token nor a
word ever reads padding, so no attention mask is needed. Transformers finds the end token by an id
that differs between configurations (the highest one of the sentence, or eos_token_id); here it is
the last unpadded place, whatever the tokenizer.

    B sentences, L tokens, C width
"""

import json
from collections.abc import Callable
from typing import Any

import torch

from aml.data import split_words
from aml.errors import UserError
from aml.models.base import word_range
from aml.models.encoders.pretrained import fetched
from aml.models.options import WORDS

PAD, START, END, UNKNOWN, MASK = range(5)


class WordTokens:
    """Words of a vocabulary as tokens."""

    mask_token: int | None = MASK
    special_tokens: tuple[int, ...] = (PAD, START, END, MASK)

    def __init__(self, vocabulary: list[str], length: int):
        self.ids: dict[str, int] = {word: i + MASK + 1 for i, word in enumerate(vocabulary)}
        self.length = length
        self.assets: dict[str, Any] = {}
        self.word_ids = (MASK + 1, MASK + 1 + max(1, len(vocabulary)))

    def __len__(self) -> int:
        return len(self.ids) + MASK + 1

    def __call__(self, sentences: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return tokens (B, L) int64 and token_mask (B, L) bool.

        A long sentence loses its last words, never its end token.
        """
        return padded(
            [
                [START, *(self.ids.get(w, UNKNOWN) for w in split_words(s))][: self.length - 1]
                + [END]
                for s in sentences
            ],
            self.length,
            PAD,
        )


class PieceTokens:
    """Byte-pair pieces of a tokenizer in the JSON of the `tokenizers` library.

    There is no mask token and no unknown word.
    """

    mask_token: int | None = None

    def __init__(self, assets: dict, length: int):
        """Build the tokenizer.

        Args:
            assets: {"tokenizer": its JSON, "start": id, "end": id} as `read_pieces` gives them.
            length: Tokens of a sentence.
        """
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_str(assets["tokenizer"])
        self.assets = assets
        self.length = length
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(length)
        self.special_tokens = (assets["start"], assets["end"])
        self.word_ids = word_range(self.special_tokens, self.tokenizer.get_vocab_size())

    def __len__(self) -> int:
        return self.tokenizer.get_vocab_size()

    def __call__(self, sentences: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return tokens (B, L) int64 and token_mask (B, L) bool.

        A long sentence loses its last pieces, never its end token.
        """
        return padded(
            [e.ids for e in self.tokenizer.encode_batch(sentences)], self.length, self.assets["end"]
        )


def clip_tokens(model: Any, name: str, option: str) -> "WordTokens | PieceTokens":
    """Return the tokens that a model reads: words of its vocabulary, or pieces of a tokenizer.

    Args:
        model: Has `options.max_tokens`, `vocabulary`, and `assets`, which keep a tokenizer that was
            read before.
        name: WORDS, a hub name or a local folder.
        option: The model option that names it, for messages.
    """
    length = model.options.max_tokens
    if name == WORDS:
        return WordTokens(model.vocabulary, length)
    return PieceTokens(model.assets.get("tokenizer") or read_pieces(name, option), length)


def padded(rows: list[list[int]], length: int, pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows of ids as tokens (B, length) int64 and token_mask (B, length) bool."""
    tokens = torch.tensor(
        [row + [pad] * (length - len(row)) for row in rows], dtype=torch.int64
    ).view(len(rows), length)
    return tokens, torch.arange(length) < torch.tensor([len(row) for row in rows])[:, None]


def read_pieces(name: str, option: str) -> dict[str, Any]:
    """Return what PieceTokens needs.

    Args:
        name: A hub name or a local folder.
        option: The model option that names it, for messages.

    Raises:
        UserError: There is no tokenizer, or it marks no start and end.
    """
    from transformers import AutoTokenizer

    tokenizer = fetched(lambda: AutoTokenizer.from_pretrained(name), name, option, "the tokenizer")
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    ids = tokenizer("a").input_ids
    if len(ids) < 2 or ids[0] != start or ids[-1] != end:
        raise UserError(
            f"model.{option} {name!r}: its tokenizer puts no start and end token around a "
            "sentence; "
            f"give a CLIP, or {WORDS}"
        )
    return {"tokenizer": tokenizer.backend_tokenizer.to_str(), "start": start, "end": end}


def config_assets(config: Any) -> dict[str, Any]:
    """Return a transformers configuration as JSON."""
    return json.loads(config.to_json_string(use_diff=False))


def check_length(length: int, config: Any, option: str) -> None:
    """Refuse a number of tokens that the text transformer has no places for."""
    if not 3 <= length <= config.max_position_embeddings:
        raise UserError(
            f"model.max_tokens is {length}; model.{option} reads 3 (start, a word, end) to "
            f"{config.max_position_embeddings} tokens, choose among these"
        )


def text_states(
    text_model: Any, tokens: torch.Tensor, beside: Callable | None = None
) -> torch.Tensor:
    """Return the hidden states of a transformers CLIP text model after its last norm, (B, L, C).

    Args:
        text_model: The model.
        tokens: (B, L) int64.
        beside: beside(i, y) is added to the output of layer i's MLP, which reads y (B, L, C); None
            adds nothing.
    """
    x = text_model.embeddings(input_ids=tokens)
    for i, layer in enumerate(text_model.encoder.layers):
        x = x + layer.self_attn(layer.layer_norm1(x), attention_mask=None, is_causal=True)[0]
        y = layer.layer_norm2(x)
        added = beside(i, y) if beside else None
        x = x + layer.mlp(y) + (0 if added is None else added)
    return text_model.final_layer_norm(x)


def roles(token_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which tokens are words, and which one is pooled, both (B, L) bool."""
    place = torch.arange(token_mask.shape[1], device=token_mask.device)
    pooled = place == token_mask.sum(1, keepdim=True) - 1
    return token_mask & ~pooled & (place > 0), pooled


def pool(states: torch.Tensor, token_mask: torch.Tensor) -> torch.Tensor:
    """Return the end token's state (B, C) of states (B, L, C)."""
    return states[torch.arange(len(states), device=states.device), token_mask.sum(1) - 1]


def freeze(module: Any) -> Any:
    """Switch gradient and dropout off; the model that holds the module keeps it in eval mode."""
    return module.requires_grad_(False).eval()
