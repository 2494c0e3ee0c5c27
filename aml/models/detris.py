"""DETRIS-like: frozen DINOv2 and frozen CLIP text, joined by small adapters.

After DETRIS (Huang et al., AAAI 2025). Beside the MLP of every other block stands a bottleneck
whose three convolutions (reach 1, 3, 5) each read all before them; in the visual blocks its places
then
read the encoded sentence. Three visual levels, gated by the sentence, meet in a neck; in a
transformer decoder places read the words; logits come from a 3x3 kernel that the sentence makes.
Only these parts train.

Differences from the published model: GroupNorm for BatchNorm in neck and head, no norm in the
adapters, whose input the block's own LayerNorm has normalised (published for the text: before that
norm); adapters start at zero output; padding is never read; attention over the one sentence vector,
which is a linear map, is written as one.

    B samples, L tokens, h w patches, C_v C_t widths of the two encoders, C of neck and decoder
"""

from typing import cast

import torch
from torch import nn

from aml.errors import UserError
from aml.models.base import Features, Model
from aml.models.decoders.detris import (
    SHARE,
    DecoderLayer,
    Head,
    Neck,
    TextAdapter,
    VisualAdapter,
    positions_1d,
    positions_2d,
)
from aml.models.encoders.clip_text import (
    END,
    PAD,
    START,
    check_length,
    clip_tokens,
    config_assets,
    freeze,
    pool,
    roles,
    text_states,
)
from aml.models.encoders.dino import adapted_states, build_backbone
from aml.models.encoders.pretrained import read_weights
from aml.models.options import WORDS, DetrisOptions

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Mean and spread of CLIP, as published, for DINOv2 too."""


class Detris(Model):
    """DETRIS-like, see the module. The class is long since it holds the whole network.

    Words are fused into the visual encoder by its adapters, so there is no encode without a
    sentence. Alignment is read from:

    - encoder: the last visual block's patches after the final norm, words already read, and the
      text encoder's output (C_v and C_t);
    - joint: the queries of the places and the keys of the tokens that the first visual adapter's
      attention multiplies (equal widths, all heads): before it no word has touched the picture.
      Stage 1 then runs the text encoder and adapter_every // 2 + 1 blocks;
    - prediction: the sigmoid of the logits.
    """

    name, sources = DetrisOptions.name, DetrisOptions.sources
    image_multiple, fuses = DetrisOptions.image_multiple, DetrisOptions.fuses

    def __init__(self, options: DetrisOptions, vocabulary: list[str], assets: dict | None = None):
        super().__init__(options, vocabulary, assets)
        self.tokens, self.text = self._text_encoder()
        self.visual = freeze(build_backbone(options, read=not self.assets))
        self.assets = {
            "text": config_assets(self.text.config),
            "tokenizer": self.tokens.assets,
            "backbone": options.backbone,
        }
        self.image_multiple = self.visual.patch_embed.patch_size[0]
        self.take_tokens(self.tokens)
        c_v, c_t, blocks = (
            self.visual.embed_dim,
            self.text.config.hidden_size,
            len(self.visual.blocks),
        )
        self.first = options.adapter_every // 2
        self.levels = (blocks // 3, 2 * blocks // 3)
        if self.first >= blocks or self.levels[0] == self.levels[1]:
            raise UserError(
                f"model.backbone {options.backbone} has {blocks} blocks, but adapter_every "
                f"{options.adapter_every} starts at block {self.first} and three levels are read; "
                "take a deeper one, or a smaller adapter_every"
            )
        self.visual_adapters = nn.ModuleDict(
            {
                str(i): VisualAdapter(c_v, c_t, options)
                for i in range(self.first, blocks, options.adapter_every)
            },
        )
        self.text_adapters = nn.ModuleDict(
            {
                str(i): TextAdapter(c_t, options)
                for i in range(1, self.text.config.num_hidden_layers, 2)
            }
        )
        c_s = self.text.config.projection_dim
        self.neck = Neck(c_v, c_s, options)
        self.decoder = nn.ModuleList([DecoderLayer(c_t, options) for _ in range(options.layers)])
        self.norm = nn.LayerNorm(options.width)
        self.head = Head(c_s, options)
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(STD)[:, None, None], persistent=False)

    def train(self, mode: bool = True):
        super().train(mode)
        self.text.eval()
        self.visual.eval()
        return self

    def normalise(self, image):
        return (image.float() / 255 - self.mean) / self.std

    def tokenise(self, sentences: list[str]):
        return self.tokens(sentences)

    def forward(  # type: ignore[override]  # no maps before the words, so neither visible nor upto
        self, x: torch.Tensor, tokens: torch.Tensor, token_mask: torch.Tensor
    ) -> torch.Tensor:
        """Return logits (B, h, w)."""
        text = self._read(tokens, token_mask)
        sentence = self.text.text_projection(pool(text, token_mask))
        grid = self.patch_grid(x)
        levels = [m.mT.unflatten(2, grid) for m in self._look(x, text, token_mask)]
        places = self.neck(levels, sentence).flatten(2).mT
        at, order = positions_2d(grid, places), positions_1d(text)
        for layer in self.decoder:
            places = layer(places, text, at, order, token_mask)
        return self.head(self.norm(places).mT.unflatten(2, grid), sentence)

    def features(  # type: ignore[override]  # no maps before the words
        self, x: torch.Tensor, tokens: torch.Tensor, token_mask: torch.Tensor, upto: str
    ) -> Features:
        """Return what alignment is computed from, see the class."""
        text = self._read(tokens, token_mask)
        if upto == "joint":
            y = adapted_states(self.visual, x, stop=self.first)
            first = cast(VisualAdapter, self.visual_adapters[str(self.first)])
            visual, text = first.joint(y, self.patch_grid(x), text)
        else:
            visual = self._look(x, text, token_mask)[-1]
        return Features(visual.mT.unflatten(2, self.patch_grid(x)), text, *roles(token_mask))

    def _read(self, tokens, token_mask):
        """Return the states of the sentence's tokens, (B, L, C_t)."""

        def beside(i, y):
            return (
                SHARE * self.text_adapters[str(i)](y, token_mask)
                if str(i) in self.text_adapters
                else None
            )

        return text_states(self.text.text_model, tokens, beside)

    def _look(self, x, text, token_mask) -> list:
        """Return patches of two inner blocks and, normed, of the last, 3 x (B, h*w, C_v)."""
        grid = self.patch_grid(x)

        def beside(i, y):
            return (
                SHARE * self.visual_adapters[str(i)](y, grid, text, token_mask)
                if str(i) in self.visual_adapters
                else None
            )

        return adapted_states(self.visual, x, beside, levels=self.levels)

    def _text_encoder(self):
        """Return the tokens and the frozen CLIPTextModelWithProjection."""
        from transformers import CLIPTextConfig, CLIPTextModelWithProjection

        options = self.options
        tokens = clip_tokens(self, options.text, "text")
        if self.assets:
            model = CLIPTextModelWithProjection(CLIPTextConfig.from_dict(self.assets["text"]))
        elif options.text == WORDS:
            sizes = {
                "hidden_size": options.text_width,
                "intermediate_size": 4 * options.text_width,
                "projection_dim": options.text_width,
            }
            sizes |= {
                "num_hidden_layers": options.text_layers,
                "num_attention_heads": options.text_heads,
                "vocab_size": len(tokens),
            }
            model = CLIPTextModelWithProjection(
                CLIPTextConfig(**sizes, pad_token_id=PAD, bos_token_id=START, eos_token_id=END)
            )
        else:
            model = read_weights(
                CLIPTextModelWithProjection, options.text, "text", ("clip", "clip_text_model")
            )
        check_length(options.max_tokens, model.config, "text")
        return tokens, freeze(model)
