"""Options of SAM 3."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from aml.errors import UserError
from aml.models.options.base import WORDS, Fraction, Options, Tokens
from aml.schema import Layers, Text, Width, leaf

Trains = Literal["frozen", "lora", "trained"]


class Sam3Options(Options):
    """Holds the options of SAM 3.

    The sizes are those of facebook/sam3 and are read with `weights: words` only.
    """

    name: ClassVar[str] = "sam3"
    built_by: ClassVar[str] = "aml.models.sam3:Sam3"
    image_multiple: ClassVar[int] = 14
    of_parts: ClassVar[bool] = True

    weights: Text = leaf(
        "A hub name, a folder in Hugging Face format, or words for random weights with the data "
        "set's words as tokens; the hub gives facebook/sam3 to those who accepted its licence.",
        "facebook/sam3",
    )
    vision: Trains = leaf(
        "What of the vision encoder trains: frozen nothing, lora low-rank matrices beside its "
        "queries and values, trained all of it; a gradient through it costs most of a step.",
        "frozen",
    )
    text: Trains = leaf(
        "What of the text encoder trains: frozen nothing, lora low-rank matrices beside its "
        "queries and values, trained all of it.",
        "frozen",
    )
    lora_rank: Annotated[int, Field(ge=1, le=1024)] = leaf(
        "Rank of the matrices where vision or text is lora.", 8, unit="channels"
    )
    max_tokens: Tokens = leaf(
        "Tokens of a sentence, start and end among them; longer ones are cut.", 32, unit="tokens"
    )
    dropout: Fraction = leaf(
        "Share of values that dropout leaves out where pictures and words are joined.",
        0.1,
        unit="share",
    )
    width: Width = leaf("Width of the vision encoder.", 1024, unit="channels")
    layers: Layers = leaf(
        "Layers of the vision encoder; a multiple of 4, its stages, the last layer of each of "
        "which attends to the whole picture.",
        32,
        unit="layers",
    )
    heads: Layers = leaf("Heads of the vision encoder.", 16, unit="heads")
    window: Annotated[int, Field(ge=2, le=64)] = leaf(
        "Side of the windows that the other layers attend within.", 24, unit="places"
    )
    text_width: Width = leaf("Width of the text encoder.", 1024, unit="channels")
    text_layers: Layers = leaf("Layers of the text encoder.", 24, unit="layers")
    text_heads: Layers = leaf("Heads of the text encoder.", 16, unit="heads")
    reduce: Width = leaf(
        "Width of the maps and layers behind the encoders; a multiple of 8, their heads.",
        256,
        unit="channels",
    )
    joint_layers: Layers = leaf("Layers that join pictures and words.", 6, unit="layers")
    feed: Width = leaf("Inner width of the feed-forward parts of these.", 2048, unit="channels")

    @model_validator(mode="after")
    def _check_together(self):
        if self.weights != WORDS:
            return self
        if self.layers % 4 or self.reduce % 8:
            raise UserError(
                f"model.layers {self.layers} must be a multiple of 4 and model.reduce "
                f"{self.reduce} of 8; change them"
            )
        if self.width % (4 * self.heads) or self.text_width % self.text_heads:
            raise UserError(
                f"model.width {self.width} must be a multiple of 4 times model.heads "
                f"{self.heads}, text_width {self.text_width} of text_heads {self.text_heads}; "
                "change them"
            )
        return self
