"""Change words of sentences, as MaskRIS (2024) hides them; special tokens and padding never change.

B samples, L tokens
"""

from typing import Any

import torch

from aml.draws import uniform
from aml.masking.config import MASKRIS_TEXT
from aml.masking.selection import rank_blocks


def words_of(model: Any, tokens: torch.Tensor, token_mask: torch.Tensor) -> torch.Tensor:
    """Return which tokens (B, L) are words that may be changed, (B, L) bool.

    Args:
        model: Gives special_tokens.
        tokens: (B, L) int64.
        token_mask: (B, L) bool.
    """
    special = torch.zeros_like(token_mask)
    for token in model.special_tokens:
        special |= tokens == token
    return token_mask & ~special


def change_words(
    model: Any,
    tokens: torch.Tensor,
    token_mask: torch.Tensor,
    seed: int,
    epoch: int,
    item: torch.Tensor,
) -> torch.Tensor:
    """Return sentences of which 15 % of the words are hidden, as MaskRIS does.

    Args:
        model: Gives mask_token, special_tokens and word_ids.
        tokens: (B, L) int64.
        token_mask: (B, L) bool.
        seed: Of the run.
        epoch: 0-based.
        item: (B,) int64, keys the draws.

    Returns:
        (B, L) int64.
    """
    drawn = uniform(seed, epoch, item, "word", tokens.shape[1]) < MASKRIS_TEXT
    chosen = drawn & words_of(model, tokens, token_mask)
    return replace_words(model, tokens, chosen, seed, epoch, item)


def replace_words(
    model: Any,
    tokens: torch.Tensor,
    chosen: torch.Tensor,
    seed: int,
    epoch: int,
    item: torch.Tensor,
) -> torch.Tensor:
    """Return sentences whose chosen words are hidden.

    Of the chosen words 80 % become the mask token, 10 % a random word, and 10 % stay. A tokenizer
    without a mask token gets a random word in its place.

    Args:
        model: Gives mask_token and word_ids.
        tokens: (B, L) int64.
        chosen: (B, L) bool.
        seed: Of the run.
        epoch: 0-based.
        item: (B,) int64, keys the draws.

    Returns:
        (B, L) int64.
    """
    length = tokens.shape[1]
    first, end = model.word_ids
    how = uniform(seed, epoch, item, "word-how", length)
    other = first + (uniform(seed, epoch, item, "word-which", length) * (end - first)).long()
    masked = other if model.mask_token is None else torch.full_like(tokens, model.mask_token)
    changed = torch.where(how < 0.8, masked, torch.where(how < 0.9, other, tokens))
    return torch.where(chosen, changed, tokens)


def leave_one_word(
    hidden: torch.Tensor, words: torch.Tensor, score: torch.Tensor, tie: torch.Tensor
) -> torch.Tensor:
    """Return which words are hidden if at least one of each sentence stays.

    Args:
        hidden: (B, L) bool: words to hide.
        words: (B, L) bool: all words.
        score: (B, L): of a sentence whose words would all be hidden that of the highest score
            stays.
        tie: (B, L) draws, in whose order equal scores are taken.

    Returns:
        (B, L) bool.
    """
    rank = rank_blocks(score.masked_fill(~words, -torch.inf), tie)
    stays = (hidden == words).all(1, keepdim=True) & (rank == words.shape[1] - 1)
    return hidden & ~stays
