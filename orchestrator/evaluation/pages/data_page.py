"""Write a page that shows pictures and statistics of a data set (`data show`)."""

import statistics
from collections import Counter
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from aml.data import POSITION_WORDS, mirrored, rasterise, referent, row_picture, split_words
from aml.errors import UserError
from aml.files import check_file
from orchestrator import storage
from orchestrator.data import found_lines, picture_places, read_manifest, read_rows
from orchestrator.evaluation.pages.html_page import (
    bar_chart,
    definition_list,
    evenly_spaced,
    html_page,
    image_tag,
)
from orchestrator.utils import atomic_write

SIDE = 360
"""Longer side of a shown picture in pixels."""

COLOURS = (
    (64, 148, 255),
    (255, 132, 36),
    (24, 190, 150),
    (190, 110, 255),
    (255, 84, 140),
    (232, 196, 40),
)
"""RGB of the outlines of a picture's referents, in turn."""

COLOUR_WORDS = (
    "red orange yellow green blue purple pink brown black white gray grey tan beige gold golden "
    "silver blond blonde teal cyan maroon violet"
)


@dataclass
class SplitStatistics:
    """Counts of a split that the page shows."""

    refs: list[int] = field(default_factory=list)
    """Of each picture: refs in the split."""
    objects: list[int] = field(default_factory=list)
    """Of each picture: annotated objects."""
    sizes: list[tuple[int, int]] = field(default_factory=list)
    """Of each picture: width and height in pixels."""
    target_shares: list[float] = field(default_factory=list)
    """Of each ref: share of the picture that the target covers."""
    sentences: list[int] = field(default_factory=list)
    """Of each ref: sentences."""
    lengths: list[int] = field(default_factory=list)
    """Of each sentence: words."""
    positions: list[bool] = field(default_factory=list)
    """Of each sentence: whether it has one of POSITION_WORDS."""
    unmirrored: list[bool] = field(default_factory=list)
    """Of each sentence: whether the augmentation flip leaves its picture alone."""
    colours: list[bool] = field(default_factory=list)
    """Of each sentence: whether it has one of COLOUR_WORDS."""


def show_data(store: storage.Filesystem, split: str, n: int, out: Path) -> Path:
    """Write a page on a split of a data set.

    It shows counts, sentence lengths, words, target sizes, and pictures with their masks and
    sentences.

    Args:
        store: The shards.
        split: Name of the split.
        n: Number of pictures to show.
        out: File of the page.

    Returns:
        The file.

    Raises:
        UserError: There are no shards, the split is unknown, n is below 1, or out is no place
            for a page.
    """
    if n < 1:
        raise UserError(f"n is {n}; ask for at least one picture")
    check_file(out, "--out")
    manifest = read_manifest(store)
    places = picture_places(store, [split])
    if not places:
        raise UserError(
            f"{store.uri} has no split {split!r}; it has {', '.join(manifest['splits'])}"
        )
    counted = _count(store, places, split)
    chosen = evenly_spaced(places, n)
    gallery = "".join(_example(row, split) for row in read_rows(store, chosen))
    body = [
        definition_list(_summary(manifest, counted)),
        "<h2>Words a sentence</h2>",
        bar_chart(_length_shares(counted.lengths)),
        "<h2>Size of the target</h2>",
        bar_chart(_size_shares(counted.target_shares)),
        '<p class="how">Share of the picture that the target covers.</p>',
        f"<h2>{len(chosen)} of {len(places)} pictures</h2>",
        f'<div class="gallery">{gallery}</div>',
    ]
    title = f"{manifest['dataset']} ({manifest['split_by']}), split {split}"
    atomic_write(Path(out), html_page(title, body).encode())
    return Path(out)


def _count(store: storage.Filesystem, places: list, split: str) -> SplitStatistics:
    """Count refs, sentences and words of the pictures at some places; no picture is decoded."""
    from pycocotools import mask

    colours = set(COLOUR_WORDS.split())
    found = SplitStatistics()
    for row in read_rows(store, places, jpeg=False):
        width = row["width"]
        height = row["height"]
        refs = [ref for ref in row["refs"] if ref["split"] == split]
        found.refs.append(len(refs))
        found.objects.append(len(row["objects"]))
        found.sizes.append((width, height))
        for ref in refs:
            rle = {"size": [height, width], "counts": referent(row, ref).encode()}
            found.target_shares.append(float(mask.area(rle)) / (height * width))
            found.sentences.append(len(ref["sentences"]))
            for sentence in ref["sentences"]:
                words = split_words(sentence["sent"])
                found.lengths.append(len(words))
                found.positions.append(not POSITION_WORDS.isdisjoint(words))
                found.unmirrored.append(mirrored(sentence["sent"]) is None)
                found.colours.append(not colours.isdisjoint(words))
    return found


