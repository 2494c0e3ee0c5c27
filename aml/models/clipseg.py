"""CLIPSeg: a frozen CLIP and a small trained decoder of three transformer layers over patches.

The sentence's embedding modulates the patches (FiLM). Lueddecke and Ecker, CVPR 2022; modules and
weights of transformers (CIDAS/clipseg-rd64-refined). Their arithmetic is run from here, layer by
layer: the decoder there puts patches back into a square, here into the grid they came from, so an
image of any shape is read as it is (position embeddings interpolated); no deeper CLIP layer runs
than the decoder reads; and the picture is encoded once for all sentences.

    B samples, C width of the visual transformer, h w patches, L tokens, P width of CLIP's joint
    space
"""

from collections.abc import Sequence
from typing import Any

import torch

from aml.models.base import Features, Model
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
from aml.models.encoders.pretrained import read_weights
from aml.models.encoders.visible import VisibleTokens, visible_tokens
from aml.models.options import WORDS, ClipSegOptions

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""CLIPSeg normalises as ImageNet models do, not as CLIP does."""

CONTEXT = 77
"""Places of CLIP's text transformer."""


class ClipSeg(Model):
    """CLIPSeg, see the module. Only the decoder trains; CLIP is frozen and stays in eval mode.

    Alignment is read from:

    - encoder: patches after the deepest visual layer the decoder reads, and the text transformer's
      output (widths may differ);
    - joint: both after the projections into the space in which CLIP compares them (width P). CLIP
      itself multiplies only the class token's and the end token's projections; here each patch and
      each token goes through the same two. It is the only product of picture and text in the model
      (the decoder modulates), and it lies behind all visual layers;
    - prediction: the sigmoid of the logits.

    The maps of `encode` are the patches (B, C, h, w) of each layer in `extract` and, last, those
    layers' class tokens stacked to (B, extract * C, 1, 1). `visible` hides patches; a class token
    has no place and stays whole.
    """

    name, sources = ClipSegOptions.name, ClipSegOptions.sources
    image_multiple, fuses = ClipSegOptions.image_multiple, ClipSegOptions.fuses
    drops = ClipSegOptions.drops

    def __init__(self, options: ClipSegOptions, vocabulary: list[str], assets: dict | None = None):
        super().__init__(options, vocabulary, assets)
        self.tokens = clip_tokens(self, options.weights, "weights")
        network = self._network()
        check_length(options.max_tokens, network.config.text_config, "weights")
        self.assets = {"config": config_assets(network.config), "tokenizer": self.tokens.assets}
        self.clip, self.decoder = freeze(network.clip), network.decoder
        self.extract = tuple(network.config.extract_layers)
        self.image_multiple = network.config.vision_config.patch_size
        self.take_tokens(self.tokens)
        for layer in self.decoder.layers:
            layer.self_attn.dropout = options.dropout
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(STD)[:, None, None], persistent=False)

    def train(self, mode: bool = True):
        super().train(mode)
        self.clip.eval()
        return self

    def normalise(self, image):
        return (image.float() / 255 - self.mean) / self.std

    def tokenise(self, sentences: list[str]):
        return self.tokens(sentences)

    def see(self, maps, visible):
        return [*super().see(maps[:-1], visible), maps[-1]]

    @torch.no_grad()
    def encode(self, x):
        return self._maps(self._visual(x, max(self.extract) + 1), self.patch_grid(x))

    @torch.no_grad()
    def encode_visible(self, x, visible):
        grid, seen = self.patch_grid(x), visible_tokens(visible, self.image_multiple, prefix=1)
        states = self._visual(x, max(self.extract) + 1, seen)
        return self._maps([seen.spread(s) for s in states], grid)

    def _maps(self, states, grid) -> list:
        """Return the maps of `encode` from the states after each layer, as `_visual` gives them."""
        picked = [states[i] for i in self.extract]
        return [
            *(as_map(s, grid) for s in picked),
            torch.cat([s[:, 0] for s in picked], 1)[:, :, None, None],
        ]

    def decode(self, maps, tokens, token_mask):
        *patches, classes = maps
        classes = classes[:, :, 0, 0].unflatten(1, (len(patches), -1))
        condition = self._condition(tokens, token_mask)
        x: Any = 0
        for i, (layer, reduce) in enumerate(
            zip(self.decoder.layers, self.decoder.reduces, strict=True)
        ):
            at = len(patches) - 1 - i  # the deepest first
            x = x + reduce(torch.cat([classes[:, at, None], patches[at].flatten(2).mT], 1))
            if i == self.decoder.conditional_layer:
                x = (
                    self.decoder.film_mul(condition)[:, None] * x
                    + self.decoder.film_add(condition)[:, None]
                )
            x = layer(x, attention_mask=None)
        return self.decoder.transposed_convolution(as_map(x, patches[0].shape[2:]))[:, 0]

    @torch.no_grad()
    def features(self, x, tokens, token_mask, upto: str, maps=None) -> Features:
        text = text_states(self.clip.text_model, tokens)
        if upto == "joint":
            states = self.clip.vision_model.post_layernorm(
                self._visual(x, len(self.clip.vision_model.encoder.layers))[-1]
            )
            visual, text = (
                as_map(self.clip.visual_projection(states), self.patch_grid(x)),
                self.clip.text_projection(text),
            )
        else:
            visual = (self.encode(x) if maps is None else maps)[
                self.extract.index(max(self.extract))
            ]
        return Features(visual, text, *roles(token_mask))

    @torch.no_grad()
    def _condition(self, tokens, token_mask):
        """Return the sentence's embedding in CLIP's joint space, (B, P)."""
        return self.clip.text_projection(
            pool(text_states(self.clip.text_model, tokens), token_mask)
        )

    def _visual(self, x, layers: int, seen: VisibleTokens | None = None) -> list:
        """Return the states after each of the first layers, layers x (B, 1 + h*w, C).

        The class token comes before the patches.

        Args:
            x: (B, 3, H, W) normalised images.
            layers: How many.
            seen: The K tokens that are read, whose states are returned; None: all.
        """
        visual, states = self.clip.vision_model, []
        state = visual.pre_layrnorm(visual.embeddings(x, interpolate_pos_encoding=True))
        bias = None
        if seen is not None:
            state = seen.gather(state)
            bias = seen.bias(state)
        for layer in visual.encoder.layers[:layers]:
            state = layer(state, attention_mask=bias)
            states.append(state)
        return states

    def _network(self):
        from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

        if not self.assets and self.options.weights != WORDS:
            return read_weights(
                CLIPSegForImageSegmentation, self.options.weights, "weights", ("clipseg",)
            )
        config = (
            CLIPSegConfig.from_dict(self.assets["config"])
            if self.assets
            else random_config(self.options, len(self.tokens))
        )
        network = CLIPSegForImageSegmentation(config)
        for module in network.decoder.modules():
            # transformers draws them with deviation 1, which makes logits in the hundreds
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
        return network


