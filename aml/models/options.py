"""Options of the built-in models."""

from dataclasses import dataclass

from aml.errors import UserError
from aml.models.encoders import bert
from aml.models.encoders.clip_text import WORDS


@dataclass(frozen=True, kw_only=True)
class CarisOptions:
    """Options of CARIS; the defaults are the published model."""

    backbone: str = "swin_base"
    """swin_tiny, swin_small, swin_base; swin_test is for tests."""
    window: int = 7
    """Side of Swin's windows, places."""
    pretrained: bool | str = True
    """Swin's weights: true, ImageNet-22k from the hub; a file, the original .pth or timm's; false, random."""
    text: str = "bert-base-uncased"
    """A BERT: hub name, folder in Hugging Face format, or words: a random one that knows the data set's words."""
    text_width: int = 768
    """With text words only, as text_layers and text_heads: elsewhere the BERT says."""
    text_layers: int = 12
    text_heads: int = 12
    max_tokens: int = 20
    """Longer sentences are cut."""
    width: int = 256
    """Channels of the decoder; a multiple of heads, of 4 and of 32 (or below 32)."""
    inner: int = 1024
    """Width in which attention between words and pixels is computed, and of the feed-forward layers."""
    heads: int = 8
    layers: int = 6
    dropout: float = 0.1
    """Of BERT; nothing else has any."""
    drop_path: float = 0.3
    """Largest share of samples for which a residual branch of Swin is left out."""

    def __post_init__(self):
        bert.check(self)
        if (
            self.width % self.heads
            or self.inner % self.heads
            or self.width % 4
            or (self.width > 32 and self.width % 32)
        ):
            raise UserError(
                f"model.width {self.width} and model.inner {self.inner} must be multiples of model.heads {self.heads}, "
                "width of 4 and, above 32, of 32 as well"
            )
        if self.heads < 1 or self.layers < 1:
            raise UserError(
                f"model.heads {self.heads} and model.layers {self.layers} must be at least 1"
            )


@dataclass(frozen=True, kw_only=True)
class DetrisOptions:
    """Options of DETRIS-like; the defaults are DETRIS-B. DETRIS-L: vit_large_patch14_reg4_dinov2, adapter_every 4."""

    text: str = "openai/clip-vit-base-patch16"
    """CLIP text encoder: a hub name, a local folder in Hugging Face format, or words: random, the data set's words as tokens, no network."""
    backbone: str = "vit_base_patch14_reg4_dinov2"
    """A timm vision transformer of plain blocks."""
    pretrained: bool | str = True
    """Of the backbone. true: timm's weights. false: random. A path: that file, timm's or DINOv2's own."""
    size: int = 448
    """Side in pixels of the image the position embeddings are stored for; others interpolate them. A multiple of the patch."""
    vit_width: int | None = None
    vit_depth: int | None = None
    vit_heads: int | None = None
    """Replace the backbone's sizes; null: as its name says."""
    text_width: int = 512
    text_layers: int = 12
    text_heads: int = 8
    """Sizes of `text: words`, read there only."""
    max_tokens: int = 17
    """Tokens of a sentence, start and end among them; longer ones are cut. Published: 22 for RefCOCOg."""
    adapter_every: int = 2
    """Every so many-th visual block has an adapter, from block adapter_every // 2 on; of the text's blocks every second."""
    visual_adapter: int = 128
    """Bottleneck width; a multiple of 16 and of heads."""
    text_adapter: int = 64
    """A multiple of 16."""
    width: int = 512
    """Of neck and decoder; a multiple of 8 and of heads."""
    layers: int = 3
    """Of the decoder."""
    heads: int = 8
    feed: int = 512
    """Inner width of the decoder's feed-forward layers."""
    dropout: float = 0.1

    def __post_init__(self):
        if self.visual_adapter % 16 or self.visual_adapter % self.heads or self.text_adapter % 16:
            raise UserError(
                f"model.visual_adapter {self.visual_adapter} and text_adapter {self.text_adapter} must be multiples of 16, "
                f"the first of model.heads {self.heads} too"
            )
        if self.width % 8 or self.width % self.heads:
            raise UserError(
                f"model.width {self.width} must be a multiple of 8 and of model.heads {self.heads}"
            )
        if self.text == WORDS and (self.text_width % self.text_heads or self.text_layers < 2):
            raise UserError(
                f"model.text_width {self.text_width} must be a multiple of model.text_heads {self.text_heads}, text_layers {self.text_layers} at least 2"
            )
        if min(self.adapter_every, self.layers, self.feed) < 1 or not 0 <= self.dropout < 1:
            raise UserError(
                f"model.adapter_every {self.adapter_every}, layers {self.layers}, feed {self.feed}, dropout {self.dropout}: "
                "the first three must be at least 1, dropout in [0, 1)"
            )
