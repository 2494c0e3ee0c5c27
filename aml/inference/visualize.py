"""Draw what a model saw: image, alignment, hidden blocks, prediction, truth; one row a sentence."""

import io
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from aml.data import Items, some_batches
from aml.files import MADE_BY
from aml.masking import Mask, blocks_to_pixels
from aml.training import Learner, segment_logits

PANEL = 128
"""Side of a panel in pixels."""

GAP = 6
"""Space between two panels in pixels."""

CAPTION = 20
"""Height of a line of text in pixels."""

TRUTH_COLOUR = (46, 160, 67)
PREDICTION_COLOUR = (9, 105, 218)

Panel = tuple[str, np.ndarray]
"""Title and picture (H, W, 3) uint8."""


def draw_training_grid(
    learner: Learner, items: Items, indices: np.ndarray, threshold: float = 0.5
) -> Image.Image:
    """Draw what training would hide of some items in the learner's present epoch.

    The prediction beside it is the model's on the whole image, with nothing hidden.

    Args:
        learner: Holds model, masker, device and epoch.
        items: The items of a split.
        indices: (B,) places of the items to draw.
        threshold: Probability from which a pixel belongs to the prediction.

    Returns:
        A picture with B rows of panels.
    """
    (batch,) = some_batches(items, learner.model, indices, len(indices))
    batch = batch.to(learner.device)
    size = batch.mask.shape[1], batch.mask.shape[2]
    with torch.inference_mode(), learner.autocast():
        learner.model.eval()
        x = learner.model.normalise(batch.image)
        mask = learner.mask(x, batch)
        logits = learner.model(x, batch.tokens, batch.token_mask).float()
        prediction = segment_logits(logits, size, threshold)
    sentences = [item.sentence["sent"] for item in items.picks(indices, 0, 0)]
    rows = example_panels(
        batch.image, mask, learner.masker.block, prediction=prediction, truth=batch.mask
    )
    return _draw_sheet(list(zip(sentences, rows, strict=True)))


def example_panels(
    image: torch.Tensor,
    mask: Mask,
    block: int,
    *,
    prediction: torch.Tensor | None = None,
    truth: torch.Tensor | None = None,
) -> list[list[Panel]]:
    """Draw the panels of each sample of a batch.

    Args:
        image: (B, 3, H, W) uint8.
        mask: The masker's decision for these images.
        block: Side of a block in pixels.
        prediction: (B, H, W) bool; None leaves its panel out.
        truth: (B, H, W) bool; None leaves its panel out.

    Returns:
        For each of the B samples its panels in order: title and picture (H, W, 3) uint8.
    """
    size = image.shape[2], image.shape[3]
    pictures = image.permute(0, 2, 3, 1).cpu().numpy()
    if mask.words:
        hidden = np.zeros((len(image), *size), bool)
    else:
        hidden = blocks_to_pixels(mask.hidden, block, *size).cpu().numpy()
    scores = _alignment_scores(mask, size)
    rows = []
    for i, picture in enumerate(pictures):
        row = [("image", picture)]
        if scores is not None:
            row.append(("alignment", draw_heatmap(picture, scores[i])))
        row.append(("hidden in training", np.where(hidden[i][..., None], np.uint8(128), picture)))
        if prediction is not None:
            overlay = draw_overlay(picture, prediction[i].cpu().numpy(), PREDICTION_COLOUR)
            row.append(("prediction", overlay))
        if truth is not None:
            row.append(("truth", draw_overlay(picture, truth[i].cpu().numpy(), TRUTH_COLOUR)))
        rows.append(row)
    return rows


def draw_overlay(picture: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Outline a mask on a picture and dim the rest of the picture.

    Args:
        picture: (H, W, 3) uint8, not changed.
        mask: (H, W) bool.
        colour: RGB of the outline.

    Returns:
        (H, W, 3) uint8.
    """
    inner = mask.copy()
    inner[1:-1, 1:-1] &= mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    out = np.where(mask[..., None], picture, (picture * 0.45 + 70).astype(np.uint8))
    out[mask & ~inner] = colour
    return out


def draw_heatmap(picture: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Draw an alignment map from dark (low) to yellow (high) over the grey picture.

    Args:
        picture: (H, W, 3) uint8.
        score: (H, W) float; the colours are stretched over its own range.

    Returns:
        (H, W, 3) uint8.
    """
    low = float(score.min())
    high = float(score.max())
    t = (score - low) / max(high - low, 1e-6)
    colours = np.array(
        [[48, 18, 59], [62, 108, 206], [45, 190, 160], [190, 220, 60], [253, 231, 37]], np.float32
    )
    place = t * (len(colours) - 1)
    below = place.astype(int).clip(0, len(colours) - 2)
    colour = colours[below] + (place - below)[..., None] * (colours[below + 1] - colours[below])
    return (0.35 * picture.mean(2, keepdims=True) + 0.65 * colour).astype(np.uint8)


def encode_png(picture: Image.Image) -> bytes:
    """Return the picture as the bytes of a PNG file, which says that this program made it."""
    out = io.BytesIO()
    about = PngInfo()
    about.add_text("Software", MADE_BY)
    picture.save(out, "PNG", optimize=False, pnginfo=about)
    return out.getvalue()


def _alignment_scores(mask: Mask, size: tuple[int, int]) -> np.ndarray | None:
    """Return the alignment maps resized to (B, *size) float, or None where there are none."""
    if mask.alignment is None or mask.words:
        return None
    maps = mask.alignment.map[:, None].float()
    resized = F.interpolate(maps, size, mode="bilinear", align_corners=False)
    return resized[:, 0].cpu().numpy()


def _draw_sheet(rows: Sequence[tuple[str, list[Panel]]]) -> Image.Image:
    """Draw titles on top, then for each (sentence, panels) the sentence and its panels."""
    font = ImageFont.load_default(13)
    columns = max(len(panels) for _, panels in rows)
    width = columns * (PANEL + GAP) + GAP
    height = CAPTION + len(rows) * (PANEL + CAPTION + GAP)
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    longest = max((panels for _, panels in rows), key=len)
    for column, (title, _) in enumerate(longest):
        draw.text((GAP + column * (PANEL + GAP), 2), title, fill=(90, 90, 90), font=font)
    for number, (sentence, panels) in enumerate(rows):
        top = CAPTION + number * (PANEL + CAPTION + GAP)
        caption = sentence if len(sentence) < 90 else sentence[:88] + "…"
        draw.text((GAP, top + 1), caption, fill=(20, 20, 20), font=font)
        for column, (_, panel) in enumerate(panels):
            small = Image.fromarray(panel).resize((PANEL, PANEL), Image.Resampling.NEAREST)
            sheet.paste(small, (GAP + column * (PANEL + GAP), top + CAPTION))
    return sheet
