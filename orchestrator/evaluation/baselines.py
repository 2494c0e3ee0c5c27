"""Baselines beside a model's scores: random object, largest object, another referent's sentence."""

import functools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from aml.data import Batch, Item, Items, eval_batches, fit_mask, rasterise, targets_of
from aml.draws import uniform
from aml.errors import UserError
from aml.metrics import IOU_UNIT, Sums, called_empty, counts, intersection_over_union, score
from aml.models import build_model
from aml.training import load_model, segment_logits, whole_image_logits


def score_baselines(
    checkpoint: Path, items: Items, *, batch: int = 64, device="cpu", seed: int = 0
) -> dict:
    """The checkpoint beside what needs no training or does not read the sentence; square protocol, as in validation.

    champion        the checkpoint
    untrained       its architecture freshly initialised from `seed`
    random_object   one of the picture's annotated objects, the referent among them, drawn evenly. Nothing is drawn: mIoU is the exact
                    expectation (each sentence counts the mean of its objects' I/U), oIoU the expected I over the expected U
    largest_object  the annotated object of the largest area; the first of equal ones
    wrong_sentence  the checkpoint given a sentence of another referent of the same picture and split, drawn by u(seed, item), scored
                    against the first referent. Only sentences on pictures with such a referent take part, `n` of them;
                    champion_mIoU and champion_oIoU are the checkpoint's own on the same ones

    Each is {"mIoU", "oIoU", "n"} in [0, 1] (0 where n is 0); "n" beside them is the number of sentences.
    items: unit `sentence`, decoded at the checkpoint's image size. UserError where it is another.
    """
    model, config = load_model(checkpoint, device)
    if (items.size, items.fit) != (config["image_size"], config["fit"]):
        raise UserError(
            f"the pictures are decoded at {items.size} px ({items.fit}), but {checkpoint} was trained at {config['image_size']} px "
            f"({config['fit']}); decode them as the checkpoint needs"
        )
    threshold, chosen = config["threshold"], items.picks(np.arange(len(items)), 0, 0)
    spec = dict(config["model"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        untrained = (
            build_model(spec.pop("name"), vocabulary=config["vocabulary"], **spec).to(device).eval()
        )
    own = _predicted(model, eval_batches(items, model, batch=batch), threshold, device)
    others = [
        (k, s)
        for k, item in enumerate(chosen)
        if (s := _other_sentence(items, item, seed)) is not None
    ]
    where = np.array([k for k, _ in others], int)
    wrong = _predicted(
        model, _with_sentences(items, model, others, batch), threshold, device
    ).sums()
    same = _pair(own.sums(where))
    random, largest = _object_scores(items, chosen)
    return {
        "champion": _pair(own.sums()),
        "untrained": _pair(
            _predicted(
                untrained, eval_batches(items, untrained, batch=batch), threshold, device
            ).sums()
        ),
        "random_object": random,
        "largest_object": largest,
        "wrong_sentence": _pair(wrong)
        | {"champion_mIoU": same["mIoU"], "champion_oIoU": same["oIoU"]},
        "n": len(items),
    }


def _pair(sums: Sums) -> dict:
    return {key: value for key, value in sums.scores().items() if key in ("mIoU", "oIoU", "n")}


class _Outcome(NamedTuple):
    """What became of n sentences, each field (n,)."""

    intersection: torch.Tensor
    union: torch.Tensor
    no_target: torch.Tensor
    empty: torch.Tensor
    """The prediction is called empty; False everywhere in a split whose every expression has a target."""

    def sums(self, where=slice(None)) -> Sums:
        return score(
            self.intersection[where],
            self.union[where],
            no_target=self.no_target[where],
            empty=self.empty[where],
        )


def _outcome(
    prediction: torch.Tensor, truth: torch.Tensor, no_target: torch.Tensor, generalised: bool
) -> _Outcome:
    """prediction, truth (B, H, W) bool"""
    empty = called_empty(prediction.flatten(1).sum(1), truth[0].numel()) & generalised
    return _Outcome(*(x.cpu() for x in (*counts(prediction, truth), no_target, empty)))


@torch.inference_mode()
def _predicted(model, batches: Iterable[Batch], threshold: float, device) -> _Outcome:
    """Of all sentences of the batches."""
    nothing = torch.zeros(0, dtype=torch.int64)
    found = [_Outcome(nothing, nothing, nothing.bool(), nothing.bool())]
    for batch in batches:
        batch = batch.to(device)
        found.append(
            _outcome(
                segment_logits(
                    whole_image_logits(model, batch).float(), batch.mask.shape[1:], threshold
                ),
                batch.mask,
                batch.no_target,
                batch.generalised,
            )
        )
    return _Outcome(*(torch.cat(column) for column in zip(*found, strict=True)))


def _other_sentence(items: Items, item: Item, seed: int) -> str | None:
    """A sentence of another referent of the same picture and split; None where the picture has none, or the item's own names nothing."""
    own = set(targets_of(items.ref(item)))
    refs = [ref for ref in items.row(item)["refs"] if own and ref["split"] == items.split]
    others = [
        s["sent"]
        for ref in refs
        if targets_of(ref) and set(targets_of(ref)) != own
        for s in ref["sentences"]
    ]
    draw = float(uniform(seed, 0, torch.tensor([item.key]), "wrong-sentence"))
    return others[int(draw * len(others))] if others else None


def _with_sentences(
    items: Items, model, chosen: list[tuple[int, str]], batch: int
) -> Iterator[Batch]:
    """Items by index, each with the sentence given here in place of its own."""
    for start in range(0, len(chosen), batch):
        part = chosen[start : start + batch]
        made = items.batch(np.array([k for k, _ in part]), model)
        made.tokens, made.token_mask = model.tokenise([sentence for _, sentence in part])
        yield made


def _object_scores(items: Items, chosen: list[Item]) -> tuple[dict, dict]:
    """Of random_object and largest_object (see `baselines`)."""

    @functools.lru_cache(maxsize=2)
    def objects(block: int, row: int) -> tuple[torch.Tensor, int]:
        meta = items.meta[block][row]
        masks = [rasterise(o["rle"], meta["height"], meta["width"]) for o in meta["objects"]]
        masks = masks or [
            np.zeros((meta["height"], meta["width"]), np.uint8)
        ]  # nothing to choose from: an empty prediction
        return torch.from_numpy(np.stack([fit_mask(m, items.size, items.fit) for m in masks])), int(
            np.argmax([m.sum() for m in masks])
        )

    largest, means = Sums(), torch.zeros(3, dtype=torch.float64)
    for item in chosen:
        masks, biggest = objects(item.block, item.row)
        no_target = torch.tensor([not targets_of(items.ref(item))]).expand(len(masks))
        outcome = _outcome(
            masks,
            torch.from_numpy(items.mask(item))[None].expand_as(masks),
            no_target,
            items.generalised,
        )
        largest += outcome.sums([biggest])
        i, u, iou = (x.double() for x in intersection_over_union(*outcome))
        means += torch.stack([iou.mean() / IOU_UNIT, i.mean(), u.mean()])
    iou, i, u = means.tolist()
    return {"mIoU": iou / len(chosen), "oIoU": i / max(u, 1.0), "n": len(chosen)}, _pair(largest)
