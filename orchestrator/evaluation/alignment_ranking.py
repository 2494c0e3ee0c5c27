"""Rank alignment sources and scores by how well they find the referent, on one checkpoint.

Every source and score that the model offers is measured; no model is trained for it.

A good alignment ranks the referent's places above the others (AUROC). A mask made of it then spares
the referent (lift below 1) and, for the same reason, gives it away (mask AUROC above 0.5). The leak
is how much the model gains from that: mIoU with masks minus mIoU without. `others` is the lift of
the picture's other referents: below 1 the mask hides empty background and leaves what could be
confused with the referent.
"""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aml.data import Batch, Items, decode_row, eval_batches, rows_of_block
from aml.errors import UserError
from aml.masking import SCORES, Masker, MaskSums, preset
from aml.metrics import Sums
from aml.training import load_model, score_batch
from orchestrator import data, storage

logger = logging.getLogger(__name__)


def rank_alignments(
    checkpoint: Path,
    store: storage.Filesystem,
    *,
    split: str,
    limit: int | None,
    scales: list[float],
    tau: float,
    rho: float,
    batch: int = 64,
) -> list[dict]:
    """Measure each alignment source and score of a model at each scale.

    Args:
        checkpoint: The checkpoint's folder.
        store: The shards.
        split: Split whose sentences are used.
        limit: Use the first so many sentences; None uses all.
        scales: Values of stage1_scale: sizes at which stage 1 sees the image, as shares.
        tau: Share of the blocks called weak.
        rho: Share of the weak blocks that is hidden.
        batch: Number of sentences computed together.

    Returns:
        One row for each source, score and stage1_scale, the best AUROC first, with auroc, lift,
        others, mask_auroc, hidden, uninformative, leak and n where they are defined.

    Raises:
        UserError: There is no sentence to measure on.
    """
    model, config = load_model(checkpoint)
    size = config["image_size"]
    fit = config["fit"]
    threshold = config["threshold"]
    places = data.picture_places(store, [split])
    rows = [decode_row(row, size, fit) for row in data.read_rows(store, places)]
    if not rows:
        raise UserError(f"{store.uri} has no sentence of split {split}; name another --split")
    items = Items([rows_of_block(rows)], split, size=size, fit=fit, unit="sentence", limit=limit)

    def batches() -> Iterator[Batch]:
        return eval_batches(items, model, batch=batch)

    clean = Sums()
    for one in batches():
        clean += _score_images(model, model.normalise(one.image), one, threshold)
    clean_miou = clean.scores()["mIoU"]

    asked = [(*pair, scale) for pair in source_score_pairs(model.sources) for scale in scales]
    logger.info(
        f"{len(asked)} alignments on {len(items)} sentences; mIoU without masks {clean_miou:.3f}"
    )
    found = []
    for number, (source, score, scale) in enumerate(asked, 1):
        begun = time.monotonic()
        settings = preset(source=source, score=score, stage1_scale=scale, tau=tau, rho=rho)
        masker = Masker(settings, model=model, image_size=size)
        measured = _measure(model, masker, items, batches, threshold)
        row: dict = {"source": source, "score": score, "stage1_scale": scale, **measured}
        row["leak"] = row.pop("mIoU") - clean_miou
        row["n"] = len(items)
        found.append(row)
        seconds = time.monotonic() - begun
        logger.info(f"{number} of {len(asked)}: {source} {score} at {scale:g}, {seconds:.0f} s")
    return sorted(found, key=lambda row: -row.get("auroc", 0))


def other_referents(items: Items, batch: Batch) -> torch.Tensor:
    """Return the pixels of the picture's other referents, without the expression's own.

    Args:
        items: The items that the batch was made of.
        batch: B samples.

    Returns:
        (B, H, W) bool.
    """
    found = []
    for index, own in zip(batch.index.tolist(), batch.mask.numpy(), strict=True):
        item = items.pick(index, 0, 0)
        masks = [items.mask(replace(item, ref=k)) for k in range(len(items.row(item)["refs"]))]
        found.append(torch.from_numpy(np.any(masks, axis=0) & ~own))
    return torch.stack(found)


def source_score_pairs(sources: tuple[str, ...]) -> list[tuple[str, str]]:
    """Return every alignment source with every score that belongs to it."""
    return [
        (source, score)
        for source in sources
        for score in SCORES
        if (source == "prediction") == (score == "probability")
    ]


def ranking_line(row: dict) -> str:
    """Return a row of the ranking as a line for a person."""
    names = {
        "auroc": "AUROC",
        "lift": "lift",
        "others": "of others",
        "mask_auroc": "mask AUROC",
        "leak": "leak",
    }
    cells = "   ".join(f"{name} {row[key]:6.3f}" for key, name in names.items() if key in row)
    return f"{row['source']:10} {row['score']:13} at {row['stage1_scale']:5.3f}   {cells}"


def _measure(
    model: Any,
    masker: Masker,
    items: Items,
    batches: Callable[[], Iterator[Batch]],
    threshold: float,
) -> dict[str, float]:
    """Return the mean diagnostics of a masker's masks, and the model's mIoU under them.

    Args:
        model: The model that aligns and predicts.
        masker: The masker to measure.
        items: The items that the batches are made of.
        batches: Returns the batches, anew at each call.
        threshold: Probability from which a pixel belongs to the prediction.

    Returns:
        The means of MaskSums, `mIoU`, and `others` where it is defined.
    """
    # An automatic scale is calibrated on the first batches, as in training; few sentences are
    # taken several times, since nothing is hidden before the calibration has ended.
    while masker.calibrating:
        for one in batches():
            if masker.calibrating:
                _mask(model, masker, one, probe=False)
    masks = MaskSums()
    masks_of_others = MaskSums()
    sums = Sums()
    for one in batches():
        x, mask = _mask(model, masker, one, probe=True)
        masks.add(mask, one.mask, one.valid, masker.block)
        masks_of_others.add(mask, other_referents(items, one), one.valid, masker.block)
        sums += _score_images(model, masker.hide(x, mask), one, threshold)
    found = masks.means() | {"mIoU": sums.scores()["mIoU"]}
    hidden_of_others = masks_of_others.means().get("hidden_target")
    if found.get("hidden") and hidden_of_others is not None:
        found["others"] = hidden_of_others / found["hidden"]
    return found


def _mask(model: Any, masker: Masker, batch: Batch, *, probe: bool) -> tuple[torch.Tensor, Any]:
    """Return the normalised images (B, C, H, W) of a batch, and the masker's decision on them."""
    x = model.normalise(batch.image)
    mask = masker(
        model,
        x,
        batch.tokens,
        batch.token_mask,
        epoch=0,
        item=batch.item,
        real=batch.real,
        probe=probe,
    )
    return x, mask


def _score_images(model: Any, x: torch.Tensor, batch: Batch, threshold: float) -> Sums:
    """Return the metric sums of a batch whose images are replaced by x (B, C, H, W)."""
    with torch.inference_mode():
        logits = model(x, batch.tokens, batch.token_mask).float()
    return score_batch(logits, batch, threshold)
