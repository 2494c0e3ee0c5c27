"""Options of the networks that are one piece each."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field, model_validator

from aml.errors import UserError
from aml.models.options.base import WORDS, Fraction, Options, Tokens, Weights
from aml.schema import Layers, Side, Text, Width, leaf, shown

BERT = "bert-base-uncased"
"""The text encoder of CARIS and LAVT as published, on the hub."""


class SmallOptions(Options):
    """Holds the options of the small model, which learns from scratch on a CPU."""

    name: ClassVar[str] = "small"
    built_by: ClassVar[str] = "aml.models.small:Small"
    image_multiple: ClassVar[int] = 16

    width: Width = leaf(
        "Width of the 1/8 and 1/16 maps, of words and of attention; a multiple of heads and of 8.",
        192,
        unit="channels",
    )
    stem: Width = leaf("Width of the 1/4 map; a multiple of 8.", 64, unit="channels")
    blocks: Layers = leaf("Residual blocks of a stage.", 1, unit="blocks")
    layers: Annotated[int, Field(ge=2, le=1000)] = leaf(
        "Layers of cross-attention.", 2, unit="layers"
    )
    heads: Layers = leaf("Heads of attention.", 4, unit="heads")
    max_words: Annotated[int, Field(ge=1, le=4096)] = leaf(
        "Words of a sentence; longer ones are cut.", 20, unit="words"
    )
    dropout: Fraction = leaf("Share of values that dropout leaves out.", 0.1, unit="share")

    @model_validator(mode="after")
    def _check_together(self):
        if self.width % 8 or self.stem % 8 or self.width % self.heads:
            raise UserError(
                f"model.width {self.width} and model.stem {self.stem} must be multiples of 8, "
                f"and width of model.heads {self.heads}; change them"
            )
        return self


SwinName = Literal["swin_test", "swin_tiny", "swin_small", "swin_base"]


class SwinBertOptions(Options):
    """Holds the options of the encoders that CARIS and LAVT share; each has its `backbone`."""

    image_multiple: ClassVar[int] = 32

    window: Annotated[int, Field(ge=2, le=64)] = leaf("Side of Swin's windows.", 7, unit="places")
    pretrained: Weights = leaf(
        "Swin's weights: true takes ImageNet-22k from the hub, a file the original .pth or "
        "timm's, false random ones.",
        True,
    )
    text: Text = leaf(
        "A BERT: a hub name, a folder in Hugging Face format, or words for a random one that "
        "knows the data set's words.",
        BERT,
    )
    text_width: Width = leaf("Width of a BERT of text words.", 768, unit="channels")
    text_layers: Layers = leaf("Layers of a BERT of text words.", 12, unit="layers")
    text_heads: Layers = leaf("Heads of a BERT of text words.", 12, unit="heads")
    max_tokens: Tokens = leaf("Tokens of a sentence; longer ones are cut.", 20, unit="tokens")
    dropout: Fraction = leaf("Dropout of BERT; nothing else has any.", 0.1, unit="share")
    drop_path: Fraction = leaf(
        "Largest share of samples for which a residual branch of Swin is left out.",
        0.3,
        unit="share",
    )

    @model_validator(mode="after")
    def _check_text(self):
        if self.text_width % self.text_heads:
            raise UserError(
                f"model.text_width {self.text_width} must be a multiple of model.text_heads "
                f"{self.text_heads}; change one of them"
            )
        return self


class CarisOptions(SwinBertOptions):
    """Holds the options of CARIS; the defaults are the published model."""

    name: ClassVar[str] = "caris"
    built_by: ClassVar[str] = "aml.models.caris:Caris"
    of_parts: ClassVar[bool] = True

    @classmethod
    def needs_lookup(cls, given: Mapping[str, Any]) -> bool:
        """Return whether a part is another than the published ones, which need no library."""
        has_swin = given.get("backbone", "swin_base") in get_args(SwinName)
        return not (has_swin and given.get("text", BERT) in (BERT, WORDS))

    backbone: Text = leaf(
        "swin_tiny, swin_small, swin_base, or swin_test for tests; or a timm backbone with maps at "
        "1/4, 1/8, 1/16 and 1/32, with its tag where pretrained is to mean that one.",
        "swin_base",
    )
    pretrained: Weights = leaf(
        "Swin's weights: true takes ImageNet-22k from the hub, a file the original .pth or "
        "timm's, false random ones; of a timm backbone true takes timm's from the hub, a file "
        "weights under timm's names, package an installed package's.",
        True,
    )
    text: Text = leaf(
        "A BERT: a hub name, a folder in Hugging Face format, or words for a random one that "
        "knows the data set's words; or another text encoder of transformers that puts a token in "
        "front of a sentence, whose dropout is its own.",
        BERT,
    )

    width: Width = leaf(
        "Width of the decoder; a multiple of heads, of 4 and of 32 (or below 32).",
        256,
        unit="channels",
    )
    inner: Width = leaf(
        "Width of attention between words and pixels, and of the feed-forward layers.",
        1024,
        unit="channels",
    )
    heads: Layers = leaf("Heads of the decoder.", 8, unit="heads")
    layers: Layers = leaf("Layers of the decoder.", 6, unit="layers")

    @model_validator(mode="after")
    def _check_together(self):
        odd = self.width % self.heads or self.inner % self.heads or self.width % 4
        if odd or (self.width > 32 and self.width % 32):
            raise UserError(
                f"model.width {self.width} and model.inner {self.inner} must be multiples of "
                f"model.heads {self.heads}, width of 4 and, above 32, of 32 as well; change them"
            )
        return self


class LavtOptions(SwinBertOptions):
    """Holds the options of LAVT; the defaults are the published model, but for `norm`."""

    name: ClassVar[str] = "lavt"
    built_by: ClassVar[str] = "aml.models.lavt:Lavt"
    fuses: ClassVar[bool] = True

    backbone: SwinName = leaf("Size of Swin; swin_test is for tests.", "swin_base")
    window: Annotated[int, Field(ge=2, le=64)] = leaf("Side of Swin's windows.", 12, unit="places")
    text: Text = leaf(
        "A BERT: a hub name, a folder in Hugging Face format, or words for a random one that knows "
        "the data set's words; of a pretrained one the embeddings and the last two layers are not "
        "trained, as published.",
        BERT,
    )
    norm: Literal["group", "batch_frozen"] = leaf(
        "Norm of the decoder: group is GroupNorm, batch_frozen BatchNorm's scale and shift with "
        "fixed statistics, for published weights, which bring the statistics.",
        "group",
    )


class DetrisOptions(Options):
    """Holds the options of DETRIS-like; the defaults are DETRIS-B.

    DETRIS-L is vit_large_patch14_reg4_dinov2 with adapter_every 4.
    """

    name: ClassVar[str] = "detris"
    built_by: ClassVar[str] = "aml.models.detris:Detris"
    image_multiple: ClassVar[int] = 14
    fuses: ClassVar[bool] = True

    text: Text = leaf(
        "CLIP's text encoder: a hub name, a folder in Hugging Face format, or words for a random "
        "one with the data set's words as tokens.",
        "openai/clip-vit-base-patch16",
    )
    backbone: Text = leaf(
        "A timm vision transformer of plain blocks.", "vit_base_patch14_reg4_dinov2"
    )
    pretrained: Weights = leaf(
        "The backbone's weights: true takes timm's, a file timm's or DINOv2's own, false random "
        "ones.",
        True,
    )
    size: Side = leaf(
        "Side of the image the position embeddings are stored for, a multiple of the patch; "
        "others interpolate them.",
        448,
        unit="pixels",
    )
    vit_width: Width | None = leaf(
        "Width of the backbone; null is as its name says.", None, unit="channels"
    )
    vit_depth: Layers | None = leaf(
        "Blocks of the backbone; null is as its name says.", None, unit="blocks"
    )
    vit_heads: Layers | None = leaf(
        "Heads of the backbone; null is as its name says.", None, unit="heads"
    )
    text_width: Width = leaf("Width of a text encoder of words.", 512, unit="channels")
    text_layers: Layers = leaf("Layers of a text encoder of words.", 12, unit="layers")
    text_heads: Layers = leaf("Heads of a text encoder of words.", 8, unit="heads")
    max_tokens: Tokens = leaf(
        "Tokens of a sentence, start and end among them; longer ones are cut (published: 22 for "
        "RefCOCOg).",
        17,
        unit="tokens",
    )
    adapter_every: Layers = leaf(
        "Every so many-th visual block has an adapter, from block adapter_every // 2 on; of the "
        "text's blocks every second.",
        2,
        unit="blocks",
    )
    visual_adapter: Width = leaf(
        "Width of a visual adapter; a multiple of 16 and of heads.", 128, unit="channels"
    )
    text_adapter: Width = leaf("Width of a text adapter; a multiple of 16.", 64, unit="channels")
    width: Width = leaf(
        "Width of neck and decoder; a multiple of 8 and of heads.", 512, unit="channels"
    )
    layers: Layers = leaf("Layers of the decoder.", 3, unit="layers")
    heads: Layers = leaf("Heads of the decoder.", 8, unit="heads")
    feed: Width = leaf("Inner width of the decoder's feed-forward layers.", 512, unit="channels")
    dropout: Fraction = leaf("Share of values that dropout leaves out.", 0.1, unit="share")

    @model_validator(mode="after")
    def _check_together(self):
        if self.visual_adapter % 16 or self.visual_adapter % self.heads or self.text_adapter % 16:
            raise UserError(
                f"model.visual_adapter {self.visual_adapter} and text_adapter {self.text_adapter} "
                f"must be multiples of 16, the first of model.heads {self.heads} too; change them"
            )
        if self.width % 8 or self.width % self.heads:
            raise UserError(
                f"model.width {self.width} must be a multiple of 8 and of model.heads "
                f"{self.heads}; change one of them"
            )
        if self.text == WORDS and (self.text_width % self.text_heads or self.text_layers < 2):
            raise UserError(
                f"model.text_width {self.text_width} must be a multiple of model.text_heads "
                f"{self.text_heads}, text_layers {self.text_layers} at least 2; change them"
            )
        return self


class ClipSegOptions(Options):
    """Holds the options of CLIPSeg.

    The sizes are those of clipseg-rd64-refined and are read with `weights: words` only.
    """

    name: ClassVar[str] = "clipseg"
    built_by: ClassVar[str] = "aml.models.clipseg:ClipSeg"
    image_multiple: ClassVar[int] = 16
    drops: ClassVar[bool] = True

    weights: Text = leaf(
        "A hub name, a folder in Hugging Face format, or words for random weights with the data "
        "set's words as tokens.",
        "CIDAS/clipseg-rd64-refined",
    )
    max_tokens: Tokens = leaf(
        "Tokens of a sentence, start and end among them; longer ones are cut.", 77, unit="tokens"
    )
    dropout: Fraction = leaf("Dropout of the decoder's attention weights.", 0.0, unit="share")
    width: Width = leaf("Width of the visual transformer.", 768, unit="channels")
    layers: Layers = leaf("Layers of the visual transformer.", 12, unit="layers")
    heads: Layers = leaf("Heads of the visual transformer.", 12, unit="heads")
    size: Side = leaf(
        "Side of the image the position embeddings are made for; others interpolate them.",
        224,
        unit="pixels",
    )
    text_width: Width = leaf("Width of the text transformer.", 512, unit="channels")
    text_layers: Layers = leaf("Layers of the text transformer.", 12, unit="layers")
    text_heads: Layers = leaf("Heads of the text transformer.", 8, unit="heads")
    projection: Width = leaf(
        "Width of the space in which CLIP compares picture and sentence.", 512, unit="channels"
    )
    reduce: Width = leaf("Width of the decoder; a multiple of 4, its heads.", 64, unit="channels")
    feed: Width = leaf("Inner width of the decoder's feed-forward layers.", 2048, unit="channels")
    extract: Annotated[
        list[Annotated[int, Field(ge=0, le=999)]], Field(min_length=1, max_length=1000)
    ] = leaf("Visual layers the decoder reads, the first being 0.", [3, 6, 9], unit="layers")

    @model_validator(mode="after")
    def _check_together(self):
        if len(set(self.extract)) < len(self.extract):
            raise UserError(f"model.extract is {shown(self.extract)}; name each layer once")
        if self.weights != WORDS:
            return self
        uneven = self.width % self.heads or self.text_width % self.text_heads or self.reduce % 4
        if uneven:
            raise UserError(
                f"model.width {self.width}, text_width {self.text_width} and reduce {self.reduce} "
                f"must be multiples of heads {self.heads}, text_heads {self.text_heads} and 4; "
                "change them"
            )
        if max(self.extract) >= self.layers or self.size < self.image_multiple:
            raise UserError(
                f"model.extract {self.extract} with layers {self.layers}, size {self.size}: "
                "extract "
                f"must name layers from 0 to {self.layers - 1}, size must be at least "
                f"{self.image_multiple}; change them"
            )
        return self
