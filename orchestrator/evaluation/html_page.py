"""Parts of the HTML pages that `preview` and `data show` write."""

import base64
from html import escape

import numpy as np
import torch
from PIL import Image

from aml.inference import png
from aml.masking import DIAGNOSTICS

SIDE = 360

"""Longer side of a picture on the data page, pixels."""


def _words_of(values: torch.Tensor) -> str:
    found = dict(zip(DIAGNOSTICS, values.tolist(), strict=True))
    lift = found["hidden_target"] / found["hidden"] if found["hidden"] else float("nan")
    return (
        f"weak {_percent(found['weak'])}, hidden {_percent(found['hidden'])}, hidden of the target {_percent(found['hidden_target'])}, "
        f"lift {_number(lift)}, alignment AUROC {_number(found['auroc'])}"
    )


STYLE = """
:root { --ink: #1b2430; --soft: #5c6675; --line: #e3e7ed; --wash: #f6f8fa; --accent: #1f5fae; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: #fff; color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 24px 72px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 14px; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h2 { font-size: 20px; line-height: 1.3; margin: 44px 0 8px; }
h3 { font-size: 16px; font-weight: 600; margin: 0 0 8px; overflow-wrap: anywhere; }
.how, figcaption { color: var(--soft); font-size: 14px; line-height: 1.5; margin: 8px 0 0; max-width: 86ch; }
.note { background: var(--wash); border: 1px solid var(--line); border-radius: 6px; padding: 8px 14px; font-size: 14px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 5px 22px; font-size: 14px; margin: 10px 0; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
.item { margin: 0 0 30px; min-width: 0; }
.item > .how { margin-top: 4px; }
h2 + .how + .item { margin-top: 16px; }
.panels { display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: 12px; max-width: 860px; }
figure { margin: 0; min-width: 0; }
figcaption { margin: 2px 0 0; font-size: 13px; }
img { display: block; width: 100%; height: auto; border-radius: 3px; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr)); gap: 8px 28px; align-items: start; margin-top: 14px; }
ul { list-style: none; margin: 10px 0 0; padding: 0; font-size: 15px; line-height: 1.45; }
li { display: flex; gap: 10px; margin-bottom: 7px; }
li i { flex: none; width: 12px; height: 12px; border-radius: 2px; margin-top: 5px; }
li span { min-width: 0; overflow-wrap: anywhere; }
.bars { max-width: 620px; font-size: 14px; font-variant-numeric: tabular-nums; }
.bars div { display: grid; grid-template-columns: 96px 1fr 56px; gap: 12px; align-items: center; padding: 2px 0; }
.bars .bar { height: 12px; background: var(--wash); border-radius: 2px; overflow: hidden; }
.bars .bar i { display: block; height: 100%; background: var(--accent); }
.bars .value { text-align: right; }
.scroll { overflow-x: auto; margin: 10px 0; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums lining-nums; }
th, td { padding: 6px 14px 6px 6px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; font-size: 12.5px; white-space: normal; vertical-align: bottom; }
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


def _page(title: str, body: list[str]) -> str:
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main><h1>{escape(title)}</h1>"
        + "\n".join(body)
        + "</main></body></html>\n"
    )


def _facts(facts: list[tuple[str, str]]) -> str:
    return (
        "<dl>"
        + "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts)
        + "</dl>"
    )


def _bars(parts: list[tuple[str, float]]) -> str:
    longest = max(share for _, share in parts) or 1.0
    lines = [
        f'<div><span>{escape(name)}</span><span class="bar"><i style="width:{100 * share / longest:.1f}%"></i></span>'
        f'<span class="value">{share:.1%}</span></div>'
        for name, share in parts
    ]
    return f'<div class="bars">{"".join(lines)}</div>'


def _figure(title: str, picture: np.ndarray) -> str:
    return f"<figure>{_image(picture, title)}<figcaption>{escape(title)}</figcaption></figure>"


def _image(picture: np.ndarray, alt: str) -> str:
    data = base64.b64encode(png(Image.fromarray(picture))).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{escape(alt)}" width="{picture.shape[1]}" height="{picture.shape[0]}">'


def _percent(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.1%}"


def _number(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.2f}"


def _spread(places: list, n: int) -> list:
    """At most n of them, evenly spread, in order."""
    return [
        places[i]
        for i in np.unique(np.linspace(0, len(places) - 1, min(n, len(places))).round().astype(int))
    ]
