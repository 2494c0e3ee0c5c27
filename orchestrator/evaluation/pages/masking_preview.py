"""Write a page that shows what masking would hide, before anything is trained (`preview`)."""

from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aml.data import Batch, Items, decode_row, rows_of_block
from aml.errors import UserError
from aml.files import check_file
from aml.inference import FixedAlignmentMasker, example_panels
from aml.masking import (
    CALIBRATION_BATCHES,
    DIAGNOSTICS,
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
from orchestrator.data import (
    Sources,
    check_sources,
    picture_places,
    prepare_sources,
    read_rows,
)
from orchestrator.evaluation.pages.html_page import (
    decimal,
    definition_list,
    evenly_spaced,
    figure,
    html_page,
    percent,
)
from orchestrator.storage import check_root, storage_root
from orchestrator.utils import atomic_write

MEASURED_ITEMS = 64
"""Number of items over which the page's numbers are taken, where as many are there."""

HOW_TO_READ_PANELS = (
    "Alignment runs from dark (low) to yellow (high), each stretched over its own range. Grey "
    "squares are hidden in training."
)

UNTRAINED_NOTE = (
    "The model is untrained, so its alignment is noise: this page shows how much is hidden and in "
    "what pattern, not yet whether it is the right part. Give a checkpoint with --init to see a "
    "trained one."
)

TABLE_COLUMNS: dict[str, tuple[str, Callable[[float | None], str]]] = {
    "weak": ("weak", percent),
    "hidden": ("hidden", percent),
    "hidden_target": ("hidden of target", percent),
    "lift": ("lift", decimal),
    "auroc": ("alignment AUROC", decimal),
    "mask_auroc": ("mask AUROC", decimal),
}
"""Heading and format of each diagnostic in the table of shares."""


def preview_masks(
    experiment: Experiment,
    n: int,
    out: Path,
    *,
    init: Path | None = None,
    device: str | torch.device = "cpu",
) -> Path:
    """Write a page on some training items: picture, alignment, what would be hidden, truth.

    It also has the realised shares, of these settings and of settings near them.

    Args:
        experiment: The settings.
        n: Number of items to show.
        out: File of the page.
        init: Checkpoint whose model aligns. Without one a fresh model of the experiment does; its
            alignment is noise, and the page says so.
        device: Where the model computes.

    Returns:
        The file.

    Raises:
        UserError: There are no data, the settings make no sense, n is below 1, or the checkpoint
            has another image size.
    """
    if n < 1:
        raise UserError(f"n is {n}; ask for at least one item")
    if experiment.aml.method.level == "words":
        raise UserError(
            "preview shows what of a picture is hidden, and aml.level words hides words; set "
            "another level"
        )
    check_file(out, "--out")
    root = storage_root(experiment.storage.root)
    if check_sources(experiment.data, root) is None:
        check_root(root)  # the data are generated there
    sources = prepare_sources(experiment.data, root)
    items = _sample_items(experiment, sources, max(n, MEASURED_ITEMS))
    model = _load_model(experiment, init, sources.words(), device)
    indices = np.arange(len(items))
    batch = items.batch(indices, model, seed=experiment.seed).to(device)
    sentences = [item.sentence["sent"] for item in items.picks(indices, experiment.seed, 0)]
    masker = Masker(
        experiment.aml, model=model, image_size=experiment.data.size, seed=experiment.seed
    )
    mask = _decide(masker, model, batch)
    values = measure_masks(mask, batch.mask, masker.block)
    body = [
        definition_list(_settings(experiment, masker, sources.manifest, init)),
        _notes(experiment, init, _mean_diagnostics(mask, batch, masker.block)),
        "<h2>Realised shares</h2>",
        _shares_table(experiment, masker, mask.alignment, model, batch),
        f"<h2>{min(n, len(items))} training items</h2>",
        f'<p class="how">{HOW_TO_READ_PANELS}</p>',
    ]
    rows = example_panels(batch.image, mask, masker.block, truth=batch.mask)[:n]
    for i, panels in enumerate(rows):
        figures = "".join(figure(title, picture) for title, picture in panels)
        body.append(
            f'<section class="item"><h3>{escape(sentences[i])}</h3>'
            f'<div class="panels">{figures}</div>'
            f'<p class="how">{_describe_mask(values[i])}</p></section>'
        )
    page = html_page(f"What would be hidden: {experiment.name}", body)
    atomic_write(Path(out), page.encode())
    return Path(out)


def _sample_items(experiment: Experiment, sources: Sources, count: int) -> Items:
    """Return up to `count` refs of the training split, each of another picture.

    They are spread evenly over the split; of several data sets the first that has some is used.
    """
    data = experiment.data
    for store in sources.stores:
        places = [
            place
            for place in picture_places(store, [data.train_split])
            if place[0] not in sources.evaluation
        ]
        if places:
            break
    rows: list[dict] = []
    for row in read_rows(store, evenly_spaced(places, count)):
        refs = [ref for ref in row["refs"] if ref["split"] == data.train_split]
        rows.append(row | {"refs": [refs[len(rows) % len(refs)]]})
    block = rows_of_block([decode_row(row, data.size, data.fit) for row in rows])
    return Items([block], data.train_split, size=data.size, fit=data.fit, unit="ref")


def _load_model(
    experiment: Experiment, init: Path | None, vocabulary: list[str], device: str | torch.device
) -> Any:
    """Return the checkpoint's model, or a fresh one of the experiment where there is none."""
    if init is None:
        torch.manual_seed(experiment.seed)
        options = dict(experiment.model)
        model = build_model(options.pop("name"), vocabulary=vocabulary, **options)
        return model.to(device).eval()
    side = read_checkpoint_config(init)["image_size"]
    if side != experiment.data.size:
        raise UserError(
            f"{init} was trained at {side} px, but data.size is {experiment.data.size}; set "
            f"data.size={side}"
        )
    return load_model(init, device)[0]


@torch.inference_mode()
def _decide(masker: Masker, model: Any, batch: Batch) -> Mask:
    """Return the mask of the first epoch that masks.

    Where the settings ask for an automatic scale it is calibrated on these very items.
    """
    x = model.normalise(batch.image)

    def mask_batch(probe: bool) -> Mask:
        return masker(
            model,
            x,
            batch.tokens,
            batch.token_mask,
            epoch=masker.config.first_epoch,
            item=batch.item,
            real=batch.real,
            target=batch.mask,
            probe=probe,
        )

    while (
        masker.config.mode == "aml"
        and masker.calibrating
        and len(masker.log_scales) < CALIBRATION_BATCHES
    ):
        mask_batch(probe=False)
    return mask_batch(probe=True)


def _mean_diagnostics(mask: Mask, batch: Batch, block: int) -> dict[str, float]:
    """Return the means of the diagnostics over a batch; `block` is a block's side in pixels."""
    sums = MaskSums(batch.image.device)
    sums.add(mask, batch.mask, batch.valid, block)
    return sums.means()


def _nearby_settings(config: MaskingConfig) -> list[MaskingConfig]:
    """Return the settings and the same with tau and rho 0.5 and 1.5 times as large.

    In modes that hide without looking at the alignment the rate changes instead.
    """

    def near(x: float) -> list[float]:
        return sorted({round(min(1.0, x * factor), 4) for factor in (0.5, 1.0, 1.5)})

    if not config.share:
        return [config]
    if config.mode in ("maskris", "oneref", "consistency"):
        return [config.replace(rate=rate) for rate in near(config.share)]
    if config.mode == "random" and config.rate != "match":
        return [config.replace(tau=1.0, rho=rate, rate=None) for rate in near(config.share)]
    return [
        config.replace(tau=tau, rho=rho) for tau in near(config.tau) for rho in near(config.rho)
    ]


def _shares_table(
    experiment: Experiment,
    masker: Masker,
    alignment: Alignment | None,
    model: Any,
    batch: Batch,
) -> str:
    """Return a table of the diagnostics at the settings and at those near them.

    Args:
        experiment: The settings.
        masker: A masker with these settings, calibrated.
        alignment: What stage 1 of that masker gave for the batch.
        model: The model that aligns.
        batch: The items.
    """
    own = experiment.aml.coordinates
    lines = []
    for config in _nearby_settings(experiment.aml):
        tau, rho = config.coordinates
        is_own = max(abs(a - b) for a, b in zip((tau, rho), own, strict=True)) < 1e-4
        try:
            other = FixedAlignmentMasker(
                config, model=model, image_size=experiment.data.size, seed=experiment.seed
            )
        except UserError:
            cells = (
                f'<td colspan="{len(TABLE_COLUMNS)}" class="t">'
                "refused: less than one block an image</td>"
            )
        else:
            other.load_state_dict(masker.state_dict())
            if alignment is not None:
                other.alignment = alignment
            means = _mean_diagnostics(_decide(other, model, batch), batch, other.block)
            cells = "".join(
                f"<td>{form(means.get(key))}</td>" for key, (_, form) in TABLE_COLUMNS.items()
            )
        kind = " class=here" if is_own else ""
        lines.append(f"<tr{kind}><td>{tau:g}</td><td>{rho:g}</td>{cells}</tr>")
    names = ["tau", "rho", *(name for name, _ in TABLE_COLUMNS.values())]
    heads = "".join(f'<th scope="col">{name}</th>' for name in names)
    text = (
        f"Means over {len(batch.valid)} items, your settings in bold. Weak and hidden are shares "
        "of the image; lift is the hidden share of the target over that of the image (1: the mask "
        "knows nothing of the target); alignment AUROC 0.5: the alignment knows nothing of it; "
        "mask AUROC 0.5: the holes do not give it away."
    )
    return (
        f'<p class="how">{text}</p><div class="scroll" tabindex="0"><table>'
        f"<thead><tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _settings(
    experiment: Experiment, masker: Masker, manifest: dict, init: Path | None
) -> list[tuple[str, str]]:
    """Return the names and values of the settings at the top of the page."""
    aml = experiment.aml
    tau, rho = aml.coordinates
    entries = [
        ("arm", aml.arm),
        ("tau, rho", f"{tau:g}, {rho:g}"),
        ("block", f"{masker.block} px of {experiment.data.size}"),
    ]
    if aml.mode == "aml":
        alignment = (
            f"source {aml.source}, score {aml.score}, projection {aml.projection}, "
            f"tokens {aml.tokens}"
        )
        entries.append(("alignment", alignment))
        entries.append(("selection", f"{aml.selection}, threshold {aml.threshold_mode}"))
        if aml.score.endswith("softmax"):
            calibrated = " (calibrated on these items)" if masker.log_scales else ""
            entries.append(("scale", f"{masker.scale:.4g}{calibrated}"))
        if aml.warmup_epochs:
            entries.append(("warm-up", f"{aml.warmup_epochs} epochs without masking"))
    state = f"trained: {init}" if init else f"untrained, seed {experiment.seed}"
    entries.append(("model", f"{experiment.model['name']}, {state}"))
    source = f"{manifest['dataset']} ({manifest['split_by']})"
    entries.append(("data", f"{source}, split {experiment.data.train_split}"))
    return entries


def _notes(experiment: Experiment, init: Path | None, means: dict[str, float]) -> str:
    """Return warnings about the settings as paragraphs.

    Args:
        experiment: The settings.
        init: Checkpoint whose model aligns; None for an untrained model.
        means: Means of the diagnostics at these settings.
    """
    notes = []
    if init is None and experiment.aml.share:
        notes.append(UNTRAINED_NOTE)
    if not experiment.aml.share:
        notes.append(f"Mode {experiment.aml.mode} hides nothing.")
    elif means["hidden"] < 0.001:
        notes.append("These settings hide almost nothing of these pictures.")
    elif means["hidden"] > 0.9:
        notes.append("These settings hide nearly the whole picture: nothing is left to learn from.")
    if means.get("uninformative", 0) > 0.05:
        notes.append(
            f"{means['uninformative']:.0%} of the alignment maps are constant; nothing is hidden "
            "of their pictures."
        )
    return "".join(f'<p class="note">{escape(note)}</p>' for note in notes)


def _describe_mask(values: torch.Tensor) -> str:
    """Return the diagnostics of one item as text; `values` are in the order of DIAGNOSTICS."""
    found = dict(zip(DIAGNOSTICS, values.tolist(), strict=True))
    lift = found["hidden_target"] / found["hidden"] if found["hidden"] else None
    return (
        f"weak {percent(found['weak'])}, hidden {percent(found['hidden'])}, hidden of the target "
        f"{percent(found['hidden_target'])}, lift {decimal(lift)}, alignment AUROC "
        f"{decimal(found['auroc'])}"
    )
