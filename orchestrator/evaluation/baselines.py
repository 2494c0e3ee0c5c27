"""Score baselines beside a model: random object, largest object, another referent's sentence."""

import functools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from aml.data import Batch, Item, Items, eval_batches, fit_mask, rasterise, targets_of
from aml.draws import uniform
from aml.errors import UserError
from aml.metrics import IOU_UNIT, Sums, called_empty, counts, intersection_over_union, score
from aml.models import build_model
from aml.training import load_model, segment_logits, whole_image_logits


def score_baselines(
    checkpoint: Path,
    items: Items,
    *,
    batch: int = 64,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> dict:
    """Score a checkpoint beside baselines that need no training or do not read the sentence.

    The square protocol is used, as in validation. The baselines:

    champion: the checkpoint itself.
    untrained: the checkpoint's architecture, freshly initialised from `seed`.
    random_object: one of the picture's annotated objects, the referent among them, drawn evenly.
        Nothing is drawn in fact: mIoU is the exact expectation (each sentence counts the mean of
        its objects' I/U), oIoU is the expected I over the expected U.
    largest_object: the annotated object of the largest area; the first of equal ones.
    wrong_sentence: the checkpoint given a sentence of another referent of the same picture and
        split, drawn by u(seed, item), scored against the first referent. Only sentences on
        pictures with such a referent take part, `n` of them; champion_mIoU and champion_oIoU are
        the checkpoint's own scores on these sentences.

    Args:
        checkpoint: The checkpoint's folder.
        items: Items of unit `sentence`, decoded at the checkpoint's image size.
        batch: Number of sentences computed together.
        device: Where the models compute.
        seed: Seed of the untrained model and of the wrong sentences.

    Returns:
        {baseline: {"mIoU", "oIoU", "n"}}, scores in [0, 1], 0 where n is 0; and "n", the number
        of sentences.

    Raises:
        UserError: The items are decoded at another size than the checkpoint's.
    """
    model, config = load_model(checkpoint, device)
    if (items.size, items.fit) != (config["image_size"], config["fit"]):
        raise UserError(
            f"the pictures are decoded at {items.size} px ({items.fit}), but {checkpoint} was "
            f"trained at {config['image_size']} px ({config['fit']}); decode them as the "
            "checkpoint needs"
        )
    threshold = config["threshold"]
    chosen = items.picks(np.arange(len(items)), 0, 0)
    untrained = _untrained_model(config, device, seed)

    own = _predict(model, eval_batches(items, model, batch=batch), threshold, device)
    blind = _predict(untrained, eval_batches(items, untrained, batch=batch), threshold, device)
    replaced = [
        (index, sentence)
        for index, item in enumerate(chosen)
        if (sentence := _other_sentence(items, item, seed)) is not None
    ]
    wrong_batches = _replaced_batches(items, model, replaced, batch)
    wrong = _predict(model, wrong_batches, threshold, device)
    indices = np.array([index for index, _ in replaced], int)
    own_there = _summary(own.sums(indices))
    random_object, largest_object = _score_objects(items, chosen)
    return {
        "champion": _summary(own.sums()),
        "untrained": _summary(blind.sums()),
        "random_object": random_object,
        "largest_object": largest_object,
        "wrong_sentence": _summary(wrong.sums())
        | {"champion_mIoU": own_there["mIoU"], "champion_oIoU": own_there["oIoU"]},
        "n": len(items),
    }


class _Outcome(NamedTuple):
    """Pixel counts of n sentences, each field (n,)."""

    intersection: torch.Tensor
    union: torch.Tensor
    no_target: torch.Tensor
    empty: torch.Tensor
    """True where the prediction is called empty; False everywhere in a split whose every
    expression has a target."""

    def sums(self, where: slice | list[int] | np.ndarray = slice(None)) -> Sums:
        """Return the metric sums of all sentences, or of some of them."""
        return score(
            self.intersection[where],
            self.union[where],
            no_target=self.no_target[where],
            empty=self.empty[where],
        )


def _untrained_model(config: dict, device: str | torch.device, seed: int) -> Any:
    """Return a checkpoint's architecture, initialised from the seed."""
    options = dict(config["model"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(options.pop("name"), vocabulary=config["vocabulary"], **options)
    return model.to(device).eval()


def _summary(sums: Sums) -> dict:
    """Return mIoU, oIoU and n."""
    scores = sums.scores()
    return {key: scores[key] for key in ("mIoU", "oIoU", "n")}


def _compare(
    prediction: torch.Tensor, truth: torch.Tensor, no_target: torch.Tensor, generalised: bool
) -> _Outcome:
    """Count the pixels of predictions and truths.

    Args:
        prediction: (B, H, W) bool.
        truth: (B, H, W) bool.
        no_target: (B,) bool, True where the expression names nothing.
        generalised: Whether the split has such expressions.
    """
    empty = called_empty(prediction.flatten(1).sum(1), truth[0].numel()) & generalised
    intersection, union = counts(prediction, truth)
    return _Outcome(intersection.cpu(), union.cpu(), no_target.cpu(), empty.cpu())


@torch.inference_mode()
def _predict(
    model: Any, batches: Iterable[Batch], threshold: float, device: str | torch.device
) -> _Outcome:
    """Return the pixel counts of a model's predictions for all sentences of the batches."""
    nothing = torch.zeros(0, dtype=torch.int64)
    found = [_Outcome(nothing, nothing, nothing.bool(), nothing.bool())]
    for batch in batches:
        batch = batch.to(device)
        size = batch.mask.shape[1], batch.mask.shape[2]
        logits = whole_image_logits(model, batch).float()
        prediction = segment_logits(logits, size, threshold)
        found.append(_compare(prediction, batch.mask, batch.no_target, batch.generalised))
    return _Outcome(*(torch.cat(column) for column in zip(*found, strict=True)))


def _other_sentence(items: Items, item: Item, seed: int) -> str | None:
    """Return a sentence of another referent of the same picture and split.

    Returns None where the picture has no other referent, or the item's own sentence names
    nothing.
    """
    own = set(targets_of(items.ref(item)))
    refs = [ref for ref in items.row(item)["refs"] if own and ref["split"] == items.split]
    others = [
        sentence["sent"]
        for ref in refs
        if targets_of(ref) and set(targets_of(ref)) != own
        for sentence in ref["sentences"]
    ]
    draw = float(uniform(seed, 0, torch.tensor([item.key]), "wrong-sentence"))
    return others[int(draw * len(others))] if others else None


def _replaced_batches(
    items: Items, model: Any, replaced: list[tuple[int, str]], batch: int
) -> Iterator[Batch]:
    """Yield batches of items whose sentence is replaced by the one given with their index."""
    for start in range(0, len(replaced), batch):
        part = replaced[start : start + batch]
        made = items.batch(np.array([index for index, _ in part]), model)
        made.tokens, made.token_mask = model.tokenise([sentence for _, sentence in part])
        yield made


def _score_objects(items: Items, chosen: list[Item]) -> tuple[dict, dict]:
    """Return the scores of random_object and of largest_object (see `score_baselines`)."""

    # The sentences of a picture follow one another.
    @functools.lru_cache(maxsize=2)
    def object_masks(block: int, row: int) -> tuple[torch.Tensor, int]:
        """Return the masks (n, S, S) bool of a picture's objects, and the place of the largest."""
        meta = items.annotations.row(block, row)
        height = meta["height"]
        width = meta["width"]
        masks = [rasterise(o["rle"], height, width) for o in meta["objects"]]
        if not masks:
            # There is no object to choose, so the prediction is empty.
            masks = [np.zeros((height, width), np.uint8)]
        fitted = np.stack([fit_mask(mask, items.size, items.fit) for mask in masks])
        return torch.from_numpy(fitted), int(np.argmax([mask.sum() for mask in masks]))

    largest_sums = Sums()
    means = torch.zeros(3, dtype=torch.float64)
    for item in chosen:
        masks, largest = object_masks(item.block, item.row)
        no_target = torch.tensor([not targets_of(items.ref(item))]).expand(len(masks))
        truth = torch.from_numpy(items.mask(item))[None].expand_as(masks)
        outcome = _compare(masks, truth, no_target, items.generalised)
        largest_sums += outcome.sums([largest])
        intersection, union, iou = (x.double() for x in intersection_over_union(*outcome))
        means += torch.stack([iou.mean() / IOU_UNIT, intersection.mean(), union.mean()])
    iou_sum, intersection_sum, union_sum = means.tolist()
    random_object = {
        "mIoU": iou_sum / len(chosen),
        "oIoU": intersection_sum / max(union_sum, 1.0),
        "n": len(chosen),
    }
    return random_object, _summary(largest_sums)
