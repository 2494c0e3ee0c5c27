"""Options of the model that is put together from parts."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from aml.errors import UserError
from aml.models.options.base import Fraction, Options, Tokens
from aml.schema import Layers, Text, Width, leaf

PACKAGE = "package"
"""Names weights that an installed package holds, which takes no network."""

PRETRAINED = "pretrained"
"""Names the weights that timm fetches."""

RANDOM = "random"


class ComposeOptions(Options):
    """Holds the options of a model of any two encoders.

    The defaults are a pair whose weights two packages hold.
    """

    name: ClassVar[str] = "compose"
    built_by: ClassVar[str] = "aml.models.compose:Compose"
    of_parts: ClassVar[bool] = True
    image_multiple: ClassVar[int] = 32
    """That of the default backbone."""

    backbone: Text = leaf(
        "A timm backbone with features, with its tag where pretrained is to mean that one; or the "
        "vision tower of a SigLIP, as a folder in Hugging Face format or OWNER/NAME of the hub.",
        "tf_efficientnet_lite0",
    )
    backbone_weights: Text = leaf(
        "The backbone's weights: package takes an installed package's, pretrained timm's from the "
        "hub, or the SigLIP's own, random none; else the path of a weights file, or of a folder "
        "that holds one.",
        PACKAGE,
    )
    text: Text = leaf(
        "A text encoder: package takes MiniLM-L6 of an installed package; words is a small "
        "transformer from scratch over the data set's words; else a folder in Hugging Face "
        "format, or a hub name.",
        PACKAGE,
    )
    freeze: Annotated[list[Literal["backbone", "text"]], Field(max_length=2)] = leaf(
        "Which pretrained encoders stay as they are, backbone or text or both; one without "
        "pretrained weights is always trained.",
        ["text"],
    )
    max_tokens: Tokens = leaf(
        "Tokens of a sentence, start and end among them; longer ones are cut.", 24, unit="tokens"
    )
    width: Width = leaf(
        "Width of the 1/8 and 1/16 maps, of sentences and of attention; a multiple of heads and "
        "of 8.",
        128,
        unit="channels",
    )
    stem: Width = leaf("Width of the 1/4 map; a multiple of 8.", 48, unit="channels")
    layers: Layers = leaf("Layers of cross-attention.", 2, unit="layers")
    heads: Layers = leaf("Heads of attention.", 4, unit="heads")
    dropout: Fraction = leaf(
        "Share of values that dropout leaves out behind the encoders.", 0.1, unit="share"
    )

    @model_validator(mode="after")
    def _check_together(self):
        if self.width % 8 or self.stem % 8 or self.width % self.heads:
            raise UserError(
                f"model.width {self.width} and model.stem {self.stem} must be multiples of 8, "
                f"and width of model.heads {self.heads}; change them"
            )
        return self
