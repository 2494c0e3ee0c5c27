"""Hold what is known of photographed objects: their names, sizes and look-alikes.

The tables have COCO's 80 categories; a category of another file is called by its own name.
"""

import math
from collections.abc import Iterable
from dataclasses import replace

from aml.synthetic.expressions import TEMPLATES, Template
from aml.synthetic.grammar import SUPERLATIVES, Vocabulary
from aml.synthetic.meaning import Fact, Margins

SECOND_NAMES = {
    "airplane": "plane",
    "bicycle": "bike",
    "cell phone": "phone",
    "couch": "sofa",
    "dining table": "table",
    "handbag": "bag",
    "laptop": "computer",
    "motorcycle": "motorbike",
    "potted plant": "plant",
    "refrigerator": "fridge",
    "sports ball": "ball",
    "stop sign": "sign",
    "teddy bear": "teddy",
    "tennis racket": "racket",
    "tv": "television",
    "wine glass": "glass",
}
"""Category -> another name for it."""

LOOK_ALIKES = (
    ("bicycle", "motorcycle"),
    ("car", "truck", "bus", "train"),
    ("traffic light", "stop sign", "parking meter"),
    ("bench", "chair", "couch", "bed"),
    ("bear", "teddy bear", "dog", "cat"),
    ("horse", "cow", "sheep", "zebra"),
    ("backpack", "handbag", "suitcase"),
    ("frisbee", "sports ball"),
    ("skis", "snowboard", "surfboard", "skateboard"),
    ("baseball bat", "tennis racket"),
    ("bottle", "wine glass", "cup", "bowl", "vase"),
    ("fork", "knife", "spoon", "scissors"),
    ("sandwich", "hot dog", "pizza", "donut", "cake"),
    ("apple", "orange", "donut"),
    ("potted plant", "vase", "broccoli"),
    ("tv", "laptop"),
    ("laptop", "keyboard"),
    ("cell phone", "remote", "mouse"),
    ("microwave", "oven", "toaster", "refrigerator"),
    ("book", "laptop"),
    ("toilet", "sink"),
)
"""Groups of categories that are easily taken for each other, or called by one name."""

METRES = {
    **dict.fromkeys(("train", "airplane", "bus"), 6.0),
    **dict.fromkeys(("truck", "boat"), 4.0),
    **dict.fromkeys(("elephant", "car", "giraffe"), 2.5),
    **dict.fromkeys(("horse", "cow", "zebra", "bear", "bed", "couch", "dining table"), 1.8),
    **dict.fromkeys(("person", "motorcycle", "bicycle", "bench", "refrigerator", "surfboard"), 1.3),
    **dict.fromkeys(("sheep", "umbrella", "parking meter", "kite", "skis", "snowboard"), 0.9),
    **dict.fromkeys(("chair", "dog", "tv", "toilet", "oven", "stop sign", "traffic light"), 0.7),
    **dict.fromkeys(("fire hydrant", "suitcase", "potted plant", "sink", "skateboard"), 0.6),
    **dict.fromkeys(("backpack", "teddy bear", "microwave", "tennis racket", "cat"), 0.4),
    **dict.fromkeys(("baseball bat",), 0.3),
    **dict.fromkeys(
        ("handbag", "laptop", "keyboard", "bird", "baseball bat", "vase", "clock"), 0.3
    ),
    **dict.fromkeys(("pizza", "cake", "toaster", "bowl", "bottle", "book", "frisbee"), 0.22),
    **dict.fromkeys(("wine glass", "baseball glove", "sports ball", "tie", "broccoli"), 0.16),
    **dict.fromkeys(("banana", "sandwich", "hot dog", "cup", "fork", "knife", "spoon"), 0.12),
    **dict.fromkeys(("cell phone", "remote", "scissors", "hair drier", "toothbrush"), 0.11),
    **dict.fromkeys(("apple", "orange", "donut", "carrot", "mouse"), 0.08),
}
"""Category -> its usual extent in metres."""

OTHER_METRES = 0.5
"""Extent of the categories that the table lacks."""

SIDE_OF_A_METRE = 0.21
"""Root of the share of the picture that an object of one metre usually covers."""

FLATTENED = 0.25
"""Exponent that brings real extents nearer together, since a bus and a cup share a picture."""

AIRBORNE = (
    *("airplane", "bird", "kite", "frisbee", "sports ball", "umbrella"),
    *("clock", "traffic light", "stop sign"),
)
"""Categories that need no ground."""

SKIN = ("brown", "orange", "pink")
"""Colours of which nobody knows whether they are a person's clothes."""

MARGINS = Margins(
    rank=dict.fromkeys(("left", "right", "top", "bottom"), 0.08)
    | dict.fromkeys(("big", "small"), math.log(1.8)),
    ahead=(0.06, -0.02),
    overlap=0.6,
    aside=1.2,
    near=(0.06, 0.18),
    closest=0.1,
)
"""Margins of photographed objects, of which boxes count beside centres."""

_CHANCES = dict.fromkeys(("named", "where", "best", "rank", "relation"), (1.0, 0.3, 0.0, 0.0))


def usual_side(category: str) -> float:
    """Return the root of the share of the picture that an object of a category usually covers."""
    return SIDE_OF_A_METRE * METRES.get(category, OTHER_METRES) ** FLATTENED


def confusable(category: str) -> frozenset[str]:
    """Return a category and those that are easily taken for it."""
    groups = [group for group in LOOK_ALIKES if category in group]
    return frozenset([category]).union(*groups)


def template(dataset: str, categories: Iterable[str], people: str) -> Template:
    """Return the kinds of sentences of a data set, for photographed objects.

    Each names the category, since photographs are full of other things.

    Args:
        dataset: refcoco, refcoco+ or refcocog.
        categories: categories that are pasted.
        people: the category of people, whose colour is that of their clothes.
    """
    known = set(categories)
    nouns = {}
    for category in sorted(known):
        second = SECOND_NAMES.get(category, category)
        nouns[category] = (category,) if second in known else (category, second)
    words = Vocabulary(
        nouns,
        superlatives={
            **SUPERLATIVES,
            "left": ("leftmost", "left most"),
            "right": ("rightmost", "right most"),
            "small": ("smallest",),
        },
        comparatives={
            "big": ("bigger", "larger", "big", "biggest"),
            "small": ("smaller", "small", "little", "smallest"),
        },
        dressed=(people,),
        an=True,
    )
    return replace(
        TEMPLATES[dataset],
        named_chances=_CHANCES | {"full": (1.0, 0.6, 0.0, 0.0)},
        one_word=(0,),
        landmark_names=((0,), (1, 0)),
        words=words,
        margins=MARGINS,
    )


def fact(annotation: dict, record: dict, category: str) -> Fact:
    """Return the fact of a COCO annotation with `attributes` in its image record."""
    left, top, width, height = annotation["bbox"]
    longer = max(record["width"], record["height"])
    x = left + width / 2
    y = top + height / 2
    return Fact(
        shape=category,
        colour=annotation["attributes"]["colour"],
        size=None,
        texture=None,
        x=x / record["width"],
        y=y / record["height"],
        u=x / longer,
        v=y / longer,
        area=annotation["area"],
        half_x=width / 2 / record["width"],
        half_y=height / 2 / record["height"],
        half_u=width / 2 / longer,
        half_v=height / 2 / longer,
        maybe=tuple(annotation["attributes"]["maybe"]),
    )
