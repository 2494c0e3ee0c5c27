"""Write a page that shows items and statistics of a data set (`data show`)."""

import statistics
from collections import Counter
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from aml.data import decode_image, rasterise, referent, split_words
from aml.errors import UserError
from orchestrator import data, storage
from orchestrator.data import picture_places, read_rows
from orchestrator.evaluation.html_page import SIDE, _bars, _facts, _image, _page, _spread
from orchestrator.utils import atomic_write

COLOURS = (
    (64, 148, 255),
    (255, 132, 36),
    (24, 190, 150),
    (190, 110, 255),
    (255, 84, 140),
    (232, 196, 40),
)

POSITION_WORDS = (
    "left right top bottom upper lower middle center centre leftmost rightmost front back behind above over below under beneath corner side edge "
    "near nearest closest far furthest farthest next between beside end foreground background first second third 1st 2nd 3rd last"
)

COLOUR_WORDS = "red orange yellow green blue purple pink brown black white gray grey tan beige gold golden silver blond blonde teal cyan maroon violet"


def show_data(store: storage.Filesystem, split: str, n: int, out: Path) -> Path:
    """One page on a split: counts, sentence lengths, words, target sizes, and n pictures with their masks and sentences.

    UserError: no shards there, an unknown split, n below 1.
    """
    if n < 1:
        raise UserError(f"n is {n}; ask for at least one picture")
    manifest = data.read_manifest(store)
    places = picture_places(store, [split])
    if not places:
        raise UserError(
            f"{store.uri} has no split {split!r}; it has {', '.join(manifest['splits'])}"
        )
    found = _statistics(store, places, split)
    body = [
        _facts(_data_facts(manifest, found)),
        "<h2>Words a sentence</h2>",
        _bars(_lengths(found["lengths"])),
    ]
    body += [
        "<h2>Size of the target</h2>",
        _bars(_sizes(found["sizes"])),
        '<p class="how">Share of the picture that the target covers.</p>',
    ]
    chosen = _spread(places, n)
    body.append(f"<h2>{len(chosen)} of {len(places)} pictures</h2>")
    body.append(
        '<div class="gallery">'
        + "".join(_example(row, split) for row in read_rows(store, chosen))
        + "</div>"
    )
    page = Path(out)
    atomic_write(
        page, _page(f"{manifest['dataset']} ({manifest['split_by']}), split {split}", body).encode()
    )
    return page


def _statistics(store: storage.Filesystem, places: list, split: str) -> dict[str, list]:
    """Per sentence, per ref and per picture, what the page counts."""
    from pycocotools import mask

    positions, colours = set(POSITION_WORDS.split()), set(COLOUR_WORDS.split())
    found: dict[str, list] = {
        key: []
        for key in (
            "lengths",
            "position",
            "colour",
            "sentences",
            "sizes",
            "refs",
            "sides",
            "objects",
        )
    }
    for row in read_rows(store, places, jpeg=False):
        refs = [ref for ref in row["refs"] if ref["split"] == split]
        found["refs"].append(len(refs))
        found["objects"].append(len(row["objects"]))
        found["sides"].append((row["width"], row["height"]))
        for ref in refs:
            area = mask.area(
                {"size": [row["height"], row["width"]], "counts": referent(row, ref).encode()}
            )
            found["sizes"].append(float(area) / (row["height"] * row["width"]))
            found["sentences"].append(len(ref["sentences"]))
            for sentence in ref["sentences"]:
                words = split_words(sentence["sent"])
                found["lengths"].append(len(words))
                found["position"].append(bool(positions & set(words)))
                found["colour"].append(bool(colours & set(words)))
    return found


def _data_facts(manifest: dict, found: dict[str, list]) -> list[tuple[str, str]]:
    mean, lengths, sizes = statistics.fmean, found["lengths"], found["sizes"]
    width, height = (round(statistics.median(side)) for side in zip(*found["sides"], strict=True))
    single = mean(k == 1 for k in lengths)
    return [
        ("pictures", f"{len(found['refs'])}, median {width} x {height} px"),
        (
            "refs",
            f"{len(sizes)}, {mean(found['refs']):.2f} a picture (most {max(found['refs'])}); {mean(found['objects']):.2f} annotated objects a picture",
        ),
        ("sentences", f"{len(lengths)}, {mean(found['sentences']):.2f} a ref"),
        (
            "words a sentence",
            f"mean {mean(lengths):.2f}, median {statistics.median(lengths):g}, longest {max(lengths)}; one word only {single:.1%}",
        ),
        (
            "a position word",
            f"{mean(found['position']):.1%} of the sentences (left, right, front, second, ...)",
        ),
        ("a colour word", f"{mean(found['colour']):.1%} of the sentences"),
        (
            "target's share of the picture",
            f"mean {mean(sizes):.1%}, median {statistics.median(sizes):.1%}",
        ),
        ("fingerprint", manifest["fingerprint"]),
    ]


def _lengths(lengths: list[int]) -> list[tuple[str, float]]:
    counted = Counter(min(k, 10) for k in lengths)
    return [
        ("10 or more" if k == 10 else str(k), counted[k] / len(lengths))
        for k in range(min(counted), 11)
    ]


def _sizes(sizes: list[float]) -> list[tuple[str, float]]:
    edges = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
    counted = Counter(max(i for i, edge in enumerate(edges) if size >= edge) for size in sizes)
    names = [f"{low:.0%} to {high:.0%}" for low, high in zip(edges, edges[1:], strict=False)] + [
        "50% or more"
    ]
    return [(name, counted[i] / len(sizes)) for i, name in enumerate(names)]


def _example(row: dict, split: str) -> str:
    """A picture, its refs outlined in the colours of their sentences."""
    picture = decode_image(row["jpeg"], row["file_name"])
    scale = SIDE / max(picture.shape[:2])
    size = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
    shown = np.array(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR))
    lines = []
    for k, ref in enumerate(ref for ref in row["refs"] if ref["split"] == split):
        colour = COLOURS[k % len(COLOURS)]
        mask = Image.fromarray(rasterise(referent(row, ref), row["height"], row["width"])).resize(
            size, Image.Resampling.NEAREST
        )
        _outline(shown, np.asarray(mask).astype(bool), colour)
        said = "<br>".join(escape(s["sent"]) for s in ref["sentences"])
        lines.append(f'<li><i style="background:rgb{colour}"></i><span>{said}</span></li>')
    return f'<section class="item">{_image(shown, "picture with masks")}<ul>{"".join(lines)}</ul><p class="how">image {row["image_id"]}</p></section>'


def _outline(picture: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int]) -> None:
    """Draw a mask's edge into a picture; its inside keeps the colours the sentences speak of.   picture (H, W, 3) uint8 is changed, mask (H, W) bool"""
    padded = np.pad(mask, 2)
    inner = mask.copy()
    for dy, dx in ((0, 2), (4, 2), (2, 0), (2, 4)):
        inner &= padded[dy : dy + mask.shape[0], dx : dx + mask.shape[1]]
    picture[mask & ~inner] = colour
