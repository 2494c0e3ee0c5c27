"""Pictures and their sentences through a checkpoint to integer counts: the work of an evaluation, in this process or spread over a cluster.

The pictures are cut into pieces, the same ones however many share the work. A piece's pictures are encoded together, once for all their
sentences, and on a CPU one core computes a piece: every sum has the same terms in the same order, so that the counts are the same
integers on any number of workers and cores of one kind of processor. Another kind may round otherwise, and move a pixel whose
probability is at the threshold. Pieces go side by side in threads, so that one is read and counted while another is computed.

    S network size, H W a picture's own size
"""

import itertools
import json
import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch

from aml.data import (
    corrupt,
    decode_image,
    fit_image,
    fit_mask,
    rasterise,
    referent,
    split_words,
    targets_of,
)
from aml.errors import UserError
from aml.inference import Segmenter, to_original
from aml.metrics import Sums, called_empty, intersection_over_union, score
from aml.training import segment_logits
from orchestrator import data, storage
from orchestrator.evaluation import breakdown
from orchestrator.evaluation.tally import CLEAN, Sample, Tally, View

GPU_THREADS = 6

"""Pieces in the air beside a GPU: one is computed, the others are decoded and counted."""

AT_ONCE = {"cpu": 8, "cuda": 64}

"""Pictures, and sentences, at a time: small batches are no slower on one core, and fit its caches."""

PIECES = 64

"""A split has at least about so many pieces of 8 pictures or more, for workers to share."""


