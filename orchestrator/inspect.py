"""Two pages to look at before anything is trained: what masking would hide (`preview`), and what the data are (`show`).

Each is one HTML file with its pictures inside; it loads nothing.
"""

import base64
import statistics
from collections import Counter
from dataclasses import replace
from html import escape
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from aml import refer
from aml.checkpoint import load_model, read_config
from aml.data import Batch, Items
from aml.decode import block_of, decode_image, decode_row, rasterise
from aml.diagnostics import NAMES, MaskSums, measure
from aml.errors import UserError
from aml.masking import CALIBRATION_BATCHES, Mask, Masker, MaskingConfig
from aml.models import build
from aml.pictures import panels, png
from aml.pmme import Alignment
from orchestrator import shards, sources
from orchestrator.config import Experiment
from orchestrator.shards import index, read
from orchestrator.trial import write_atomic

MEASURED = 64
"""Items over which preview's numbers are taken, where as many are there."""
SIDE = 360
"""Longer side of a picture on the data page, pixels."""
COLOURS = ((64, 148, 255), (255, 132, 36), (24, 190, 150), (190, 110, 255), (255, 84, 140), (232, 196, 40))
POSITION_WORDS = (
    "left right top bottom upper lower middle center centre leftmost rightmost front back behind above over below under beneath corner side edge "
    "near nearest closest far furthest farthest next between beside end foreground background first second third 1st 2nd 3rd last"
)
COLOUR_WORDS = (
    "red orange yellow green blue purple pink brown black white gray grey tan beige gold golden silver blond blonde teal cyan maroon violet"
)

# ---- what masking would hide ----------------------------------------------------------------------------------------


def preview(experiment: Experiment, n: int, out: Path, *, init: Path | None = None, device="cpu", say=print) -> Path:
    """One page on n training items: picture, alignment, what would be hidden, truth; the realised shares, and those of settings around.

    init: a checkpoint whose model aligns; without it a fresh model of the experiment, whose alignment is noise: the page says so.
    UserError: no data, settings that cannot mean anything, n below 1, a checkpoint of another image size.
    """
    if n < 1:
        raise UserError(f"n is {n}; ask for at least one item")
    used = sources.prepare(experiment.data, experiment.root, say)
    items = _some_items(experiment, used, max(n, MEASURED))
    model = _model(experiment, init, used.words(), device)
    batch = items.batch(np.arange(len(items)), model, seed=experiment.seed).to(device)
    sentences = [item.sentence["sent"] for item in items.picks(np.arange(len(items)), experiment.seed, 0)]
    masker = Masker(experiment.aml, model=model, image_size=experiment.data.size, seed=experiment.seed)
    mask = _mask(masker, model, batch)
    values = measure(mask, batch.mask, masker.block)
    body = [_facts(_settings(experiment, masker, used.manifest, init)), _warnings(experiment, masker, init, _means(mask, batch, masker.block))]
    body.append("<h2>Realised shares</h2>" + _shares_table(experiment, masker, mask.alignment, model, batch))
    body.append(f"<h2>{min(n, len(items))} training items</h2>")
    body.append(
        '<p class="how">Alignment runs from dark (low) to yellow (high), each stretched over its own range. Grey squares are hidden in training.</p>'
    )
    for i, row in enumerate(panels(batch.image, mask, masker.block, truth=batch.mask)[:n]):
        shown = "".join(_figure(title, picture) for title, picture in row)
        said = f'<h3>{escape(sentences[i])}</h3><div class="panels">{shown}</div><p class="how">{_words_of(values[i])}</p>'
        body.append(f'<section class="item">{said}</section>')
    page = Path(out)
    write_atomic(page, _page(f"What would be hidden: {experiment.name}", body).encode())
    return page


def _some_items(experiment: Experiment, used: sources.Sources, count: int) -> Items:
    """Up to `count` refs of the training split (of several data sets the first that has some), each of another picture, spread evenly over it."""
    data, rows = experiment.data, []
    training = ((s, [place for place in index(s, [data.train_split]) if place[0] not in used.evaluation]) for s in used.stores)
    store, places = next((s, places) for s, places in training if places)
    for row in read(store, _spread(places, count)):
        refs = [ref for ref in row["refs"] if ref["split"] == data.train_split]
        rows.append(row | {"refs": [refs[len(rows) % len(refs)]]})
    block = block_of([decode_row(row, data.size, data.fit) for row in rows])
    return Items([block], data.train_split, size=data.size, fit=data.fit, unit="ref")


def _model(experiment: Experiment, init: Path | None, vocabulary: list[str], device):
    if init is None:
        torch.manual_seed(experiment.seed)
        spec = dict(experiment.model)
        return build(spec.pop("name"), vocabulary=vocabulary, **spec).to(device).eval()
    side = read_config(init)["image_size"]
    if side != experiment.data.size:
        raise UserError(f"{init} was trained at {side} px, but data.size is {experiment.data.size}; set data.size={side}")
    return load_model(init, device)[0]


