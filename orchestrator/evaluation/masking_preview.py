"""Two pages to look at before anything is trained: what masking would hide (`preview`), and what the data are (`show`).

Each is one HTML file with its pictures inside; it loads nothing.
"""

from dataclasses import replace
from html import escape
from pathlib import Path

import numpy as np
import torch

from aml.data import Batch, Items, decode_row, rows_of_block
from aml.errors import UserError
from aml.inference import panels
from aml.masking import (
    CALIBRATION_BATCHES,
    Alignment,
    Mask,
    Masker,
    MaskingConfig,
    MaskSums,
    measure_masks,
)
from aml.models import build_model
from aml.training import load_model, read_checkpoint_config
from orchestrator.config import Experiment
from orchestrator.data import Sources, picture_places, prepare_sources, read_rows
from orchestrator.evaluation.html_page import (
    _facts,
    _figure,
    _number,
    _page,
    _percent,
    _spread,
    _words_of,
)
from orchestrator.storage import storage_root
from orchestrator.utils import atomic_write

MEASURED = 64

"""Items over which preview's numbers are taken, where as many are there."""


def preview_masks(
    experiment: Experiment, n: int, out: Path, *, init: Path | None = None, device="cpu", say=print
) -> Path:
    """One page on n training items: picture, alignment, what would be hidden, truth; the realised shares, and those of settings around.

    init: a checkpoint whose model aligns; without it a fresh model of the experiment, whose alignment is noise: the page says so.
    UserError: no data, settings that cannot mean anything, n below 1, a checkpoint of another image size.
    """
    if n < 1:
        raise UserError(f"n is {n}; ask for at least one item")
    used = prepare_sources(experiment.data, storage_root(experiment.storage.root), say)
    items = _some_items(experiment, used, max(n, MEASURED))
    model = _model(experiment, init, used.words(), device)
    batch = items.batch(np.arange(len(items)), model, seed=experiment.seed).to(device)
    sentences = [
        item.sentence["sent"] for item in items.picks(np.arange(len(items)), experiment.seed, 0)
    ]
    masker = Masker(
        experiment.aml, model=model, image_size=experiment.data.size, seed=experiment.seed
    )
    mask = _mask(masker, model, batch)
    values = measure_masks(mask, batch.mask, masker.block)
    body = [
        _facts(_settings(experiment, masker, used.manifest, init)),
        _warnings(experiment, masker, init, _means(mask, batch, masker.block)),
    ]
    body.append(
        "<h2>Realised shares</h2>" + _shares_table(experiment, masker, mask.alignment, model, batch)
    )
    body.append(f"<h2>{min(n, len(items))} training items</h2>")
    body.append(
        '<p class="how">Alignment runs from dark (low) to yellow (high), each stretched over its own range. Grey squares are hidden in training.</p>'
    )
    for i, row in enumerate(panels(batch.image, mask, masker.block, truth=batch.mask)[:n]):
        shown = "".join(_figure(title, picture) for title, picture in row)
        said = f'<h3>{escape(sentences[i])}</h3><div class="panels">{shown}</div><p class="how">{_words_of(values[i])}</p>'
        body.append(f'<section class="item">{said}</section>')
    page = Path(out)
    atomic_write(page, _page(f"What would be hidden: {experiment.name}", body).encode())
    return page


def _some_items(experiment: Experiment, used: Sources, count: int) -> Items:
    """Up to `count` refs of the training split (of several data sets the first that has some), each of another picture, spread evenly over it."""
    data, rows = experiment.data, []
    training = (
        (
            s,
            [
                place
                for place in picture_places(s, [data.train_split])
                if place[0] not in used.evaluation
            ],
        )
        for s in used.stores
    )
    store, places = next((s, places) for s, places in training if places)
    for row in read_rows(store, _spread(places, count)):
        refs = [ref for ref in row["refs"] if ref["split"] == data.train_split]
        rows.append(row | {"refs": [refs[len(rows) % len(refs)]]})
    block = rows_of_block([decode_row(row, data.size, data.fit) for row in rows])
    return Items([block], data.train_split, size=data.size, fit=data.fit, unit="ref")


def _model(experiment: Experiment, init: Path | None, vocabulary: list[str], device):
    if init is None:
        torch.manual_seed(experiment.seed)
        spec = dict(experiment.model)
        return build_model(spec.pop("name"), vocabulary=vocabulary, **spec).to(device).eval()
    side = read_checkpoint_config(init)["image_size"]
    if side != experiment.data.size:
        raise UserError(
            f"{init} was trained at {side} px, but data.size is {experiment.data.size}; set data.size={side}"
        )
    return load_model(init, device)[0]


