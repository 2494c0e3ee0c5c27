"""Write the masks that a checkpoint predicts for every sentence of some splits."""

import itertools
import logging
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aml.conditions import CLEAN
from aml.errors import UserError
from aml.files import check_file, check_own_folder
from aml.inference import Segmenter, default_precision
from aml.training import read_checkpoint_config, usable_checkpoint
from orchestrator import data, storage
from orchestrator.evaluation import command, worker
from orchestrator.evaluation.masks.files import KIND, is_file, write_masks
from orchestrator.evaluation.samples import (
    SampleLoader,
    check_complete,
    chosen_splits,
)
from orchestrator.evaluation.scoring import PartialScores, ScoringTask, json_line

logger = logging.getLogger(__name__)


@dataclass
class PredictionTask(ScoringTask):
    """Predict the masks of a chunk of pictures, by the arithmetic that scores them."""

    def score(
        self, rows: list[dict], device_lock: AbstractContextManager | None = None
    ) -> PartialScores:
        """Return the masks of a chunk as rows of JSON: ref_id, sent_id, image_id, sentence, mask.

        See ScoringTask.score.
        """
        from pycocotools import mask as coco

        variants = list(itertools.chain.from_iterable(map(self.loader.variants, rows)))
        samples = [sample for variant in variants for sample in variant.samples]
        found = PartialScores(pictures=len(rows))
        masks = self.masks(variants, samples, device_lock or nullcontext())
        for sample, mask in zip(samples, masks, strict=True):
            rle = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
            row = {key: sample.identity[key] for key in ("ref_id", "sent_id", "image_id")}
            row["sentence"] = sample.sentence
            row["mask"] = {"size": list(mask.shape), "counts": rle["counts"].decode()}
            found.rows.append(json_line(row))
        return found


def predict_splits(
    checkpoint: Path,
    shards: storage.Filesystem,
    splits: list[str],
    out: Path,
    *,
    precision: str | None = None,
    workers: int = 1,
) -> int:
    """Write the mask of every sentence of some splits at its picture's own size.

    Args:
        checkpoint: The checkpoint's folder.
        shards: Shards of the data.
        splits: Names of splits, as `chosen_splits` takes them.
        out: A file where its name ends in .jsonl, else a folder of PNG files; see `files`.
        precision: None is that of the checkpoint's training on a GPU, fp32 on a CPU.
        workers: With more than 1 that many Ray tasks share the pictures.

    Returns:
        The number of masks.

    Raises:
        UserError: The checkpoint, the data or the place cannot be used.
        NotSaved: The disk takes no more.
    """
    if is_file(out):
        check_file(out, "--out")
    else:
        check_own_folder(out, "--out", KIND)
    if workers < 1:
        raise UserError(f"workers is {workers}; it must be at least 1")
    checkpoint = usable_checkpoint(checkpoint)
    config = read_checkpoint_config(checkpoint)
    manifest = data.read_manifest(shards)
    splits = chosen_splits(splits, manifest, shards)
    places = data.picture_places(shards, splits)
    device = worker.choose_device(workers)
    segmenter = Segmenter.load(
        checkpoint,
        device if workers == 1 else "cpu",
        precision or default_precision(config, device),
    )
    batch = worker.DEFAULT_BATCH[device]
    task = PredictionTask(
        segmenter=segmenter,
        loader=SampleLoader(splits, [CLEAN], "original", segmenter.image_size, segmenter.fit),
        batch=batch,
        chunk=worker.chunk_size(len(places), batch),
        generalised=set(),
    )
    lines = worker.score_pictures(task, shards, places, workers, "predicting").rows
    check_complete(len(lines), shards, manifest, splits)
    about = {
        "checkpoint": str(Path(checkpoint).absolute()),
        **{key: config.get(key) for key in command.CHECKPOINT_KEYS},
        "splits": splits,
        "data": command.about_data(shards, manifest),
    }
    write_masks(out, lines, about)
    return len(lines)