@torch.inference_mode()
def _mask(masker: Masker, model, batch: Batch) -> Mask:
    """The mask of the first epoch that masks, its scale calibrated on these very items where the settings ask for that."""
    x, epoch = model.normalise(batch.image), masker.config.warmup_epochs
    how = {"epoch": epoch, "item": batch.item, "real": batch.real, "target": batch.mask}
    while masker.config.mode == "aml" and masker.calibrating and len(masker.log_scales) < CALIBRATION_BATCHES:
        masker(model, x, batch.tokens, batch.token_mask, **how)
    return masker(model, x, batch.tokens, batch.token_mask, **how, probe=True)


def _means(mask: Mask, batch: Batch, block: int) -> dict[str, float]:
    sums = MaskSums(batch.image.device)
    sums.add(mask, batch.mask, batch.valid, block)
    return sums.means()


def _around(config: MaskingConfig) -> list[MaskingConfig]:
    """The settings themselves and the same with tau and rho (random and maskris: the rate) half and one and a half times as large."""

    def near(x: float) -> list[float]:
        return sorted({round(min(1.0, x * f), 4) for f in (0.5, 1.0, 1.5)})

    if not config.share:
        return [config]
    if config.mode == "maskris":
        return [replace(config, rate=rate) for rate in near(config.share)]
    if config.mode == "random" and config.rate != "match":
        return [replace(config, tau=1.0, rho=rate, rate=None) for rate in near(config.share)]
    return [replace(config, tau=tau, rho=rho) for tau in near(config.tau) for rho in near(config.rho)]


class _Aligned(Masker):
    """A masker whose stage 1 has run: other thresholds on one alignment."""

    known: Alignment

    def align(self, *args, **kwargs) -> Alignment:
        return self.known


def _shares_table(experiment: Experiment, masker: Masker, alignment: Alignment, model, batch: Batch) -> str:
    lines = []
    for config in _around(experiment.aml):
        tau, rho = config.coordinates
        here = max(abs(a - b) for a, b in zip((tau, rho), experiment.aml.coordinates, strict=True)) < 1e-4
        try:
            other = _Aligned(config, model=model, image_size=experiment.data.size, seed=experiment.seed)
        except UserError:
            cells = '<td colspan="6" class="t">refused: less than one block an image</td>'
        else:
            other.load_state_dict(masker.state_dict())
            other.known = alignment
            means = _means(_mask(other, model, batch), batch, other.block)
            cells = "".join(f"<td>{_percent(means.get(k))}</td>" for k in ("weak", "hidden", "hidden_target"))
            cells += "".join(f"<td>{_number(means.get(k))}</td>" for k in ("lift", "auroc", "mask_auroc"))
        lines.append(f"<tr{' class=here' if here else ''}><td>{tau:g}</td><td>{rho:g}</td>{cells}</tr>")
    heads = "".join(
        f'<th scope="col">{h}</th>' for h in ("tau", "rho", "weak", "hidden", "hidden of target", "lift", "alignment AUROC", "mask AUROC")
    )
    text = (
        f"Means over {len(batch.valid)} items, your settings in bold. Weak and hidden are shares of the image; lift is the hidden share of the target over "
        "that of the image (1: the mask knows nothing of the target); alignment AUROC 0.5: the alignment knows nothing of it; mask AUROC 0.5: the holes "
        "do not give it away."
    )
    return f'<p class="how">{text}</p><div class="scroll" tabindex="0"><table><thead><tr>{heads}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _settings(experiment: Experiment, masker: Masker, manifest: dict, init: Path | None) -> list[tuple[str, str]]:
    aml = experiment.aml
    facts = [("arm", aml.arm), ("tau, rho", "{:g}, {:g}".format(*aml.coordinates)), ("block", f"{masker.block} px of {experiment.data.size}")]
    if aml.mode == "aml":
        facts += [("alignment", f"source {aml.source}, score {aml.score}, projection {aml.projection}, tokens {aml.tokens}")]
        facts += [("selection", f"{aml.selection}, threshold {aml.threshold_mode}")]
        facts += (
            [("scale", f"{masker.scale:.4g}" + (" (calibrated on these items)" if masker.log_scales else ""))]
            if aml.score.endswith("softmax")
            else []
        )
        facts += [("warm-up", f"{aml.warmup_epochs} epochs without masking")] if aml.warmup_epochs else []
    trained = f"{experiment.model['name']}, " + (f"trained: {init}" if init else f"untrained, seed {experiment.seed}")
    return [*facts, ("model", trained), ("data", f"{manifest['dataset']} ({manifest['split_by']}), split {experiment.data.train_split}")]


