"""Encoders that several models share: Swin through timm, BERT through transformers, each with weights from a file, a hub, or none.

timm and transformers are imported where they are used: checking the options of a model needs neither.

    B samples, H W image, h w the map of a stage, C its channels, L tokens, P prompts, D width of the text
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from aml.errors import UserError
from aml.models import word_range
from aml.refer import words

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's pictures in [0, 1]: what Swin, CARIS and LAVT were trained with."""

SWINS = {
    "swin_test": ("swin_tiny_patch4_window7_224", {"embed_dim": 16, "depths": (1, 2, 1, 1), "num_heads": (1, 2, 4, 8)}),
    "swin_tiny": ("swin_tiny_patch4_window7_224", {}),
    "swin_small": ("swin_small_patch4_window7_224", {}),
    "swin_base": ("swin_base_patch4_window7_224", {}),
}
"""Size -> timm's name of it with windows of 7, and what differs from that."""
SWIN_BASE_12 = "swin_base_patch4_window12_384"
HUB_TAG = "ms_in22k"
"""The weights `pretrained: true` fetches: ImageNet-22k, as CARIS and LAVT start from."""
TABLE = "relative_position_bias_table"

PAD, UNKNOWN, CLS, SEP, MASK = SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


# ---- Swin -----------------------------------------------------------------------------------------------------------


class Swin(nn.Module):
    """Swin in four stages that can be walked one by one, and the norm that each stage's map gets where it leaves the encoder.

    As in segmentation code, windows keep their size and shift at every map size: a map is padded to whole windows first.
    """

    def __init__(self, size: str, window: int, drop_path: float, pretrained: bool | str):
        """pretrained: False, random; True, timm's weights from the hub; a FILE of Swin weights in the original or in timm's naming.

        UserError: unknown size, weights that cannot be had or do not fit.
        """
        super().__init__()
        self.window = window
        self.body = _body(size, window, drop_path, pretrained)
        self.channels = self.body.feature_info.channels()
        self.norms = nn.ModuleList([nn.LayerNorm(c) for c in self.channels])

    def embed(self, x):
        """x (B, 3, H, W) -> (B, H/4, W/4, C)"""
        return self.body["patch_embed"](x)

    def stage(self, i: int, x):
        """The map before stage i -> the map after it, (B, h, w, C), not normalised; stages 1 to 3 first halve its sides."""
        layer = self.body[f"layers_{i}"]
        x = layer.downsample(x)
        for block in layer.blocks:
            x = swin_block(block, x)
        return x

    def out(self, i: int, x):
        """Stage i's map normalised, channels first.   (B, h, w, C) -> (B, C, h, w)"""
        return self.norms[i](x).permute(0, 3, 1, 2)

    def forward(self, x) -> list[torch.Tensor]:
        """The four normalised maps at 1/4, 1/8, 1/16, 1/32, channels first."""
        x, maps = self.embed(x), []
        for i in range(4):
            x = self.stage(i, x)
            maps.append(self.out(i, x))
        return maps


def swin_block(block, x):
    """One of timm's blocks.   (B, h, w, C) -> the same

    The map is padded to whole windows before the windows are shifted, as in the segmentation code the published models were trained
    with; timm's own forward pads after the shift, which is another function where h or w is no multiple of the window.
    """
    _, h, w, _ = x.shape
    high, wide = block.window_size
    y = F.pad(block.norm1(x), (0, 0, 0, -w % wide, 0, -h % high))
    x = x + block.drop_path1(block._attn(y)[:, :h, :w])
    return x + block.drop_path2(block.mlp(block.norm2(x)))


def _body(size: str, window: int, drop_path: float, pretrained: bool | str):
    import timm

    name, changes = SWINS[size]
    if (size, window) == ("swin_base", 12):
        name = SWIN_BASE_12
    if pretrained is True and changes:
        raise UserError(f"model.backbone {size} has no published weights; set model.pretrained to false or to a file of its weights")
    how = {"features_only": True, "strict_img_size": False, "always_partition": True, "drop_path_rate": drop_path, "window_size": window}
    if pretrained is not True:
        body = timm.create_model(name, pretrained=False, **how, **changes)
        return load_swin(body, window, Path(pretrained)) if pretrained else body
    try:
        return timm.create_model(f"{name}.{HUB_TAG}", pretrained=True, **how)
    except Exception as error:  # the hub's client raises its own classes, those of its HTTP library, and OSError
        raise UserError(
            f"the weights of {name}.{HUB_TAG} cannot be fetched ({one_line(error)}); set model.pretrained to a file of Swin weights, or to false"
        ) from None


def load_swin(body, window: int, path: Path):
    """Weights of a file into timm's four stages; relative position tables of another window are interpolated.   -> body

    The original .pth names the layer that halves a map with the stage before it, timm with the stage after it; both are read.
    UserError names the first parameter that is missing or has another shape.
    """
    from timm.layers import resize_rel_pos_bias_table
    from timm.models import load_state_dict

    try:
        weights = load_state_dict(str(path))
        original = swin_name("layers_1.downsample.reduction.weight") in weights
    except Exception as error:  # a damaged or foreign file raises UnpicklingError, RuntimeError, EOFError, KeyError ...
        raise UserError(f"Swin weights {path} cannot be read ({one_line(error)}); give the .pth as published, or timm's safetensors") from None
    state = {}
    for key, own in body.state_dict().items():
        name = swin_name(key) if original else key.replace("layers_", "layers.")
        value = weights.get(name)
        if value is not None and key.endswith(TABLE) and value.shape != own.shape and value.shape[1:] == own.shape[1:] and square(value):
            value = resize_rel_pos_bias_table(value, (window, window), own.shape)
        state[key] = fitting(name, value, own, f"Swin weights {path}", "set model.backbone to the size the file is of")
    body.load_state_dict(state)
    return body


