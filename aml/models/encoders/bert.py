"""BERT, the text encoder of CARIS and LAVT, through transformers.

Weights come from a folder or a hub, or are random. tokenizers and transformers are imported where
they are used: checking the options of a model needs neither.

    B samples, H W image, h w the map of a stage, C its channels, L tokens, P prompts, D width of
    the text
"""

from typing import Any

import torch
from torch import nn

from aml.data import split_words
from aml.errors import UserError
from aml.models.base import word_range
from aml.models.encoders.pretrained import fetched, read_weights

PAD, UNKNOWN, CLS, SEP, MASK = SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class Tokens:
    """Turns sentences into ids: [CLS] ... [SEP], cut to `length` and padded.

    A sentence that is too long loses its [SEP], as in CARIS and LAVT.
    """

    def __init__(self, tokenizer: Any, length: int, by_words: bool) -> None:
        """Take over a tokenizer of the tokenizers library.

        Args:
            tokenizer: The tokenizer.
            length: Tokens of a sentence.
            by_words: Whether sentences are cut into the data set's words first.
        """
        self.tokenizer = tokenizer
        self.length = length
        self.by_words = by_words
        self.special = tuple(tokenizer.token_to_id(t) for t in (PAD, CLS, SEP, MASK))
        if None in self.special:
            raise UserError(
                f"the tokenizer of model.text lacks one of {PAD}, {CLS}, {SEP}, {MASK}; give a "
                "BERT's"
            )
        self.pad, self.cls, self.sep, self.mask = self.special
        self.word_ids = word_range(self.special, tokenizer.get_vocab_size())

    def __call__(self, sentences: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return tokens (B, L) int64 and token_mask (B, L) bool."""
        tokens = torch.full((len(sentences), self.length), self.pad)
        mask = torch.zeros_like(tokens, dtype=torch.bool)
        for i, sentence in enumerate(sentences):
            text = " ".join(split_words(sentence)) if self.by_words else sentence
            ids = self.tokenizer.encode(text).ids[: self.length]
            tokens[i, : len(ids)], mask[i, : len(ids)] = torch.tensor(ids), True
        return tokens, mask

    def words(self, tokens: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return which tokens are (parts of) words, and the one BERT pools, both (B, L) bool.

        The pooled one is [CLS].
        """
        pooled = torch.zeros_like(mask)
        pooled[:, 0] = True
        return mask & ~pooled & (tokens != self.cls) & (tokens != self.sep), pooled


def bert(
    options: Any, vocabulary: list[str], assets: dict[str, Any]
) -> tuple[Any, Tokens, dict[str, Any]]:
    """Return the text encoder that options.text names.

    Args:
        options: SwinBertOptions.
        vocabulary: Words of the data set.
        assets: Of a model built before: then nothing is read or fetched, and weights stay random.

    Returns:
        A BertModel without pooler, its tokens, and the assets of a rebuild.

    Raises:
        UserError: A name or folder that cannot be loaded or holds no BERT.
    """
    from tokenizers import Tokenizer
    from transformers import BertConfig, BertModel

    rates = {
        "hidden_dropout_prob": options.dropout,
        "attention_probs_dropout_prob": options.dropout,
    }
    by_words = options.text == "words"
    if assets or by_words:
        tokenizer = (
            Tokenizer.from_str(assets["tokenizer"]) if assets else word_tokenizer(vocabulary)
        )
        config = BertConfig.from_dict(
            assets["bert"] if assets else _config_of_words(options, tokenizer.get_vocab_size())
        )
        config.update(rates)
        model = BertModel(config, add_pooling_layer=False)
    else:
        model, tokenizer = _pretrained_bert(options.text, rates)
    if options.max_tokens > model.config.max_position_embeddings:
        raise UserError(
            f"model.max_tokens is {options.max_tokens}, but {options.text} reads "
            f"{model.config.max_position_embeddings} tokens at most; lower it"
        )
    # the place it was read from says nothing of it
    kept = {k: v for k, v in model.config.to_dict().items() if k != "_name_or_path"}
    tokens = Tokens(tokenizer, options.max_tokens, by_words)
    return model, tokens, {"bert": kept, "tokenizer": tokenizer.to_str()}


def _config_of_words(options: Any, size: int) -> dict[str, Any]:
    return {
        "vocab_size": size,
        "hidden_size": options.text_width,
        "num_hidden_layers": options.text_layers,
        "num_attention_heads": options.text_heads,
        "intermediate_size": 4 * options.text_width,
        "max_position_embeddings": options.max_tokens,
        "pad_token_id": 0,
    }


def word_tokenizer(vocabulary: list[str]) -> Any:
    """Return a tokenizer with a token a word: ids 0 to 4 are special, then comes the vocabulary."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    ids = {token: i for i, token in enumerate([*SPECIAL, *vocabulary])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.BertProcessing((SEP, ids[SEP]), (CLS, ids[CLS]))
    return tokenizer


def _pretrained_bert(name: str, rates: dict[str, float]) -> tuple[Any, Any]:
    """Return the BertModel of a hub name or folder, and its tokenizer."""
    from transformers import AutoTokenizer, BertModel

    model = read_weights(BertModel, name, "text", ("bert",), rates, add_pooling_layer=False)
    tokenizer = fetched(
        lambda: AutoTokenizer.from_pretrained(name).backend_tokenizer, name, "text", "the tokenizer"
    )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return model, tokenizer


def read(
    model: Any,
    tokens: torch.Tensor,
    token_mask: torch.Tensor,
    prompts: torch.Tensor | None = None,
) -> torch.Tensor:
    """Run BERT on a sentence.

    Args:
        model: A BertModel.
        tokens: (B, L) int64.
        token_mask: (B, L) bool.
        prompts: (B, P, D), joined behind its embeddings and dropped at the end.

    Returns:
        (B, L, D).
    """
    from transformers.masking_utils import create_bidirectional_mask

    x, length = model.embeddings(tokens), tokens.shape[1]
    if prompts is not None:
        x = torch.cat([x, prompts.to(x.dtype)], 1)
        token_mask = torch.cat([token_mask, token_mask.new_ones(prompts.shape[:2])], 1)
    # Without the flag the helper looks whether any token is masked: a branch on data, and a wait
    # for the device.
    attend = create_bidirectional_mask(
        config=model.config,
        inputs_embeds=x,
        attention_mask=token_mask,
        allow_is_bidirectional_skip=False,
    )
    return model.encoder(x, attention_mask=attend).last_hidden_state[:, :length]


def undecayed(model: nn.Module, *parts: str) -> tuple[str, ...]:
    """Return the names of the parameters that contain one of `parts`.

    Norms and biases, being 1-d, are never decayed anyway.
    """
    return tuple(
        name for name, _ in model.named_parameters() if any(part in name for part in parts)
    )
