"""Measure the published way of reading RefCOCO: a map-style Dataset under torch's DataLoader."""

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from aml.data import load_refs
from aml.reading import read_json

BATCH = 32
"""Samples of a batch, of both ways of reading."""

Sample = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""Image (3, size, size) uint8, mask (size, size) bool, tokens (L,) int64, token mask (L,) bool."""


class PublishedDataset(torch.utils.data.Dataset):
    """REFER's training refs in memory, with one sentence of one ref as an item.

    Every access opens, converts and resizes the picture and rasterises the polygons, as the
    loaders of LAVT, CRIS and CARIS do. Like this project's reader it yields uint8 and leaves
    normalisation to the model.
    """

    def __init__(self, root: Path, model: Any, size: int) -> None:
        """Read the annotations.

        Args:
            root: Folder of a data set in REFER's layout.
            model: Model whose `tokenise` is used.
            size: Side of the square that pictures are resized to, pixels.
        """
        instances = read_json(root / "refcoco" / "instances.json")
        self.images = {i["id"]: i for i in instances["images"]}
        self.annotations = {a["id"]: a for a in instances["annotations"]}
        self.folder = root / "images" / "train2014"
        self.size = size
        refs = [
            ref for ref in load_refs(root / "refcoco" / "refs(unc).p") if ref["split"] == "train"
        ]
        self.items = [(ref, s["sent"]) for ref in refs for s in ref["sentences"]]
        self.tokens = model.tokenise([sentence for _, sentence in self.items])

    def __len__(self) -> int:
        """Return the number of sentences."""
        return len(self.items)

    def __getitem__(self, index: int) -> Sample:
        """Read one sample from its files."""
        ref, _ = self.items[index]
        record = self.images[ref["image_id"]]
        shape = (self.size, self.size)
        picture = Image.open(self.folder / record["file_name"], formats=("JPEG",)).convert("RGB")
        picture = picture.resize(shape, Image.Resampling.BILINEAR)
        full = Image.fromarray(polygon_mask(self.annotations[ref["ann_id"]], record))
        mask = np.asarray(full.resize(shape, Image.Resampling.NEAREST))
        image = torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()
        return (
            image,
            torch.from_numpy(mask.astype(bool)),
            self.tokens[0][index],
            self.tokens[1][index],
        )


def polygon_mask(annotation: dict, record: dict) -> np.ndarray:
    """Rasterise an annotation's polygons as REFER's getMask does.

    Args:
        annotation: Annotation of instances.json.
        record: Its image's record of instances.json.

    Returns:
        The mask, (height, width) uint8.
    """
    from pycocotools import mask

    parts = mask.frPyObjects(annotation["segmentation"], record["height"], record["width"])
    return (np.sum(mask.decode(parts), axis=2) > 0).astype(np.uint8)


def measure_published_loader(root: Path, model: Any, size: int, samples: int) -> dict[str, Any]:
    """Time the published way with a worker for each core.

    Args:
        root: Folder of a data set in REFER's layout.
        model: Model whose `tokenise` is used.
        size: Side of the square that pictures are resized to, pixels.
        samples: Samples after the first batch, about.

    Returns:
        Seconds to the first batch, samples read after it, and samples a second.
    """
    start = time.perf_counter()
    data = PublishedDataset(root, model, size)
    loader = torch.utils.data.DataLoader(
        data, batch_size=BATCH, shuffle=True, num_workers=os.cpu_count() or 1, drop_last=True
    )
    first, n, rate = time_batches((len(image) for image, *_ in loader), start, samples)
    return {"peer_first_batch_s": first, "peer_samples_s": rate, "peer_samples": n}


def time_batches(
    counts: Iterable[int], start: float, samples: int | None = None
) -> tuple[float, int, float]:
    """Time the batches of an iterator.

    Args:
        counts: Number of samples of each batch, at least one batch.
        start: Time of time.perf_counter from which the first batch is timed.
        samples: Samples after the first batch at which to stop.

    Returns:
        Seconds to the first batch, samples after the first batch, and those a second.
    """
    batches = iter(counts)
    next(batches)
    first = time.perf_counter()
    n = 0
    for count in batches:
        n += count
        if samples and n >= samples:
            break
    return first - start, n, n / (time.perf_counter() - first)
