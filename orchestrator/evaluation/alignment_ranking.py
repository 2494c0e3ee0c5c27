"""Which alignment source and score finds the referent: every one a model offers, on one checkpoint, no arm trained for it.

A good alignment ranks the referent's places above the others (AUROC); a mask made of it then spares the referent (lift below 1) and, for
the same reason, gives it away (mask AUROC above 0.5). The leak is what the model makes of that: mIoU with masks on minus without.
`others` is the lift of the picture's other referents: below 1 the mask hides empty background and leaves what could be confused.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from aml.data import Batch, Items, decode_row, eval_batches, rows_of_block
from aml.masking import SCORES, Masker, MaskSums, preset
from aml.metrics import Sums
from aml.training import load_model, score_batch
from orchestrator import data, storage


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
):
    """One row for each source, score and stage1_scale, the best AUROC first: auroc, lift, others, mask_auroc, hidden, uninformative, leak, n."""
    model, config = load_model(checkpoint)
    rows = [
        decode_row(row, config["image_size"], config["fit"])
        for row in data.read_rows(store, data.picture_places(store, [split]))
    ]
    items = Items(
        [rows_of_block(rows)],
        split,
        size=config["image_size"],
        fit=config["fit"],
        unit="sentence",
        limit=limit,
    )

    def batches():
        return eval_batches(items, model, batch=batch)

    clean, found = Sums(), []
    for one in batches():
        clean += _scored(model, model.normalise(one.image), one, config["threshold"])
    for source, how in pairs(model.sources):
        for scale in scales:
            setting = preset(source=source, score=how, stage1_scale=scale, tau=tau, rho=rho)
            masker = Masker(setting, model=model, image_size=config["image_size"])
            masks, beside, masked = MaskSums(), MaskSums(), Sums()
            for one in (
                batches()
            ):  # an automatic scale is found on the first of them, as training finds it
                if not masker.calibrating:
                    break
                masker(
                    model,
                    model.normalise(one.image),
                    one.tokens,
                    one.token_mask,
                    epoch=0,
                    item=one.item,
                    real=one.real,
                )
            for one in batches():
                x = model.normalise(one.image)
                mask = masker(
                    model,
                    x,
                    one.tokens,
                    one.token_mask,
                    epoch=0,
                    item=one.item,
                    real=one.real,
                    probe=True,
                )
                masks.add(mask, one.mask, one.valid, masker.block)
                beside.add(mask, others(items, one), one.valid, masker.block)
                masked += _scored(model, masker.hide(x, mask), one, config["threshold"])
            leak = masked.scores()["mIoU"] - clean.scores()["mIoU"]
            row = (
                {"source": source, "score": how, "stage1_scale": scale}
                | masks.means()
                | {"leak": leak, "n": len(items)}
            )
            if row.get("hidden") and "hidden_target" in beside.means():
                row["others"] = beside.means()["hidden_target"] / row["hidden"]
            found.append(row)
    return sorted(found, key=lambda row: -row.get("auroc", 0))


def others(items: Items, batch: Batch):
    """Pixels of the picture's other referents, the expression's own left out.   -> (B, H, W) bool"""
    found = []
    for index, own in zip(batch.index.tolist(), batch.mask.numpy(), strict=True):
        item = items.choices[index][0]
        every = [items.mask(replace(item, ref=k)) for k in range(len(items.row(item)["refs"]))]
        found.append(torch.from_numpy(np.any(every, axis=0) & ~own))
    return torch.stack(found)


def pairs(sources: tuple[str, ...]) -> list[tuple[str, str]]:
    """Every source with every score that belongs to it."""
    return [
        (s, how) for s in sources for how in SCORES if (s == "prediction") == (how == "probability")
    ]


def ranking_line(row: dict) -> str:
    cells = [
        f"{name} {row[key]:6.3f}"
        for key, name in (
            ("auroc", "AUROC"),
            ("lift", "lift"),
            ("others", "of others"),
            ("mask_auroc", "mask AUROC"),
            ("leak", "leak"),
        )
        if key in row
    ]
    return f"{row['source']:10} {row['score']:13} at {row['stage1_scale']:5.3f}   " + "   ".join(
        cells
    )


def _scored(model, x, batch, threshold: float) -> Sums:
    with torch.inference_mode():
        logits = model(x, batch.tokens, batch.token_mask).float()
    return score_batch(logits, batch, threshold)