@dataclass
class Job:
    """What scoring a piece takes; it is handed to workers whole."""

    segmenter: Segmenter
    splits: list[str]
    views: list[tuple[str, int]]
    protocol: str
    batch: int
    """Sentences decoded at a time."""
    pictures: int
    """A piece's pictures, encoded at a time."""
    generalised: set[str]
    """Splits with expressions without a target: the rule for them holds (aml.metrics), and `called_empty` ends their lines."""

    def __post_init__(self):
        self.vocabulary = set(self.segmenter.model.vocabulary or ())

    def score(self, rows: list[dict], turn=None) -> Tally:
        """The tally of a piece.   turn: a lock held while the model computes"""
        tally = Tally(pictures=len(rows))
        if self.vocabulary:
            found = [
                word
                for row in rows
                for s in self._sentences(row)
                for word in split_words(s["sent"])
            ]
            tally.words, tally.unknown = (
                len(found),
                sum(word not in self.vocabulary for word in found),
            )
        views = itertools.chain.from_iterable(map(self._views, rows))
        while some := list(itertools.islice(views, self.pictures)):
            samples = [sample for view in some for sample in view.samples]
            self._count(
                samples,
                np.array(list(self._overlaps(some, samples, turn or nullcontext())), np.int64),
                tally,
            )
        return tally

    def _sentences(self, row: dict) -> list[dict]:
        return [s for ref in row["refs"] if ref["split"] in self.splits for s in ref["sentences"]]

    def _views(self, row: dict) -> Iterator[View]:
        """The picture as it is and under each corruption, with every sentence of its refs in the splits."""
        image, size, fit = (
            decode_image(row["jpeg"], row["file_name"]),
            self.segmenter.image_size,
            self.segmenter.fit,
        )
        refs = [ref for ref in row["refs"] if ref["split"] in self.splits]
        full = [rasterise(referent(row, ref), row["height"], row["width"]) for ref in refs]
        truths = [
            t.astype(bool) if self.protocol == "original" else fit_mask(t, size, fit) for t in full
        ]
        areas, pixels = [int(t.sum()) for t in full], [int(t.sum()) for t in truths]
        facts = [
            [breakdown.fact(row, ref, s, area) for s in ref["sentences"]]
            for ref, area in zip(refs, areas, strict=True)
        ]
        for name, severity in self.views:
            seen = (
                image
                if (name, severity) == CLEAN
                else corrupt(image, name, severity, row["image_id"])
            )
            samples = []
            for ref, truth, n, known in zip(refs, truths, pixels, facts, strict=True):
                of_ref = {
                    **{key: row[key] for key in ("dataset", "split_by")},
                    "split": ref["split"],
                }
                of_ref |= {"image_id": row["image_id"], "ref_id": ref["ref_id"]}
                what = {
                    "no_target": not targets_of(ref),
                    "protocol": self.protocol,
                    "corruption": name,
                    "severity": severity,
                }
                for sentence, fact in zip(ref["sentences"], known, strict=True):
                    samples.append(
                        Sample(
                            sentence["sent"],
                            truth,
                            n,
                            of_ref | {"sent_id": sentence["sent_id"]} | what,
                            fact,
                        )
                    )
            yield View(fit_image(seen, size, fit), samples)

    def _overlaps(
        self, views: list[View], samples: list[Sample], turn
    ) -> Iterator[tuple[int, int]]:
        """Pixels of the prediction that are the referent's, and all of its pixels, sample by sample."""
        of = [k for k, view in enumerate(views) for _ in view.samples]
        parts = self.segmenter.answers(
            np.stack([v.image for v in views]), [s.sentence for s in samples], of, self.batch
        )
        left = iter(samples)
        while True:
            with turn:
                logits = next(parts, None)
                if logits is None:
                    return
                some = list(itertools.islice(left, len(logits)))
                masks = self._masks(logits, some)
            for sample, mask in zip(some, masks, strict=True):
                yield int(np.count_nonzero(mask & sample.truth)), int(np.count_nonzero(mask))

    def _masks(self, logits: torch.Tensor, samples: list[Sample]) -> list[np.ndarray]:
        """-> a bool mask of the shape of each sample's truth"""
        size, fit, threshold = (
            self.segmenter.image_size,
            self.segmenter.fit,
            self.segmenter.threshold,
        )
        if self.protocol == "square":
            return list(segment_logits(logits, (size, size), threshold).cpu().numpy())
        cut = math.log(threshold / (1 - threshold))
        return [
            (to_original(z, s.truth.shape, size, fit) >= cut).cpu().numpy()
            for z, s in zip(logits, samples, strict=True)
        ]

    def _count(self, samples: list[Sample], overlaps: np.ndarray, tally: Tally) -> None:
        """overlaps (n, 2): what `_overlaps` found of the n samples."""
        both, predicted = torch.from_numpy(overlaps).reshape(-1, 2).unbind(1)
        keys = [(s.row["split"], s.row["corruption"], s.row["severity"]) for s in samples]
        ruled = torch.tensor([key[0] in self.generalised for key in keys])
        absent = torch.tensor([s.row["no_target"] for s in samples]) & ruled
        empty = called_empty(predicted, torch.tensor([s.truth.size for s in samples])) & ruled
        truth = torch.tensor([s.pixels for s in samples])
        intersection, union, _ = intersection_over_union(
            both, predicted + truth - both, absent, empty
        )
        for key in dict.fromkeys(keys):
            mine = torch.tensor([k == key for k in keys])
            sums = score(intersection[mine], union[mine], no_target=absent[mine], empty=empty[mine])
            tally.sums[key] = tally.sums.get(key, Sums()) + sums
        last = ("no_target", "protocol", "corruption", "severity")
        columns = zip(
            samples,
            intersection.tolist(),
            union.tolist(),
            predicted.tolist(),
            ruled.tolist(),
            empty.tolist(),
            strict=True,
        )
        for sample, i, u, p, rule, nothing in columns:
            line = {k: v for k, v in sample.row.items() if k not in last}
            line |= {
                "intersection": i,
                "union": u,
                "pred_pixels": p,
                "gt_pixels": sample.pixels,
            } | {k: sample.row[k] for k in last}
            line |= {"called_empty": nothing} if rule else {}
            tally.lines.append(json.dumps(line).encode() + b"\n")
            if (sample.row["corruption"], sample.row["severity"]) == CLEAN:
                tally.clean.append((sample.fact, i, u))


def device_for(workers: int) -> str:
    """cuda or cpu: of this process, or of the tasks of a cluster."""
    if workers == 1:
        return "cuda" if torch.cuda.is_available() else "cpu"
    from orchestrator.cluster import cluster_nodes, init_ray, total_resources

    init_ray()
    return "cuda" if total_resources(cluster_nodes())["GPU"] >= 1 else "cpu"


