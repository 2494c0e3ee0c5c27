"""SAM 3 with one mask for a sentence: a frozen vision and text encoder and a trained decoder.

Carion et al., SAM 3: Segment Anything with Concepts, 2025; modules and weights of transformers
(`Sam3Model`, facebook/sam3). Their arithmetic is run from here, so that a picture of any shape is
read (the layers that attend to the whole picture know a fixed number of places there), is encoded
once for all sentences, and nothing runs that no mask needs.

SAM 3 gives a phrase two answers: a mask and a score for each of 200 queries, and one map of all
that the phrase names, from its semantic head. The mask here is that map. A sentence has one target,
which may be several objects, and losses and metrics take one map, from which each trained parameter
gets a gradient. The choice of the best-scored query has none, and the boxes that steer what queries
attend to learn from boxes, not from masks. Queries, boxes and the prompts other than text are left
out, 23 of 840 million parameters.

    B samples, h w patches, C width of the vision encoder, D width behind it, L tokens, T width of
    the text encoder
"""

from contextlib import nullcontext
from importlib.util import find_spec
from typing import Any

import torch

from aml.errors import UserError
from aml.models.base import Features, Model
from aml.models.encoders.clip_text import (
    END,
    PAD,
    START,
    check_length,
    clip_tokens,
    config_assets,
    freeze,
    roles,
    text_states,
)
from aml.models.encoders.pretrained import read_weights
from aml.models.options import WORDS, Sam3Options
from aml.models.options.base import Traits, traits_of

GREY = 0.5
"""Mean and spread of pictures in [0, 1] that SAM 3 takes."""

CONTEXT = 32
"""Places of its text encoder."""

HEADS = 8
"""Heads of the layers behind the encoders."""


