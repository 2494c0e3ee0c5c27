"""A text encoder from scratch whose tokens are the words of the data set.

B sentences, L tokens, C width
"""

import torch
import torch.nn.functional as F
from torch import nn

from aml.data import split_words

PAD, POOL, UNKNOWN, MASK = range(4)


class Words:
    """Turns sentences into ids of words, the pooling token first; UNKNOWN for other words."""

    mask_token: int | None = MASK
    special_tokens: tuple[int, ...] = (PAD, POOL, MASK)

    def __init__(self, vocabulary: list[str], length: int):
        self.ids = {word: i + MASK + 1 for i, word in enumerate(vocabulary)}
        self.length = length
        self.word_ids = (MASK + 1, MASK + 1 + max(1, len(vocabulary)))

    def __len__(self) -> int:
        return len(self.ids) + MASK + 1

    def __call__(self, sentences: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return tokens (B, L) int64 and token_mask (B, L) bool."""
        tokens = torch.full((len(sentences), self.length), PAD)
        for row, sentence in zip(tokens, sentences, strict=True):
            words = (self.ids.get(word, UNKNOWN) for word in split_words(sentence))
            ids = [POOL, *words][: self.length]
            row[: len(ids)] = torch.tensor(ids)
        return tokens, tokens != PAD

    def roles(
        self, tokens: torch.Tensor, token_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return which tokens are words, and which one is pooled, both (B, L) bool."""
        pooled = torch.zeros_like(token_mask)
        pooled[:, 0] = True
        return token_mask & ~pooled, pooled


class Text(nn.Module):
    """Turns tokens (B, L) into vectors (B, L, C) that know their context."""

    def __init__(self, size: int, length: int, width: int, heads: int, dropout: float):
        """Build the encoder.

        Args:
            size: Number of ids.
            length: Tokens of a sentence.
            width: C.
            heads: Heads of attention.
            dropout: Share of values left out.
        """
        super().__init__()
        self.embed = nn.Embedding(size, width, padding_idx=PAD)
        self.position = nn.Parameter(torch.randn(length, width) * 0.02)
        self.layers = nn.ModuleList([Layer(width, heads, dropout) for _ in range(2)])
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.embed.weight, std=0.3)

    def forward(self, tokens, token_mask):
        x = self.embed(tokens) + self.position[: tokens.shape[1]]
        for layer in self.layers:
            x = layer(x, token_mask)
        return self.norm(x)


class Layer(nn.Module):
    """Self-attention and feed-forward, each after its norm."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend = Attention(width, heads, dropout)
        self.feed = feed_forward(width, dropout)

    def forward(self, x, mask=None):
        y = self.norm1(x)
        x = x + self.attend(y, y, mask)
        return x + self.feed(self.norm2(x))


class Attention(nn.Module):
    """Multi-head attention: x (B, N, C) asks y (B, M, C) where mask (B, M) bool is True."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x, y, mask=None):
        q, k, v = (
            f(z).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for f, z in ((self.query, x), (self.key, y), (self.value, y))
        )
        mask = None if mask is None else mask[:, None, None]
        out = (F.scaled_dot_product_attention if x.is_cuda else plain_attention)(q, k, v, mask)
        return F.dropout(self.out(out.transpose(1, 2).flatten(2)), self.dropout, self.training)


def plain_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the attention product in three steps.

    On a CPU the fused kernel's backward takes three times as long for maps this small.
    """
    scores = q @ k.mT * q.shape[-1] ** -0.5
    return (scores if mask is None else scores.masked_fill(~mask, -torch.inf)).softmax(-1) @ v


def feed_forward(width: int, dropout: float) -> nn.Sequential:
    """Return the feed-forward part of a layer."""
    return nn.Sequential(
        nn.Linear(width, 2 * width),
        nn.GELU(),
        nn.Linear(2 * width, width),
        nn.Dropout(dropout),
    )