def pieces(places: list, pictures: int) -> list[list]:
    return [places[i : i + pictures] for i in range(0, len(places), pictures)]


def pictures_at_once(total: int, batch: int) -> int:
    """A piece's pictures: `batch`, fewer of a small split, so that there are pieces to share; never by the number of workers."""
    return min(batch, max(8, -(-total // PIECES)))


def tallied(
    job: Job,
    store: storage.Filesystem,
    places: list,
    workers: int = 1,
    watch: Callable[[int], None] = lambda pictures: None,
) -> Tally:
    """The tally of all pictures at these places, in their order.   watch: told of pictures as they are done"""
    found = [[] for _ in range(workers)]
    for worker, tally in (
        _spread(job, store, places, workers)
        if workers > 1
        else ((0, tally) for tally in _here(job, store, places))
    ):
        found[worker].append(tally)
        watch(tally.pictures)
    total = Tally()
    for tally in itertools.chain(*found):
        total += tally
    return total


def _here(job: Job, store: storage.Filesystem, places: list) -> Iterator[Tally]:
    """The tally of each piece in turn, computed in this process."""
    rows = data.read_rows(store, places)
    cut = (list(itertools.islice(rows, len(piece))) for piece in pieces(places, job.pictures))
    if job.segmenter.device.type == "cpu":
        cores = torch.get_num_threads()
        with one_core_each():
            yield from side_by_side(job.score, cut, cores)
    else:
        turn = threading.Lock()
        yield from side_by_side(lambda piece: job.score(piece, turn), cut, GPU_THREADS)


@contextmanager
def one_core_each():
    """Torch computes each operation on the core that calls it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def side_by_side(function: Callable, items: Iterable, threads: int) -> Iterator:
    """function of each item, in order, `threads` at a time; items are drawn in the caller's thread, one further than that."""
    waiting = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _spread(
    job: Job, store: storage.Filesystem, places: list, workers: int
) -> Iterator[tuple[int, Tally]]:
    """The same by so many Ray tasks, each with its own run of pieces: (worker, tally) as they come, a worker's in order.

    UserError where the cluster has not a core (or, with GPUs, a GPU) for each worker.
    """
    import ray

    from orchestrator.cluster import cluster_nodes, total_resources

    options = resources(workers, total_resources(cluster_nodes()))
    device, handed, cut = (
        "cuda" if options["num_gpus"] else "cpu",
        ray.put(job),
        pieces(places, job.pictures),
    )
    run = ray.remote(_run).options(num_returns="streaming", **options)
    shares = [cut[w * len(cut) // workers : (w + 1) * len(cut) // workers] for w in range(workers)]
    running = {
        run.remote(handed, store, list(itertools.chain(*share)), device, options["num_cpus"]): w
        for w, share in enumerate(shares)
        if share
    }
    try:
        while running:
            (ready,), _ = ray.wait(list(running), num_returns=1)
            try:
                yield running[ready], ray.get(next(ready))
            except StopIteration:
                del running[ready]
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise
    finally:
        for left in running:
            ray.cancel(left, force=True)


def resources(workers: int, have: dict[str, float]) -> dict[str, int]:
    """Ray's num_cpus and num_gpus of a worker. UserError, with the sum, where the cluster has not that much."""
    kind = "GPU" if have["GPU"] >= 1 else "CPU"
    if workers > have[kind] or workers > have["CPU"]:
        raise UserError(
            f"{workers} workers need {workers} {kind}(s), but the cluster has {have['CPU']:g} CPU and {have['GPU']:g} GPU; ask for fewer workers"
        )
    cpus = int(have["CPU"] // workers)
    return {
        "num_cpus": cpus if kind == "CPU" else min(cpus, GPU_THREADS),
        "num_gpus": int(kind == "GPU"),
    }


def _run(
    job: Job, store: storage.Filesystem, places: list, device: str, cores: int
) -> Iterator[Tally]:
    """Runs in a Ray task."""
    torch.set_num_threads(cores)
    job.segmenter.to(device)
    yield from _here(job, store, places)