def swin_name(key: str) -> str:
    """What the original Swin code calls a parameter of timm's `features_only` model."""
    if ".downsample." in key:
        stage, rest = key.removeprefix("layers_").split(".", 1)
        return f"layers.{int(stage) - 1}.{rest}"
    return key.replace("layers_", "layers.")


def square(table) -> bool:
    """Whether a relative position table ((2n - 1)^2, heads) is of a square window."""
    return round(len(table) ** 0.5) ** 2 == len(table)


def fitting(name: str, value, own, where: str, remedy: str):
    """value, where it has own's shape. UserError otherwise."""
    if value is None:
        raise UserError(f"{where} hold no {name}; {remedy}")
    if value.shape != own.shape:
        raise UserError(f"{where} hold {name} of shape {tuple(value.shape)}, but the model's is {tuple(own.shape)}; {remedy}")
    return value


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


class Normalise(nn.Module):
    """(B, 3, H, W) uint8 -> float, ImageNet's mean at 0. Its two constants lie in no checkpoint."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", 255 * torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", 255 * torch.tensor(STD)[:, None, None], persistent=False)

    def forward(self, image):
        return (image.float() - self.mean) / self.std


# ---- BERT -----------------------------------------------------------------------------------------------------------


class Tokens:
    """Sentences to ids: [CLS] ... [SEP], cut to `length` and padded. A sentence too long loses its [SEP], as in CARIS and LAVT."""

    def __init__(self, tokenizer, length: int, by_words: bool):
        """tokenizer: of the tokenizers library. by_words: sentences are cut into the data set's words before."""
        self.tokenizer, self.length, self.by_words = tokenizer, length, by_words
        self.special = tuple(tokenizer.token_to_id(t) for t in (PAD, CLS, SEP, MASK))
        if None in self.special:
            raise UserError(f"the tokenizer of model.text lacks one of {PAD}, {CLS}, {SEP}, {MASK}; give a BERT's")
        self.pad, self.cls, self.sep, self.mask = self.special
        self.word_ids = word_range(self.special, tokenizer.get_vocab_size())

    def __call__(self, sentences: list[str]):
        """list of str -> tokens (B, L) int64, token_mask (B, L) bool"""
        tokens = torch.full((len(sentences), self.length), self.pad)
        mask = torch.zeros_like(tokens, dtype=torch.bool)
        for i, sentence in enumerate(sentences):
            text = " ".join(words(sentence)) if self.by_words else sentence
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

    rates = {"hidden_dropout_prob": options.dropout, "attention_probs_dropout_prob": options.dropout}
    by_words = options.text == "words"
    if assets or by_words:
        tokenizer = Tokenizer.from_str(assets["tokenizer"]) if assets else word_tokenizer(vocabulary)
        config = BertConfig.from_dict(assets["bert"] if assets else _config_of_words(options, tokenizer.get_vocab_size()))
        config.update(rates)
        model = BertModel(config, add_pooling_layer=False)
    else:
        model, tokenizer = _pretrained_bert(options.text, rates)
    if options.max_tokens > model.config.max_position_embeddings:
        raise UserError(
            f"model.max_tokens is {options.max_tokens}, but {options.text} reads {model.config.max_position_embeddings} tokens at most; lower it"
        )
    config = {k: v for k, v in model.config.to_dict().items() if k != "_name_or_path"}  # where it lay says nothing of it
    return model, Tokens(tokenizer, options.max_tokens, by_words), {"bert": config, "tokenizer": tokenizer.to_str()}


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
            raise UserError(f"model.text {name} is a {config.model_type}, not a BERT; give a BERT's hub name or folder, or words")
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
    attend = create_bidirectional_mask(config=model.config, inputs_embeds=x, attention_mask=token_mask, allow_is_bidirectional_skip=False)
    return model.encoder(x, attention_mask=attend).last_hidden_state[:, :length]


# ---- what the options of these models have in common ----------------------------------------------------------------


def check(options) -> None:
    """UserError for values of the shared options that cannot mean anything."""
    from difflib import get_close_matches

    if options.backbone not in SWINS:
        near = get_close_matches(str(options.backbone), SWINS, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(f"model.backbone is {options.backbone!r}{hint}; known: {', '.join(SWINS)}")
    if not isinstance(options.pretrained, (bool, str)) or options.pretrained == "":
        raise UserError(f"model.pretrained is {options.pretrained!r}; it must be true, false or the path of a weights file")
    if not isinstance(options.text, str) or not options.text:
        raise UserError(f"model.text is {options.text!r}; it must be a hub name, a folder, or words")
    if options.window < 2 or options.text_layers < 1 or options.max_tokens < 3:
        raise UserError(
            f"model.window {options.window}, text_layers {options.text_layers}, max_tokens {options.max_tokens}: "
            "window must be at least 2, text_layers 1, max_tokens 3"
        )
    if options.text_width < 1 or options.text_heads < 1 or options.text_width % options.text_heads:
        raise UserError(f"model.text_width {options.text_width} must be a multiple of model.text_heads {options.text_heads}")
    if not 0 <= options.dropout < 1 or not 0 <= options.drop_path < 1:
        raise UserError(f"model.dropout {options.dropout} and model.drop_path {options.drop_path} must lie in [0, 1)")


def undecayed(model, *parts: str) -> tuple[str, ...]:
    """Names of the parameters that contain one of `parts`: norms and biases, being 1-d, are never decayed anyway."""
    return tuple(name for name, _ in model.named_parameters() if any(part in name for part in parts))