def as_map(states: torch.Tensor, grid: Sequence[int]) -> torch.Tensor:
    """Return the patches of states (B, 1 + h*w, C), class token first, as a map (B, C, h, w)."""
    return states[:, 1:].mT.unflatten(2, tuple(grid))


def random_config(options: ClipSegOptions, tokens: int) -> Any:
    """Return the configuration of `weights: words`, clipseg-rd64-refined of the options' sizes."""
    from transformers import CLIPSegConfig

    text = {
        "hidden_size": options.text_width,
        "intermediate_size": 4 * options.text_width,
        "num_hidden_layers": options.text_layers,
    }
    text |= {
        "num_attention_heads": options.text_heads,
        "vocab_size": tokens,
        "max_position_embeddings": CONTEXT,
    }
    text |= {"pad_token_id": PAD, "bos_token_id": START, "eos_token_id": END}
    visual = {
        "hidden_size": options.width,
        "intermediate_size": 4 * options.width,
        "num_hidden_layers": options.layers,
    }
    visual |= {
        "num_attention_heads": options.heads,
        "image_size": options.size,
        "patch_size": ClipSeg.image_multiple,
    }
    return CLIPSegConfig(
        text_config=text,
        vision_config=visual,
        projection_dim=options.projection,
        reduce_dim=options.reduce,
        decoder_intermediate_size=options.feed,
        extract_layers=list(options.extract),
        use_complex_transposed_convolution=True,
    )
