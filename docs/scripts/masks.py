"""Draw what each arm hides of generated scenes, for docs/arms.md.

Run:   PYTHONPATH=. python docs/scripts/masks.py CHECKPOINT [FOLDER]
       CHECKPOINT is the folder of a small model that was trained on generated scenes, as
       runs/quickstart-849903bc/trials/off-confirm-000/best; FOLDER is docs/pictures by default.
Writes arms.png (two rows a scene, a panel an arm), tau_rho.png (one scene at nine settings) and
line.png (one scene along the line tau * rho = 0.2).
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from aml.data import Items, decode_row, read_refer, rows_of_block, some_batches
from aml.inference.visualize import draw_heatmap, draw_overlay
from aml.masking import Masker, MaskInputs, blocks_to_pixels, preset
from aml.synthetic import generate_dataset
from aml.training import load_model

PANEL = 120
GAP = 6
LINE = 18
EPOCH = 0
ARMS = {
    "random": {"mode": "random", "rate": 0.2},
    "maskris": {"mode": "maskris"},
    "oneref": {"mode": "oneref"},
    "aml/calibrated": {"preset": "calibrated"},
    "aml/balanced": {"preset": "balanced"},
    "aml/confusable": {"preset": "confusable"},
    "aml/paper": {"preset": "paper"},
}
SCENES = (22, 41)
"""Places of the scenes shown among the items of the batch."""


def scenes(folder: Path, size: int) -> Items:
    """Return the validation sentences of a few generated pictures."""
    generate_dataset(folder, "refcoco", images=60, size=128, seed=11, workers=1)
    rows = read_refer(folder, folder / "images", "refcoco", "unc")
    decoded = [decode_row(row | {"jpeg": Path(row["path"]).read_bytes()}, size) for row in rows]
    return Items([rows_of_block(decoded)], "val", size=size, unit="sentence")


def decide(model, batch, size: int, settings: dict):
    """Return a masker of some settings and its decision for a batch."""
    chosen = {"tau": 0.4, "rho": 0.5} if "preset" in settings else {}
    if settings.get("preset") == "paper":
        chosen = {}
    name = settings.get("preset", "calibrated")
    others = {key: value for key, value in settings.items() if key != "preset"}
    masker = Masker(preset(name, **(chosen | others)), model=model, image_size=size, seed=0)
    inputs = MaskInputs(
        model,
        model.normalise(batch.image),
        batch.tokens,
        batch.token_mask,
        batch.item,
        batch.real,
        target=batch.mask,
    )
    return masker, masker.decide(inputs, EPOCH)


def hidden_picture(masker, mask, batch, place: int) -> np.ndarray:
    """Return a picture with its hidden blocks grey, (PANEL, PANEL, 3) uint8."""
    size = batch.image.shape[2:]
    hidden = blocks_to_pixels(mask.hidden, masker.block, *size)[place].numpy()
    grey = np.asarray(Image.fromarray(hidden).resize((PANEL, PANEL), Image.Resampling.NEAREST))
    return np.where(grey[..., None], np.uint8(128), picture_of(batch, place))


def picture_of(batch, place: int) -> np.ndarray:
    """Return a network image enlarged to a panel."""
    image = batch.image[place].permute(1, 2, 0).numpy()
    large = Image.fromarray(image).resize((PANEL, PANEL), Image.Resampling.LANCZOS)
    return np.asarray(large)


def sheet(rows: list[tuple[str, list[tuple[str, np.ndarray]]]], path: Path) -> None:
    """Write rows of titled panels, each row under a line of text, as a PNG file of 256 colours."""
    font = ImageFont.load_default(12)
    columns = max(len(panels) for _, panels in rows)
    height = PANEL + 2 * LINE + GAP
    canvas = Image.new("RGB", (columns * (PANEL + GAP) + GAP, len(rows) * height + GAP), "white")
    draw = ImageDraw.Draw(canvas)
    for i, (text, panels) in enumerate(rows):
        top = i * height + GAP
        draw.text((GAP, top), text, "black", font)
        for j, (title, picture) in enumerate(panels):
            left = j * (PANEL + GAP) + GAP
            draw.text((left, top + LINE), title, (90, 90, 90), font)
            canvas.paste(Image.fromarray(picture), (left, top + 2 * LINE))
    canvas.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"wrote {path}, {path.stat().st_size // 1000} kB")


def main(checkpoint: Path, out: Path) -> None:
    """Write the three pictures."""
    model, about = load_model(checkpoint)
    model.eval()
    size = about["image_size"]
    with tempfile.TemporaryDirectory() as folder:
        items = scenes(Path(folder), size)
    count = len(items)
    (batch,) = some_batches(items, model, np.arange(count), count)
    sentences = [item.sentence["sent"] for item in items.picks(np.arange(count), 0, 0)]
    drawn = {name: decide(model, batch, size, settings) for name, settings in ARMS.items()}
    alignment = drawn["aml/calibrated"][1].alignment.map
    scores = torch.nn.functional.interpolate(alignment[:, None].float(), (PANEL, PANEL))[:, 0]
    rows = []
    for place in SCENES:
        truth = np.asarray(Image.fromarray(batch.mask[place].numpy()).resize((PANEL, PANEL)))
        picture = picture_of(batch, place)
        panels = [
            ("the referent", draw_overlay(picture, truth, (46, 160, 67))),
            ("alignment", draw_heatmap(picture, scores[place].numpy())),
        ]
        panels += [(name, hidden_picture(*made, batch, place)) for name, made in drawn.items()]
        rows += [(sentences[place], panels[:5]), ("", panels[5:])]
    sheet(rows, out / "arms.png")

    place = SCENES[0]
    grid = []
    for tau in (0.2, 0.4, 0.8):
        panels = []
        for rho in (0.25, 0.5, 1.0):
            made = decide(model, batch, size, {"preset": "calibrated", "tau": tau, "rho": rho})
            title = f"rho {rho:g}: {tau * rho:.0%} hidden"
            panels.append((title, hidden_picture(*made, batch, place)))
        grid.append((f"tau {tau:g}: the worst {tau:.0%} are weak", panels))
    sheet(grid, out / "tau_rho.png")

    panels = []
    for tau in (0.2, 0.4, 0.6, 0.8, 1.0):
        settings = {"preset": "calibrated", "tau": tau, "rho": 0.2 / tau}
        made = decide(model, batch, size, settings)
        panels.append((f"tau {tau:g}, rho {0.2 / tau:.2g}", hidden_picture(*made, batch, place)))
    sheet([(f"{sentences[place]}: a fifth is hidden in each", panels)], out / "line.png")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    pictures = Path(__file__).parents[1] / "pictures"
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) == 3 else pictures)