class Sam3(Model):
    """SAM 3, see the module. Alignment is read from:

    - encoder: patches and tokens as the two encoders give them (widths C and T, equal as
      published);
    - joint: the queries of the places and the keys of the tokens that the first layer of the
      decoder multiplies (width D, all heads), which SAM 3 learned for phrases;
    - prediction: the sigmoid of the logits.

    The maps of `encode` are the pyramid at 4, 2 and 1 places to a patch and side, (B, D, ., .), and
    the patches (B, C, h, w). Logits have 4 places to a patch and side.
    """

    name, sources = Sam3Options.name, Sam3Options.sources
    image_multiple, fuses = Sam3Options.image_multiple, Sam3Options.fuses
    drops = Sam3Options.drops

    def __init__(self, options: Sam3Options, vocabulary: list[str], assets: dict | None = None):
        super().__init__(options, vocabulary, assets)
        self.traits(options)
        self.tokens = clip_tokens(self, options.weights, "weights")
        network = self._network()
        check_length(options.max_tokens, network.config.text_config, "weights")
        self.assets = {"config": config_assets(network.config), "tokenizer": self.tokens.assets}
        self.take_tokens(self.tokens)
        self.image_multiple = network.config.vision_config.backbone_config.patch_size
        self._add_parts(network)
        self.encoders = tuple(
            f"{part}." for part in ("vision", "text") if getattr(options, part) == "trained"
        )
        self.no_decay = tuple(
            name for name, _ in self.named_parameters() if "position_embedding" in name
        )

    @classmethod
    def traits(cls, options: Sam3Options) -> Traits:
        """Return what settings are checked against, before the model is built.

        Raises:
            UserError: LoRA without peft.
        """
        if "lora" in (options.vision, options.text) and find_spec("peft") is None:
            raise UserError(
                "model.vision or model.text is lora, but the package peft is not installed; "
                "install the extra lora (pip install '.[lora]'), or choose frozen or trained"
            )
        return traits_of(options, image_multiple=cls.image_multiple, drops=cls.drops)

    def _add_parts(self, network: Any) -> None:
        """Take from a `Sam3Model` what a mask needs."""
        options, vision = self.options, network.vision_encoder
        # SAM 3 makes a fourth map, half a place to a patch and side, and does not read it
        vision.neck.fpn_layers = vision.neck.fpn_layers[:3]
        self.vision = prepared(vision, options.vision, options.lora_rank)
        self.text = prepared(network.text_encoder.text_model, options.text, options.lora_rank)
        self.text_projection, self.joint = network.text_projection, network.detr_encoder
        masks = network.mask_decoder
        self.prompt_norm, self.prompt_attention = (
            masks.prompt_cross_attn_norm,
            masks.prompt_cross_attn,
        )
        self.pixels, self.semantic = masks.pixel_decoder, masks.semantic_projection
        # two maps are larger than the patches; a third layer would never run
        for layers in (self.pixels.conv_layers, self.pixels.norms):
            del layers[2:]
        for layer in self.joint.layers:
            layer.dropout.p = options.dropout

    def train(self, mode: bool = True):
        super().train(mode)
        for part in ("vision", "text"):
            if getattr(self.options, part) == "frozen":
                getattr(self, part).eval()
        return self

    def normalise(self, image):
        return (image.float() / 255 - GREY) / GREY

    def tokenise(self, sentences: list[str]):
        return self.tokens(sentences)

    def encode(self, x):
        with self._gradient("vision"):
            states = self._patches(x)
            return [*(layer(states) for layer in self.vision.neck.fpn_layers), states]

    def decode(self, maps, tokens, token_mask):
        fine, middle, coarse, _ = maps
        places, prompt = coarse.flatten(2).mT, self.text_projection(self._states(tokens))
        position, read = self._position(coarse), token_mask[:, None, None]
        for layer in self.joint.layers:
            places = layer(places, prompt, position, prompt_cross_attn_mask=read)
        attended, _ = self.prompt_attention(
            self.prompt_norm(places), prompt, prompt, attention_mask=read
        )
        whole = (places + attended).mT.unflatten(2, coarse.shape[2:])
        return self.semantic(self.pixels([fine, middle, whole]))[:, 0]

    @torch.no_grad()
    def features(self, x, tokens, token_mask, upto: str, maps=None) -> Features:
        *_, coarse, visual = self.encode(x) if maps is None else maps
        text = self._states(tokens)
        if upto == "joint":
            layer, places = self.joint.layers[0], coarse.flatten(2).mT
            normed = layer.layer_norm1(places)
            with_position = normed + self._position(coarse)
            places = places + layer.self_attn(with_position, with_position, normed)[0]
            queries = layer.cross_attn.q_proj(layer.layer_norm2(places))
            visual = queries.mT.unflatten(2, coarse.shape[2:])
            text = layer.cross_attn.k_proj(self.text_projection(text))
        return Features(visual, text, *roles(token_mask))

    def _gradient(self, part: str) -> Any:
        """Return a context without gradient where an encoder is frozen."""
        return torch.no_grad() if getattr(self.options, part) == "frozen" else nullcontext()

    def _states(self, tokens):
        """Return the text encoder's states, (B, L, T)."""
        with self._gradient("text"):
            return text_states(self.text, tokens)

    def _position(self, coarse):
        """Return the sines and cosines of the places of a map, (1, h*w, D)."""
        shape = coarse[:1].shape
        return self.vision.neck.position_encoding(shape, coarse.device, coarse.dtype).flatten(2).mT

    def _patches(self, x):
        """Return the patches as the vision transformer gives them, (B, C, h, w)."""
        h, w = self.patch_grid(x)
        transformer = self.vision.backbone
        states = transformer.layer_norm(transformer.embeddings(x).unflatten(1, (h, w)))
        places = global_places(h, w, transformer.config.window_size, x.device)
        for layer in transformer.layers:
            states = run_layer(layer, states, places)
        return states.permute(0, 3, 1, 2)

    def _network(self):
        from transformers import Sam3Config, Sam3Model

        if not self.assets and self.options.weights != WORDS:
            return read_weights(Sam3Model, self.options.weights, "weights", ("sam3", "sam3_video"))
        if self.assets:
            return Sam3Model(Sam3Config.from_dict(self.assets["config"]))
        network = Sam3Model(random_config(self.options, len(self.tokens)))
        for module in network.modules():
            # transformers draws for the published widths, which leaves small ones near zero
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
        return network


