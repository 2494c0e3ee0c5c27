"""Any text encoder of transformers: its tokens, its weights, its states.

Weights come from an installed package, a folder or a hub; a rebuild has them from a checkpoint.
transformers and tokenizers are imported where they are used.

    B sentences, L tokens, C width
"""

import inspect
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from aml.errors import UserError
from aml.models.base import word_range
from aml.models.encoders.backbone import one_line
from aml.models.encoders.packages import TEXT, package_path
from aml.models.encoders.pretrained import quiet_transformers
from aml.models.encoders.sentences import SentenceCache
from aml.models.encoders.siglip import is_siglip
from aml.models.options.base import WORDS
from aml.models.options.compose import PACKAGE

CLIP = ("clip", "clip_text_model")
"""Types whose text tower is read, which transformers does not list among its text encoders."""


class Pieces:
    """Turns sentences into ids with the fast tokenizer of a text encoder."""

    def __init__(self, assets: dict[str, Any], length: int):
        """Build the tokenizer.

        Args:
            assets: As `read_tokenizer` gives them.
            length: Tokens of a sentence.
        """
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_str(assets["tokenizer"])
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(length)
        self.length = length
        self.pad: int = assets["pad"]
        self.ends: list[int] = assets["ends"]
        self.first: bool = assets["first"]
        self.mask_token: int | None = assets["mask"]
        masks = [] if self.mask_token is None else [self.mask_token]
        self.special_tokens = tuple(sorted({self.pad, *self.ends, *masks}))
        self.word_ids = word_range(self.special_tokens, self.tokenizer.get_vocab_size())

    def __call__(self, sentences: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return tokens (B, L) int64 and token_mask (B, L) bool."""
        tokens = torch.full((len(sentences), self.length), self.pad)
        mask = torch.zeros_like(tokens, dtype=torch.bool)
        for i, one in enumerate(self.tokenizer.encode_batch(sentences)):
            tokens[i, : len(one.ids)] = torch.tensor(one.ids)
            mask[i, : len(one.ids)] = True
        return tokens, mask

    def roles(
        self, tokens: torch.Tensor, token_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return which tokens are (parts of) words, and which one is pooled, both (B, L) bool."""
        place = torch.arange(tokens.shape[1], device=tokens.device)
        pooled = place == (0 if self.first else token_mask.sum(1, keepdim=True) - 1)
        words = token_mask & ~pooled
        for end in self.ends:
            words = words & (tokens != end)
        return words, pooled.expand_as(token_mask)


class SentenceEncoder(nn.Module):
    """A text encoder of transformers.

    The place of the pooled token, which the tokenizer puts before or behind the words, holds the
    mean of the sentence's states: so sentence encoders pool, and the token's own state says little
    where nothing trained it.
    """

    def __init__(self, model: nn.Module, tokens: Pieces, frozen: bool):
        super().__init__()
        self.model: Any = model
        self.tokens = tokens
        self.cache = SentenceCache() if frozen else None
        if frozen:
            self.requires_grad_(False)

    @property
    def width(self) -> int:
        """Return C."""
        return self.model.config.hidden_size

    def train(self, mode: bool = True):
        return super().train(mode and self.cache is None)

    def forward(self, tokens: torch.Tensor, token_mask: torch.Tensor) -> torch.Tensor:
        """Return states (B, L, C)."""
        if self.cache is not None:
            return self.cache.read(self.model, self._alone, tokens, token_mask)
        return self._read(tokens, token_mask)

    def _alone(self, tokens: torch.Tensor) -> torch.Tensor:
        return self._read(tokens, torch.ones_like(tokens, dtype=torch.bool))

    def _read(self, tokens: torch.Tensor, token_mask: torch.Tensor) -> torch.Tensor:
        whole = torch.where(token_mask, tokens, self.tokens.pad)  # convolutions read padding, too
        states = self.model(
            input_ids=whole, attention_mask=token_mask.to(torch.int64)
        ).last_hidden_state
        kept = token_mask[..., None].to(states.dtype)
        mean = (states * kept).sum(1, keepdim=True) / kept.sum(1, keepdim=True)
        return torch.where(self.tokens.roles(tokens, token_mask)[1][..., None], mean, states)


class SiglipText(SentenceEncoder):
    """SigLIP's text tower.

    It learned to read the padding behind a sentence, up to all of its places, and its sentence is
    the state of the last one, which the place of the pooled token holds here.
    """

    def __init__(self, model: nn.Module, tokens: Pieces, frozen: bool):
        super().__init__(model, tokens, frozen)
        self.model.head.requires_grad_(False)  # alignment alone reads it

    def _read(self, tokens: torch.Tensor, token_mask: torch.Tensor) -> torch.Tensor:
        length, pad = tokens.shape[1], self.tokens.pad
        rest = self.model.config.max_position_embeddings - length
        whole = F.pad(torch.where(token_mask, tokens, pad), (0, rest), value=pad)
        states = self.model(input_ids=whole).last_hidden_state
        pooled = self.tokens.roles(tokens, token_mask)[1]
        return torch.where(pooled[..., None], states[:, -1:], states[:, :length])

    def joint(self, states: torch.Tensor) -> torch.Tensor:
        """Return states (B, L, C) in the space in which pictures and sentences are compared."""
        return self.model.head(states)


def _encoder(model: Any, tokens: Pieces, frozen: bool) -> SentenceEncoder:
    kind = SiglipText if is_siglip(model.config.model_type, "text") else SentenceEncoder
    return kind(_bare(model), tokens, frozen)


def sentence_encoder(
    name: str, length: int, frozen: bool, assets: dict[str, Any]
) -> tuple[SentenceEncoder, dict[str, Any]]:
    """Return the text encoder that a name means, and the assets of a rebuild.

    Args:
        name: As model.text.
        length: Tokens of a sentence.
        frozen: Whether it stays as it is.
        assets: Of a model built before: then nothing is read or fetched, and weights stay random.

    Raises:
        UserError: It cannot be had, is no text encoder, or cannot read so many tokens.
    """
    if assets:
        model = _class(assets["config"]["model_type"], name)._from_config(_config(assets["config"]))
        return _encoder(model, Pieces(assets["tokens"], length), frozen), assets
    place = str(package_path(TEXT, "text")) if name == PACKAGE else name
    model = _read_model(place, name)
    lower = is_siglip(model.config.model_type, "text")
    tokens = read_tokenizer(place, name, lower=lower)
    config = json.loads(model.config.to_json_string(use_diff=False))
    # the place it was read from says nothing of it
    assets = {"config": {k: v for k, v in config.items() if k != "_name_or_path"}, "tokens": tokens}
    encoder = _encoder(model, Pieces(tokens, length), frozen)
    _check_length(encoder, name, length)
    return encoder, assets


def check_text(name: str) -> None:
    """Refuse a text encoder that lies on this machine and cannot be taken, or does not lie there.

    A hub name is not looked up.
    """
    if name == WORDS:
        return
    place = package_path(TEXT, "text") if name == PACKAGE else Path(name).expanduser()
    if place.is_dir():
        _model_type(str(place), name)
    elif place.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise UserError(
            f"model.text {name!r} is no folder; give one in Hugging Face format, a hub name, "
            f"{PACKAGE} or {WORDS}"
        )


def prompted_encoder(
    name: str, length: int, prompts: int, assets: dict[str, Any]
) -> tuple[Any, Pieces, dict[str, Any]]:
    """Return a text encoder that reads vectors behind a sentence, and a token in front of it.

    Args:
        name: As model.text.
        length: Tokens of a sentence.
        prompts: Vectors that it has to read besides.
        assets: Of a model built before, see `sentence_encoder`.

    Returns:
        transformers' model, its tokens, and the assets of a rebuild.

    Raises:
        UserError: See `sentence_encoder`; or it reads no vectors, or has no token in front.
    """
    encoder, made = sentence_encoder(name, length, False, assets)
    model, tokens = encoder.model, encoder.tokens
    if "inputs_embeds" not in inspect.signature(model.forward).parameters or not tokens.first:
        raise UserError(
            f"model.text {name!r} is a {model.config.model_type}, which takes no vectors beside "
            "its tokens or has no token in front of a sentence, and caris needs both; take one as "
            "BERT, RoBERTa or ModernBERT, or model.name compose, which takes any"
        )
    if not assets:
        _check_length(encoder, name, length + prompts)
    return model, tokens, made


def read_prompted(
    model: Any, tokens: torch.Tensor, token_mask: torch.Tensor, prompts: torch.Tensor
) -> torch.Tensor:
    """Run an encoder of `prompted_encoder` on sentences.

    Args:
        model: The encoder.
        tokens: (B, L) int64.
        token_mask: (B, L) bool.
        prompts: (B, P, C'), joined behind the embeddings of the tokens, C' wide, and dropped at the
            end.

    Returns:
        States (B, L, C).
    """
    x = model.get_input_embeddings()(tokens) * token_mask[..., None]
    x = torch.cat([x, prompts.to(x.dtype)], 1)
    seen = torch.cat([token_mask, token_mask.new_ones(prompts.shape[:2])], 1)
    states = model(inputs_embeds=x, attention_mask=seen.to(torch.int64)).last_hidden_state
    return states[:, : tokens.shape[1]]


def is_bert(name: str) -> bool:
    """Return whether a name means a BERT, or an encoder whose configuration cannot be had."""
    from transformers import PreTrainedConfig

    if name in (WORDS, PACKAGE):
        return name == WORDS
    try:
        given, _ = PreTrainedConfig.get_config_dict(name, **_how(name))
    except Exception:  # what is missing is said by whoever reads the weights
        return True
    return given.get("model_type", "bert") == "bert"


def read_tokenizer(place: str, name: str, *, lower: bool = False) -> dict[str, Any]:
    """Return what `Pieces` needs, as JSON.

    Args:
        place: A folder or a hub name.
        name: What model.text is, for messages.
        lower: Make sentences lower-case, as SigLIP 2 was trained; its folders may name Gemma's
            tokenizer, which does not.
    """
    from tokenizers import normalizers
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(place, **_how(place))
        ids = tokenizer("a").input_ids
        made = tokenizer.backend_tokenizer
        if lower:
            own = [made.normalizer] if made.normalizer else []
            made.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])
        backend = made.to_str()
    except Exception as error:
        raise _not_had(name, "its tokenizer", error) from None
    kinds = ("cls", "sep", "bos", "eos")
    found = [getattr(tokenizer, f"{kind}_token_id", None) for kind in kinds]
    ends = sorted({token for token in found if token is not None})
    first, last = ids[0] in ends, ids[-1] in ends
    if not (first or last) or tokenizer.pad_token_id is None:
        raise UserError(
            f"the tokenizer of model.text {name!r} puts no token of its own before or behind a "
            "sentence, or has none for padding; take another text encoder"
        )
    return {
        "tokenizer": backend,
        "pad": tokenizer.pad_token_id,
        "mask": getattr(tokenizer, "mask_token_id", None),
        "ends": ends,
        "first": first,
    }