def _warnings(experiment: Experiment, masker: Masker, init: Path | None, means: dict[str, float]) -> str:
    notes = []
    if init is None and experiment.aml.share:
        notes.append(
            "The model is untrained, so its alignment is noise: this page shows how much is hidden and in what pattern, not yet whether it is the right part. "
            "Give a checkpoint with --init to see a trained one."
        )
    if not experiment.aml.share:
        notes.append(f"Mode {experiment.aml.mode} hides nothing.")
    elif means["hidden"] < 0.001:
        notes.append("These settings hide almost nothing of these pictures.")
    elif means["hidden"] > 0.9:
        notes.append("These settings hide nearly the whole picture: nothing is left to learn from.")
    if means.get("uninformative", 0) > 0.05:
        notes.append(f"{means['uninformative']:.0%} of the alignment maps are constant; nothing is hidden of their pictures.")
    return "".join(f'<p class="note">{escape(note)}</p>' for note in notes)


def _words_of(values: torch.Tensor) -> str:
    found = dict(zip(NAMES, values.tolist(), strict=True))
    lift = found["hidden_target"] / found["hidden"] if found["hidden"] else float("nan")
    return (
        f"weak {_percent(found['weak'])}, hidden {_percent(found['hidden'])}, hidden of the target {_percent(found['hidden_target'])}, "
        f"lift {_number(lift)}, alignment AUROC {_number(found['auroc'])}"
    )


# ---- what the data are ----------------------------------------------------------------------------------------------


def show(store: shards.Store, split: str, n: int, out: Path) -> Path:
    """One page on a split: counts, sentence lengths, words, target sizes, and n pictures with their masks and sentences.

    UserError: no shards there, an unknown split, n below 1.
    """
    if n < 1:
        raise UserError(f"n is {n}; ask for at least one picture")
    manifest = shards.manifest(store)
    places = index(store, [split])
    if not places:
        raise UserError(f"{store.uri} has no split {split!r}; it has {', '.join(manifest['splits'])}")
    found = _statistics(store, places, split)
    body = [_facts(_data_facts(manifest, found)), "<h2>Words a sentence</h2>", _bars(_lengths(found["lengths"]))]
    body += ["<h2>Size of the target</h2>", _bars(_sizes(found["sizes"])), '<p class="how">Share of the picture that the target covers.</p>']
    chosen = _spread(places, n)
    body.append(f"<h2>{len(chosen)} of {len(places)} pictures</h2>")
    body.append('<div class="gallery">' + "".join(_example(row, split) for row in read(store, chosen)) + "</div>")
    page = Path(out)
    write_atomic(page, _page(f"{manifest['dataset']} ({manifest['split_by']}), split {split}", body).encode())
    return page


def _statistics(store: shards.Store, places: list, split: str) -> dict[str, list]:
    """Per sentence, per ref and per picture, what the page counts."""
    from pycocotools import mask

    positions, colours = set(POSITION_WORDS.split()), set(COLOUR_WORDS.split())
    found: dict[str, list] = {key: [] for key in ("lengths", "position", "colour", "sentences", "sizes", "refs", "sides", "objects")}
    for row in read(store, places, jpeg=False):
        refs = [ref for ref in row["refs"] if ref["split"] == split]
        found["refs"].append(len(refs))
        found["objects"].append(len(row["objects"]))
        found["sides"].append((row["width"], row["height"]))
        for ref in refs:
            area = mask.area({"size": [row["height"], row["width"]], "counts": refer.referent(row, ref).encode()})
            found["sizes"].append(float(area) / (row["height"] * row["width"]))
            found["sentences"].append(len(ref["sentences"]))
            for sentence in ref["sentences"]:
                words = refer.words(sentence["sent"])
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
        ("words a sentence", f"mean {mean(lengths):.2f}, median {statistics.median(lengths):g}, longest {max(lengths)}; one word only {single:.1%}"),
        ("a position word", f"{mean(found['position']):.1%} of the sentences (left, right, front, second, ...)"),
        ("a colour word", f"{mean(found['colour']):.1%} of the sentences"),
        ("target's share of the picture", f"mean {mean(sizes):.1%}, median {statistics.median(sizes):.1%}"),
        ("fingerprint", manifest["fingerprint"]),
    ]


def _lengths(lengths: list[int]) -> list[tuple[str, float]]:
    counted = Counter(min(k, 10) for k in lengths)
    return [("10 or more" if k == 10 else str(k), counted[k] / len(lengths)) for k in range(min(counted), 11)]


def _sizes(sizes: list[float]) -> list[tuple[str, float]]:
    edges = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
    counted = Counter(max(i for i, edge in enumerate(edges) if size >= edge) for size in sizes)
    names = [f"{low:.0%} to {high:.0%}" for low, high in zip(edges, edges[1:], strict=False)] + ["50% or more"]
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
        mask = Image.fromarray(rasterise(refer.referent(row, ref), row["height"], row["width"])).resize(size, Image.Resampling.NEAREST)
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


# ---- the page -------------------------------------------------------------------------------------------------------

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
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts) + "</dl>"


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
    return [places[i] for i in np.unique(np.linspace(0, len(places) - 1, min(n, len(places))).round().astype(int))]