def prepared(encoder: Any, how: str, rank: int) -> Any:
    """Return an encoder of which nothing, low-rank matrices (LoRA, by peft) or all trains.

    LoRA: Hu et al., 2021; beside the projections of queries and values, as published, with a scale
    of 1.
    """
    if how == "frozen":
        return freeze(encoder)
    if how == "lora":
        from peft import LoraConfig, inject_adapter_in_model

        settings = LoraConfig(r=rank, lora_alpha=rank, target_modules=["q_proj", "v_proj"])
        return inject_adapter_in_model(settings, encoder)
    return encoder


def global_places(h: int, w: int, window: int, device: Any) -> torch.Tensor:
    """Return column and row of each place for the layers that attend to the whole, (h*w, 2).

    As in transformers, the longer side spans a window's side, whatever the number of places:
    that of the published 72 x 72 places are thirds of a window's.
    """
    rows, columns = torch.meshgrid(
        torch.arange(h, device=device), torch.arange(w, device=device), indexing="ij"
    )
    return torch.stack([columns.flatten(), rows.flatten()], 1) * (window / max(h, w))


def run_layer(layer: Any, states: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Return the output of a layer of the vision transformer, (B, h, w, C).

    Args:
        layer: A `Sam3ViTLayer`.
        states: (B, h, w, C).
        places: (h*w, 2), of the layers without windows; those with know their own.
    """
    from transformers.models.sam3.modeling_sam3 import window_partition, window_unpartition

    size, shape = layer.window_size, states.shape[1:3]
    y, padded = layer.layer_norm1(states), (0, 0)
    if size:
        y, padded = window_partition(y, size)
        places = layer.position_ids
    y, _ = layer.attention(y, layer.rotary_emb(y, places))
    if size:
        y = window_unpartition(y, size, padded, tuple(shape))
    states = states + y
    return states + layer.dropout(layer.mlp(layer.layer_norm2(states)))


def random_config(options: Sam3Options, tokens: int) -> Any:
    """Return the configuration of `weights: words`, facebook/sam3 of the options' sizes.

    What no mask needs is as small as it can be.
    """
    from transformers import Sam3Config

    stage = options.layers // 4
    backbone = {
        "model_type": "sam3_vit_model",
        "hidden_size": options.width,
        "intermediate_size": options.width * 37 // 8,
        "num_hidden_layers": options.layers,
        "num_attention_heads": options.heads,
        "window_size": options.window,
        "pretrain_image_size": options.window * Sam3.image_multiple,
        "image_size": options.window * Sam3.image_multiple,
        "patch_size": Sam3.image_multiple,
        "global_attn_indexes": list(range(stage - 1, options.layers, stage)),
    }
    text = {
        "model_type": "clip_text_model",
        "hidden_size": options.text_width,
        "intermediate_size": 4 * options.text_width,
        "num_hidden_layers": options.text_layers,
        "num_attention_heads": options.text_heads,
        "vocab_size": tokens,
        "max_position_embeddings": CONTEXT,
        "projection_dim": 1,
        "hidden_act": "gelu",
        "pad_token_id": PAD,
        "bos_token_id": START,
        "eos_token_id": END,
    }
    behind = {
        "hidden_size": options.reduce,
        "intermediate_size": options.feed,
        "num_attention_heads": HEADS,
    }
    return Sam3Config(
        vision_config={"backbone_config": backbone, "fpn_hidden_size": options.reduce},
        text_config=text,
        geometry_encoder_config=behind | {"num_layers": 1, "roi_size": 1},
        detr_encoder_config=behind | {"num_layers": options.joint_layers},
        detr_decoder_config=behind | {"num_layers": 1, "num_queries": 1},
        mask_decoder_config={"hidden_size": options.reduce, "num_attention_heads": HEADS},
    )