@torch.inference_mode()
def _mask(masker: Masker, model, batch: Batch) -> Mask:
    """The mask of the first epoch that masks, its scale calibrated on these very items where the settings ask for that."""
    x, epoch = model.normalise(batch.image), masker.config.warmup_epochs
    how = {"epoch": epoch, "item": batch.item, "real": batch.real, "target": batch.mask}
    while (
        masker.config.mode == "aml"
        and masker.calibrating
        and len(masker.log_scales) < CALIBRATION_BATCHES
    ):
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
    return [
        replace(config, tau=tau, rho=rho) for tau in near(config.tau) for rho in near(config.rho)
    ]


class _Aligned(Masker):
    """A masker whose stage 1 has run: other thresholds on one alignment."""

    known: Alignment

    def align(self, *args, **kwargs) -> Alignment:
        return self.known


def _shares_table(
    experiment: Experiment, masker: Masker, alignment: Alignment, model, batch: Batch
) -> str:
    lines = []
    for config in _around(experiment.aml):
        tau, rho = config.coordinates
        here = (
            max(abs(a - b) for a, b in zip((tau, rho), experiment.aml.coordinates, strict=True))
            < 1e-4
        )
        try:
            other = _Aligned(
                config, model=model, image_size=experiment.data.size, seed=experiment.seed
            )
        except UserError:
            cells = '<td colspan="6" class="t">refused: less than one block an image</td>'
        else:
            other.load_state_dict(masker.state_dict())
            other.known = alignment
            means = _means(_mask(other, model, batch), batch, other.block)
            cells = "".join(
                f"<td>{_percent(means.get(k))}</td>" for k in ("weak", "hidden", "hidden_target")
            )
            cells += "".join(
                f"<td>{_number(means.get(k))}</td>" for k in ("lift", "auroc", "mask_auroc")
            )
        lines.append(
            f"<tr{' class=here' if here else ''}><td>{tau:g}</td><td>{rho:g}</td>{cells}</tr>"
        )
    heads = "".join(
        f'<th scope="col">{h}</th>'
        for h in (
            "tau",
            "rho",
            "weak",
            "hidden",
            "hidden of target",
            "lift",
            "alignment AUROC",
            "mask AUROC",
        )
    )
    text = (
        f"Means over {len(batch.valid)} items, your settings in bold. Weak and hidden are shares of the image; lift is the hidden share of the target over "
        "that of the image (1: the mask knows nothing of the target); alignment AUROC 0.5: the alignment knows nothing of it; mask AUROC 0.5: the holes "
        "do not give it away."
    )
    return f'<p class="how">{text}</p><div class="scroll" tabindex="0"><table><thead><tr>{heads}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _settings(
    experiment: Experiment, masker: Masker, manifest: dict, init: Path | None
) -> list[tuple[str, str]]:
    aml = experiment.aml
    facts = [
        ("arm", aml.arm),
        ("tau, rho", "{:g}, {:g}".format(*aml.coordinates)),
        ("block", f"{masker.block} px of {experiment.data.size}"),
    ]
    if aml.mode == "aml":
        facts += [
            (
                "alignment",
                f"source {aml.source}, score {aml.score}, projection {aml.projection}, tokens {aml.tokens}",
            )
        ]
        facts += [("selection", f"{aml.selection}, threshold {aml.threshold_mode}")]
        facts += (
            [
                (
                    "scale",
                    f"{masker.scale:.4g}"
                    + (" (calibrated on these items)" if masker.log_scales else ""),
                )
            ]
            if aml.score.endswith("softmax")
            else []
        )
        facts += (
            [("warm-up", f"{aml.warmup_epochs} epochs without masking")]
            if aml.warmup_epochs
            else []
        )
    trained = f"{experiment.model['name']}, " + (
        f"trained: {init}" if init else f"untrained, seed {experiment.seed}"
    )
    return [
        *facts,
        ("model", trained),
        (
            "data",
            f"{manifest['dataset']} ({manifest['split_by']}), split {experiment.data.train_split}",
        ),
    ]


def _warnings(
    experiment: Experiment, masker: Masker, init: Path | None, means: dict[str, float]
) -> str:
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
        notes.append(
            f"{means['uninformative']:.0%} of the alignment maps are constant; nothing is hidden of their pictures."
        )
    return "".join(f'<p class="note">{escape(note)}</p>' for note in notes)