def _read_model(place: str, name: str) -> Any:
    kind = _class(_model_type(place, name), name)
    try:
        with quiet_transformers():
            model, found = kind.from_pretrained(
                place, dtype=torch.float32, output_loading_info=True, **_how(place)
            )
    except Exception as error:
        # OSError for what is missing, ValueError for a bad name, the HTTP library's classes
        raise _not_had(name, "its weights", error) from None
    # a pooling layer that was not trained is no loss, as nothing reads it
    missing = sorted(key for key in found["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise UserError(
            f"model.text {name!r} lacks {len(missing)} weights, first {missing[0]}; give a folder "
            f"that holds all of them, {PACKAGE} or {WORDS}"
        )
    return model


def _model_type(place: str, name: str) -> str:
    """Return transformers' type of a model, known to be a text encoder."""
    from transformers import PreTrainedConfig

    try:
        given, _ = PreTrainedConfig.get_config_dict(place, **_how(place))
        found = str(given["model_type"])
    except Exception as error:
        raise _not_had(name, "its configuration", error) from None
    _class(found, name)
    return found


def _class(model_type: str, name: str) -> Any:
    """Return transformers' class that reads text with a model of a type.

    Models that predict masked words, and encoders of T5's kind, read a sentence in both directions.
    """
    import transformers
    from transformers.models.auto import modeling_auto as auto

    encoder = auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES.get(model_type, "")
    masked = auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES.get(model_type, "")
    if model_type in CLIP:
        return transformers.CLIPTextModel
    if is_siglip(model_type, "text"):
        kind = model_type.removesuffix("_text_model").capitalize()
        return getattr(transformers, f"{kind}TextModel")
    if encoder.endswith("EncoderModel"):
        return getattr(transformers, encoder)
    if masked and not masked.endswith("ForConditionalGeneration"):
        return getattr(transformers, str(auto.MODEL_MAPPING_NAMES[model_type]))
    raise UserError(
        f"model.text {name!r} is a {model_type}, which is no text encoder; give one as BERT, "
        "RoBERTa, ModernBERT, T5's encoder or the text tower of CLIP or SigLIP"
    )


def _config(given: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    rest = dict(given)
    return AutoConfig.for_model(rest.pop("model_type"), **rest)


def _bare(model: Any) -> Any:
    """Return a model without the weights of a pooling layer, which nothing would read."""
    if isinstance(getattr(model, "pooler", None), nn.Module):
        model.pooler = nn.Identity()  # some classes call it without asking whether there is one
    return model


def _how(place: str) -> dict[str, Any]:
    """Return that no code of a model's own is run, and a folder asks no network."""
    return {"trust_remote_code": False, "local_files_only": Path(place).expanduser().is_dir()}


@torch.no_grad()
def _check_length(encoder: SentenceEncoder, name: str, length: int) -> None:
    """Refuse more tokens than the encoder has places for."""
    tokens = torch.full((1, length), encoder.tokens.word_ids[0])
    try:
        encoder.eval()._alone(tokens)
    except Exception:  # an index beyond the places, or shapes that do not fit
        most = getattr(encoder.model.config, "max_position_embeddings", "fewer")
        raise UserError(
            f"model.max_tokens is {length}, which model.text {name!r} cannot read; it has places "
            f"for {most} tokens, lower it"
        ) from None


def _not_had(name: str, what: str, error: Exception) -> UserError:
    return UserError(
        f"model.text {name!r} cannot be loaded: {what} cannot be had ({one_line(error)}); give a "
        f"folder in Hugging Face format, a hub name where there is a network, {PACKAGE} or {WORDS}"
    )
