"""Parts of the HTML pages that `preview` and `data show` write.

Each page is one file with its pictures inside; it loads nothing.
"""

import base64
import hashlib
from collections.abc import Sequence
from html import escape
from typing import TypeVar

import numpy as np
from PIL import Image

from aml.files import MADE_BY
from aml.inference import encode_png

Element = TypeVar("Element")

STYLE = """
:root { --paper: #fff; --ink: #1b2430; --soft: #5c6675; --line: #e3e7ed; --wash: #f6f8fa;
  --accent: #1f5fae; color-scheme: light dark; }
@media screen and (prefers-color-scheme: dark) { :root { --paper: #12171e; --ink: #e4e8ee;
  --soft: #a3adba; --line: #2a323d; --wash: #1b222c; --accent: #7fb2f5; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial,
    sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 24px 72px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 14px; letter-spacing: -0.01em;
  overflow-wrap: anywhere; }
h2 { font-size: 20px; line-height: 1.3; margin: 44px 0 8px; }
h3 { font-size: 16px; font-weight: 600; margin: 0 0 8px; overflow-wrap: anywhere; }
.how, figcaption { color: var(--soft); font-size: 14px; line-height: 1.5; margin: 8px 0 0;
  max-width: 86ch; }
.note { background: var(--wash); border: 1px solid var(--line); border-radius: 6px;
  padding: 8px 14px; font-size: 14px; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 5px 22px; font-size: 14px;
  margin: 10px 0; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
.item { margin: 0 0 30px; min-width: 0; }
.item > .how { margin-top: 4px; }
h2 + .how + .item { margin-top: 16px; }
.panels { display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: 12px;
  max-width: 860px; }
figure { margin: 0; min-width: 0; }
figcaption { margin: 2px 0 0; font-size: 13px; }
img { display: block; width: 100%; height: auto; border-radius: 3px; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr));
  gap: 8px 28px; align-items: start; margin-top: 14px; }
ul { list-style: none; margin: 10px 0 0; padding: 0; font-size: 15px; line-height: 1.45; }
li { display: flex; gap: 10px; margin-bottom: 7px; }
li i { flex: none; width: 12px; height: 12px; border-radius: 2px; margin-top: 5px; }
li span { min-width: 0; overflow-wrap: anywhere; }
.bars { max-width: 620px; font-size: 14px; font-variant-numeric: tabular-nums; }
.bars div { display: grid; grid-template-columns: 96px 1fr 56px; gap: 12px; align-items: center;
  padding: 2px 0; }
.bars .bar { height: 12px; background: var(--wash); border-radius: 2px; overflow: hidden; }
.bars .bar i { display: block; height: 100%; background: var(--accent); }
.bars .value { text-align: right; }
.scroll { overflow-x: auto; margin: 10px 0; }
table { border-collapse: collapse; font-size: 14px;
  font-variant-numeric: tabular-nums lining-nums; }
th, td { padding: 6px 14px 6px 6px; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th { color: var(--soft); font-weight: 600; font-size: 12.5px; white-space: normal;
  vertical-align: bottom; }
td.t { text-align: left; color: var(--soft); }
tr.here td { font-weight: 650; }
tr.here td:first-child { box-shadow: inset 3px 0 0 var(--accent); }
@media (max-width: 640px) {
  main { padding: 22px 16px 48px; }
  h1 { font-size: 23px; }
  .panels { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: 8px; }
}
"""


def html_page(title: str, body: list[str], script: str = "") -> str:
    """Return a whole page: its title as a heading, then the parts of the body.

    Args:
        title: The title.
        body: HTML.
        script: A script to run when the page is read; the page admits no other.
    """
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    if script:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy += f"; script-src 'sha256-{digest}'"
        body = [*body, f"<script>{script}</script>"]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="generator" content="{MADE_BY}">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>"
        f"<body><main><h1>{escape(title)}</h1>" + "\n".join(body) + "</main></body></html>\n"
    )


def definition_list(entries: list[tuple[str, str]]) -> str:
    """Return a list of names and values."""
    lines = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in entries)
    return f"<dl>{lines}</dl>"


def bar_chart(parts: list[tuple[str, float]]) -> str:
    """Return a chart of horizontal bars, one for each (name, share in [0, 1])."""
    longest = max(share for _, share in parts) or 1.0
    lines = [
        f'<div><span>{escape(name)}</span><span class="bar">'
        f'<i style="width:{100 * share / longest:.1f}%"></i></span>'
        f'<span class="value">{share:.1%}</span></div>'
        for name, share in parts
    ]
    return f'<div class="bars">{"".join(lines)}</div>'


def figure(title: str, picture: np.ndarray) -> str:
    """Return a picture (H, W, 3) uint8 with its title below."""
    return f"<figure>{image_tag(picture, title)}<figcaption>{escape(title)}</figcaption></figure>"


def image_tag(picture: np.ndarray, alt: str) -> str:
    """Return an img tag that holds a picture (H, W, 3) uint8."""
    height, width = picture.shape[:2]
    return f'<img src="{png_url(picture)}" alt="{escape(alt)}" width="{width}" height="{height}">'


def png_url(picture: np.ndarray) -> str:
    """Return a picture, (H, W, 3) or (H, W) uint8, as a data: URL of a PNG."""
    encoded = base64.b64encode(encode_png(Image.fromarray(picture))).decode()
    return f"data:image/png;base64,{encoded}"


def percent(value: float | None) -> str:
    """Return a share as a percentage, or "-" for None and NaN."""
    return "-" if value is None or value != value else f"{value:.1%}"


def decimal(value: float | None) -> str:
    """Return a number with two decimals, or "-" for None and NaN."""
    return "-" if value is None or value != value else f"{value:.2f}"


def evenly_spaced(elements: Sequence[Element], count: int) -> list[Element]:
    """Return at most `count` of the elements, evenly spaced and in their order."""
    places = np.linspace(0, len(elements) - 1, min(count, len(elements)))
    return [elements[i] for i in np.unique(places.round().astype(int))]