def _summary(manifest: dict, counted: SplitStatistics) -> list[tuple[str, str]]:
    """Return the names and values at the top of the page."""
    mean = statistics.fmean
    median = statistics.median
    lengths = counted.lengths
    shares = counted.target_shares
    width = round(median(width for width, _ in counted.sizes))
    height = round(median(height for _, height in counted.sizes))
    single = mean(length == 1 for length in lengths)
    return [
        ("pictures", f"{len(counted.refs)}, median {width} x {height} px"),
        (
            "refs",
            f"{len(shares)}, {mean(counted.refs):.2f} a picture (most {max(counted.refs)}); "
            f"{mean(counted.objects):.2f} annotated objects a picture",
        ),
        ("sentences", f"{len(lengths)}, {mean(counted.sentences):.2f} a ref"),
        (
            "words a sentence",
            f"mean {mean(lengths):.2f}, median {median(lengths):g}, longest {max(lengths)}; "
            f"one word only {single:.1%}",
        ),
        (
            "a position word",
            f"{mean(counted.positions):.1%} of the sentences (left, right, front, second, ...)",
        ),
        (
            "not mirrored by augment flip",
            f"{mean(counted.unmirrored):.1%} of the sentences, whose sides are not certain",
        ),
        ("a colour word", f"{mean(counted.colours):.1%} of the sentences"),
        ("target's share of the picture", f"mean {mean(shares):.1%}, median {median(shares):.1%}"),
        *_provenance(manifest),
        ("fingerprint", manifest["fingerprint"]),
    ]


def _provenance(manifest: dict) -> list[tuple[str, str]]:
    """Return what the whole data set was made of, as (name, value); older shards do not tell."""
    lines = [line.partition(": ") for line in found_lines(manifest)]
    return [(f"whole data set: {name}", text) for name, _, text in lines]


def _length_shares(lengths: list[int]) -> list[tuple[str, float]]:
    """Return the share of the sentences with each number of words; 10 stands for 10 or more."""
    counted = Counter(min(length, 10) for length in lengths)
    return [
        ("10 or more" if length == 10 else str(length), counted[length] / len(lengths))
        for length in range(min(counted), 11)
    ]


def _size_shares(target_shares: list[float]) -> list[tuple[str, float]]:
    """Return the share of the refs in each range of the target's size."""
    edges = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
    counted = Counter(
        max(i for i, edge in enumerate(edges) if share >= edge) for share in target_shares
    )
    names = [f"{low:.0%} to {high:.0%}" for low, high in zip(edges, edges[1:], strict=False)]
    names.append("50% or more")
    return [(name, counted[i] / len(target_shares)) for i, name in enumerate(names)]


def _example(row: dict, split: str) -> str:
    """Return a picture whose refs are outlined in the colours of their sentences."""
    picture = row_picture(row)
    height, width = row["height"], row["width"]
    scale = SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    shown = np.array(picture.resize(size, Image.Resampling.BILINEAR))
    lines = []
    for k, ref in enumerate(ref for ref in row["refs"] if ref["split"] == split):
        colour = COLOURS[k % len(COLOURS)]
        full = Image.fromarray(rasterise(referent(row, ref), row["height"], row["width"]))
        mask = np.asarray(full.resize(size, Image.Resampling.NEAREST)).astype(bool)
        _outline(shown, mask, colour)
        sentences = "<br>".join(escape(s["sent"]) for s in ref["sentences"])
        lines.append(f'<li><i style="background:rgb{colour}"></i><span>{sentences}</span></li>')
    return (
        f'<section class="item">{image_tag(shown, "picture with masks")}'
        f'<ul>{"".join(lines)}</ul><p class="how">image {row["image_id"]}</p></section>'
    )


def _outline(picture: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int]) -> None:
    """Draw a mask's edge into a picture; its inside keeps the colours that sentences name.

    Args:
        picture: (H, W, 3) uint8, changed in place.
        mask: (H, W) bool.
        colour: RGB of the edge.
    """
    padded = np.pad(mask, 2)
    inner = mask.copy()
    for dy, dx in ((0, 2), (4, 2), (2, 0), (2, 4)):
        inner &= padded[dy : dy + mask.shape[0], dx : dx + mask.shape[1]]
    picture[mask & ~inner] = colour
