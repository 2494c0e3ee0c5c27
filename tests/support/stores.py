"""Make shards without Ray, rows by hand, and a checkpoint that was not trained."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from pycocotools import mask as coco

from aml.data.refer_counts import split_counts, vocabulary
from aml.inference.visualize import encode_png
from aml.models.registry import build_model
from aml.training import checkpoint
from orchestrator.data import shards
from orchestrator.storage import filesystem


def write_store(folder, rows, files=2):
    """Write shards as orchestrator.data.shards does, without Ray, and return their filesystem.

    The later pictures are in the first file.
    """
    folder.mkdir(parents=True)
    for k in range(files):
        some = rows[files - 1 - k :: files]
        table = {
            "image_id": [r["image_id"] for r in some],
            "splits": [",".join(sorted({ref["split"] for ref in r["refs"]})) for r in some],
            "jpeg": [r["jpeg"] if "jpeg" in r else Path(r["path"]).read_bytes() for r in some],
            "meta": [
                json.dumps({key: value for key, value in r.items() if key not in ("jpeg", "path")})
                for r in some
            ],
        }
        pq.write_table(pa.table(table), folder / f"part-{k}.parquet", row_group_size=4)
    (folder / "vocabulary.json").write_text(json.dumps(vocabulary(rows)))
    manifest = {
        "format": shards.FORMAT,
        "dataset": rows[0]["dataset"],
        "split_by": rows[0]["split_by"],
        "splits": split_counts(rows),
        "fingerprint": "0123456789abcdef",
        "files": [f"part-{k}.parquet" for k in range(files)],
    }
    (folder / "_COMPLETE.json").write_text(json.dumps(manifest))
    return filesystem.Filesystem(folder)


def save_model(folder, words, *, size=32, fit="square", threshold=0.5, seed=1):
    """Save a small untrained checkpoint whose predictions are neither empty nor full."""
    torch.manual_seed(seed)
    model = build_model("small", vocabulary=words, width=32, stem=16)
    with torch.no_grad():
        model.bias.zero_()
    checkpoint.save_checkpoint(
        folder,
        model,
        {"image_size": size, "fit": fit, "threshold": threshold, "epoch": 0, "metrics": {}},
    )
    return folder


def rle(mask):
    return coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()


def hand_row(masks, refs, image_id=7, split="val"):
    """Return the row of a black picture.

    Args:
        masks: Boolean arrays (H, W) of objects 1, 2 ...
        refs: Pairs (object number, sentences).
        image_id: Number of the picture, from which all other numbers are made.
        split: Split of every ref.
    """
    height, width = masks[0].shape
    entries = []
    for k, sents in refs:
        sentences = [
            {"sent_id": 1000 * image_id + 10 * k + j, "sent": s, "raw": s}
            for j, s in enumerate(sents)
        ]
        entries.append(
            {"ref_id": 10 * image_id + k, "ann_id": k, "split": split, "sentences": sentences}
        )
    objects = [{"ann_id": k, "category": "thing", "rle": rle(m)} for k, m in enumerate(masks, 1)]
    jpeg = encode_png(Image.fromarray(np.zeros((height, width, 3), np.uint8)))
    about = {
        "dataset": "refcoco",
        "split_by": "unc",
        "image_id": image_id,
        "file_name": f"{image_id}.jpg",
        "height": height,
        "width": width,
    }
    return about | {"objects": objects, "refs": entries, "jpeg": jpeg}


def mlflow_client(root):
    """Return an MLflow client of the SQLite store of a storage root."""
    from orchestrator.tracking import mlflow_server

    return mlflow_server.connect(mlflow_server.tracking_uri(None, root))
