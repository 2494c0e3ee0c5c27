"""Encoders that several models share: Swin through timm, BERT through transformers, each with weights from a file, a hub, or none.

timm and transformers are imported where they are used: checking the options of a model needs neither.

    B samples, H W image, h w the map of a stage, C its channels, L tokens, P prompts, D width of the text
"""

import torch

from aml.data import split_words
from aml.errors import UserError
from aml.models.base import word_range
from aml.models.encoders.swin import SWINS, one_line

PAD, UNKNOWN, CLS, SEP, MASK = SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class Tokens:
    """Sentences to ids: [CLS] ... [SEP], cut to `length` and padded. A sentence too long loses its [SEP], as in CARIS and LAVT."""

    def __init__(self, tokenizer, length: int, by_words: bool):
        """tokenizer: of the tokenizers library. by_words: sentences are cut into the data set's words before."""
        self.tokenizer, self.length, self.by_words = tokenizer, length, by_words
        self.special = tuple(tokenizer.token_to_id(t) for t in (PAD, CLS, SEP, MASK))
        if None in self.special:
            raise UserError(
                f"the tokenizer of model.text lacks one of {PAD}, {CLS}, {SEP}, {MASK}; give a BERT's"
            )
        self.pad, self.cls, self.sep, self.mask = self.special
        self.word_ids = word_range(self.special, tokenizer.get_vocab_size())

    def __call__(self, sentences: list[str]):
        """list of str -> tokens (B, L) int64, token_mask (B, L) bool"""
        tokens = torch.full((len(sentences), self.length), self.pad)
        mask = torch.zeros_like(tokens, dtype=torch.bool)
        for i, sentence in enumerate(sentences):
            text = " ".join(split_words(sentence)) if self.by_words else sentence
            ids = self.tokenizer.encode(text).ids[: self.length]
            tokens[i, : len(ids)], mask[i, : len(ids)] = torch.tensor(ids), True
        return tokens, mask

    def words(self, tokens, mask):
        """Which tokens are (parts of) words, and the one BERT pools, [CLS].   (B, L) -> (B, L) bool, (B, L) bool"""
        pooled = torch.zeros_like(mask)
        pooled[:, 0] = True
        return mask & ~pooled & (tokens != self.cls) & (tokens != self.sep), pooled


def bert(options, vocabulary: list[str], assets: dict):
    """The text encoder that options.text names.   -> BertModel without pooler, Tokens, assets

    With assets nothing is read or fetched and weights stay random. UserError: a name or folder that cannot be loaded or holds no BERT.
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
            f"model.max_tokens is {options.max_tokens}, but {options.text} reads {model.config.max_position_embeddings} tokens at most; lower it"
        )
    config = {
        k: v for k, v in model.config.to_dict().items() if k != "_name_or_path"
    }  # where it lay says nothing of it
    return (
        model,
        Tokens(tokenizer, options.max_tokens, by_words),
        {"bert": config, "tokenizer": tokenizer.to_str()},
    )


def _config_of_words(options, size: int) -> dict:
    return {
        "vocab_size": size,
        "hidden_size": options.text_width,
        "num_hidden_layers": options.text_layers,
        "num_attention_heads": options.text_heads,
        "intermediate_size": 4 * options.text_width,
        "max_position_embeddings": options.max_tokens,
        "pad_token_id": 0,
    }


def word_tokenizer(vocabulary: list[str]):
    """A tokenizer with a token a word: ids 0 to 4 are special, then the vocabulary in its order."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    ids = {token: i for i, token in enumerate([*SPECIAL, *vocabulary])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.BertProcessing((SEP, ids[SEP]), (CLS, ids[CLS]))
    return tokenizer


def _pretrained_bert(name: str, rates: dict):
    from transformers import AutoConfig, AutoTokenizer, BertModel

    try:
        config = AutoConfig.from_pretrained(name)
        if config.model_type != "bert":
            raise UserError(
                f"model.text {name} is a {config.model_type}, not a BERT; give a BERT's hub name or folder, or words"
            )
        config.update(rates)
        model = BertModel.from_pretrained(name, config=config, add_pooling_layer=False)
        tokenizer = AutoTokenizer.from_pretrained(name).backend_tokenizer
    except UserError:
        raise
    except Exception as error:  # OSError for what is missing, ValueError for a bad name, the HTTP library's classes without network
        raise UserError(
            f"model.text {name!r} cannot be loaded ({one_line(error)}); give a local folder in Hugging Face format, or words for random weights"
        ) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return model, tokenizer


def read(model, tokens, token_mask, prompts=None):
    """Run BERT on tokens (B, L), with prompts (B, P, D) joined behind its embeddings and dropped at the end.   -> (B, L, D)"""
    from transformers.masking_utils import create_bidirectional_mask

    x, length = model.embeddings(tokens), tokens.shape[1]
    if prompts is not None:
        x = torch.cat([x, prompts.to(x.dtype)], 1)
        token_mask = torch.cat([token_mask, token_mask.new_ones(prompts.shape[:2])], 1)
    # Without the flag the helper looks whether any token is masked: a branch on data, and a wait for the device.
    attend = create_bidirectional_mask(
        config=model.config,
        inputs_embeds=x,
        attention_mask=token_mask,
        allow_is_bidirectional_skip=False,
    )
    return model.encoder(x, attention_mask=attend).last_hidden_state[:, :length]


def check(options) -> None:
    """UserError for values of the shared options that cannot mean anything."""
    from difflib import get_close_matches

    if options.backbone not in SWINS:
        near = get_close_matches(str(options.backbone), SWINS, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(f"model.backbone is {options.backbone!r}{hint}; known: {', '.join(SWINS)}")
    if not isinstance(options.pretrained, (bool, str)) or options.pretrained == "":
        raise UserError(
            f"model.pretrained is {options.pretrained!r}; it must be true, false or the path of a weights file"
        )
    if not isinstance(options.text, str) or not options.text:
        raise UserError(
            f"model.text is {options.text!r}; it must be a hub name, a folder, or words"
        )
    if options.window < 2 or options.text_layers < 1 or options.max_tokens < 3:
        raise UserError(
            f"model.window {options.window}, text_layers {options.text_layers}, max_tokens {options.max_tokens}: "
            "window must be at least 2, text_layers 1, max_tokens 3"
        )
    if options.text_width < 1 or options.text_heads < 1 or options.text_width % options.text_heads:
        raise UserError(
            f"model.text_width {options.text_width} must be a multiple of model.text_heads {options.text_heads}"
        )
    if not 0 <= options.dropout < 1 or not 0 <= options.drop_path < 1:
        raise UserError(
            f"model.dropout {options.dropout} and model.drop_path {options.drop_path} must lie in [0, 1)"
        )


def undecayed(model, *parts: str) -> tuple[str, ...]:
    """Names of the parameters that contain one of `parts`: norms and biases, being 1-d, are never decayed anyway."""
    return tuple(
        name for name, _ in model.named_parameters() if any(part in name for part in parts)
    )
