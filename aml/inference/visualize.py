"""What a model saw, as pictures: image, alignment, hidden blocks, prediction, truth, one row an expression."""

import io

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont

from aml.data import some_batches
from aml.masking import Mask, blocks_to_pixels
from aml.training import Learner, segment_logits

PANEL, GAP, CAPTION = 128, 6, 20

"""Pixels."""

TRUTH, PREDICTION = (46, 160, 67), (9, 105, 218)


def training_rows(
    learner: Learner, items, indices: np.ndarray, threshold: float = 0.5
) -> Image.Image:
    """The grid of the present epoch: what training would hide of these items, and what the model predicts on the whole image."""
    (batch,) = some_batches(items, learner.model, indices, len(indices))
    batch = batch.to(learner.device)
    with torch.inference_mode(), learner.autocast():
        learner.model.eval()
        x = learner.model.normalise(batch.image)
        mask = learner.mask(x, batch)
        prediction = segment_logits(
            learner.model(x, batch.tokens, batch.token_mask).float(),
            batch.mask.shape[1:],
            threshold,
        )
    sentences = [item.sentence["sent"] for item in items.picks(indices, 0, 0)]
    return grid(
        batch.image, sentences, mask, learner.masker.block, prediction=prediction, truth=batch.mask
    )


def grid(
    image, sentences: list[str], mask: Mask, block: int, *, prediction=None, truth=None
) -> Image.Image:
    """image (B, 3, H, W) uint8, prediction and truth (B, H, W) bool or None -> a picture with B rows of panels"""
    return _draw(
        list(
            zip(
                sentences,
                panels(image, mask, block, prediction=prediction, truth=truth),
                strict=True,
            )
        )
    )


def panels(
    image, mask: Mask, block: int, *, prediction=None, truth=None
) -> list[list[tuple[str, np.ndarray]]]:
    """The panels of `grid` one by one: for each of the B samples (title, (H, W, 3) uint8) pairs."""
    pictures = image.permute(0, 2, 3, 1).cpu().numpy()
    hidden = blocks_to_pixels(mask.hidden, block, *image.shape[2:]).cpu().numpy()
    heat = None
    if mask.alignment is not None:
        heat = (
            F.interpolate(
                mask.alignment.map[:, None].float(),
                image.shape[2:],
                mode="bilinear",
                align_corners=False,
            )[:, 0]
            .cpu()
            .numpy()
        )
    rows = []
    for i, picture in enumerate(pictures):
        row = [("image", picture)]
        row += [("alignment", heatmap(picture, heat[i]))] if heat is not None else []
        row += [("hidden in training", np.where(hidden[i][..., None], np.uint8(128), picture))]
        row += (
            [("prediction", draw_overlay(picture, prediction[i].cpu().numpy(), PREDICTION))]
            if prediction is not None
            else []
        )
        row += (
            [("truth", draw_overlay(picture, truth[i].cpu().numpy(), TRUTH))]
            if truth is not None
            else []
        )
        rows.append(row)
    return rows


def draw_overlay(picture: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """The rest of the picture dimmed, the mask outlined.   picture (H, W, 3) uint8, mask (H, W) bool -> (H, W, 3) uint8"""
    inner = mask.copy()
    inner[1:-1, 1:-1] &= mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    out = np.where(mask[..., None], picture, (picture * 0.45 + 70).astype(np.uint8))
    out[mask & ~inner] = colour
    return out


def heatmap(picture: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Alignment from dark (low) to yellow (high) over the grey picture; the map is stretched over its own range."""
    low, high = float(score.min()), float(score.max())
    t = (score - low) / max(high - low, 1e-6)
    colours = np.array(
        [[48, 18, 59], [62, 108, 206], [45, 190, 160], [190, 220, 60], [253, 231, 37]], np.float32
    )
    place = t * (len(colours) - 1)
    below = place.astype(int).clip(0, len(colours) - 2)
    colour = colours[below] + (place - below)[..., None] * (colours[below + 1] - colours[below])
    return (0.35 * picture.mean(2, keepdims=True) + 0.65 * colour).astype(np.uint8)


def _draw(rows) -> Image.Image:
    font = ImageFont.load_default(13)
    columns = max(len(panels) for _, panels in rows)
    width, height = columns * (PANEL + GAP) + GAP, CAPTION + len(rows) * (PANEL + CAPTION + GAP)
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    for c, (title, _) in enumerate(max(rows, key=lambda row: len(row[1]))[1]):
        draw.text((GAP + c * (PANEL + GAP), 2), title, fill=(90, 90, 90), font=font)
    for r, (sentence, panels) in enumerate(rows):
        top = CAPTION + r * (PANEL + CAPTION + GAP)
        draw.text(
            (GAP, top + 1),
            sentence if len(sentence) < 90 else sentence[:88] + "…",
            fill=(20, 20, 20),
            font=font,
        )
        for c, (_, panel) in enumerate(panels):
            sheet.paste(
                Image.fromarray(panel).resize((PANEL, PANEL), Image.Resampling.NEAREST),
                (GAP + c * (PANEL + GAP), top + CAPTION),
            )
    return sheet


def png(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG", optimize=False)
    return out.getvalue()
