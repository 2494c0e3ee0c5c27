"""Spread the scoring of pictures over threads of this process or over the workers of a Ray cluster.

The pictures are cut into chunks, the same ones however many workers share them. The pictures of a
chunk are encoded together, once for all their sentences, and on a CPU one core computes a chunk:
every sum has the same terms in the same order, so the counts are the same integers on any number
of workers and cores of one kind of processor. Another kind of processor may round otherwise and
move a pixel whose probability is at the threshold. Several threads score chunks at once, so that
one chunk is read and counted while another is computed.
"""

import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from aml.errors import UserError
from aml.training import keep_freed_memory
from orchestrator import data, storage
from orchestrator.evaluation.scoring import (
    PartialScores,
    ScoringTask,
    SharedScoringTask,
    total_scores,
)
from orchestrator.utils import Progress, announced_wait

logger = logging.getLogger(__name__)

GPU_THREADS = 6
"""Threads beside a GPU: one chunk is computed while the others are decoded and counted."""

DEFAULT_BATCH = {"cpu": 8, "cuda": 64}
"""Pictures, and sentences, computed together. Small batches are no slower on one core of a CPU,
and fit its caches."""

CHUNKS = 64
"""Number of chunks, of 8 pictures or more, that a split is cut into at least, for workers to
share; approximate."""

Place = tuple[int, str, int, int]
"""Position of a picture in the shards: image_id, file, row group, row."""

Task = ScoringTask | SharedScoringTask

Item = TypeVar("Item")
Result = TypeVar("Result")


def score_pictures(
    task: Task,
    shards: storage.Filesystem,
    places: list[Place],
    workers: int = 1,
    what: str = "scoring",
) -> PartialScores:
    """Return the scores of all pictures at some places, their rows in the order of the places.

    Args:
        task: Model, protocol and batch sizes.
        shards: Where the pictures are.
        places: The pictures' positions in the shards.
        workers: 1 scores in this process, more on that many Ray tasks.
        what: What is done with the pictures, beside the progress that is shown.

    Raises:
        UserError: The cluster has no core (or, with GPUs, no GPU) for each worker, or a picture
            cannot be decoded.
    """
    parts: list[list[PartialScores]] = [[] for _ in range(workers)]
    if workers > 1:
        finished = _score_on_ray(task, shards, places, workers)
    else:
        finished = ((0, scores) for scores in _score_locally(task, shards, places))
    with Progress(what, len(places), "pictures") as progress:
        for worker, scores in finished:
            parts[worker].append(scores)
            progress.add(scores.pictures)
    return total_scores(itertools.chain(*parts))


def choose_device(workers: int) -> str:
    """Return "cuda" or "cpu": the device of this process or, with several workers, of the cluster.

    With several workers this connects to Ray, or starts it.
    """
    if workers == 1:
        return "cuda" if torch.cuda.is_available() else "cpu"
    from orchestrator.cluster import cluster_nodes, init_ray, total_resources

    init_ray()
    return "cuda" if total_resources(cluster_nodes())["GPU"] >= 1 else "cpu"


def chunk_size(pictures: int, batch: int) -> int:
    """Return how many pictures a chunk holds.

    That is `batch`, or fewer for a small split, so that there are chunks to share. It never
    depends on the number of workers: other chunks might round otherwise.
    """
    return min(batch, max(8, -(-pictures // CHUNKS)))


def split_into_chunks(places: list[Place], size: int) -> list[list[Place]]:
    """Cut the places into runs of `size`; the last one may be shorter."""
    return [places[i : i + size] for i in range(0, len(places), size)]


def most_workers() -> int:
    """Return how many Ray tasks can score at once: one a GPU, without GPUs one a core."""
    from orchestrator.cluster import planned_nodes, total_resources

    total = total_resources(planned_nodes())
    return max(1, int(total["GPU"] or total["CPU"]))


@contextmanager
def single_threaded_torch() -> Iterator[None]:
    """Make torch compute each operation on the one core that calls it, until the context ends."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def map_in_threads(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int
) -> Iterator[Result]:
    """Yield function(item) for each item in order, computing several at once.

    Items are taken from the iterable in the caller's thread, at most one more than `threads`
    ahead of the results.

    Args:
        function: Called in a thread of a pool.
        items: Its arguments.
        threads: Number of calls that run at once.
    """
    waiting: deque[Future[Result]] = deque()
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


def worker_resources(workers: int, available: dict[str, float]) -> dict[str, int]:
    """Return Ray's num_cpus and num_gpus of one worker.

    Args:
        workers: Number of Ray tasks.
        available: "CPU" and "GPU" of the whole cluster.

    Raises:
        UserError: The cluster has less than the workers need.
    """
    kind = "GPU" if available["GPU"] >= 1 else "CPU"
    if workers > available[kind] or workers > available["CPU"]:
        raise UserError(
            f"{workers} workers need {workers} {kind}(s), but the cluster has "
            f"{available['CPU']:g} CPU and {available['GPU']:g} GPU; ask for fewer workers"
        )
    cpus = int(available["CPU"] // workers)
    return {
        "num_cpus": cpus if kind == "CPU" else min(cpus, GPU_THREADS),
        "num_gpus": int(kind == "GPU"),
    }


def _score_locally(
    task: Task, shards: storage.Filesystem, places: list[Place]
) -> Iterator[PartialScores]:
    """Yield the scores of each chunk in turn, computed in threads of this process."""
    rows = data.read_rows(shards, places)
    chunks = (
        list(itertools.islice(rows, len(chunk))) for chunk in split_into_chunks(places, task.chunk)
    )
    if task.device.type == "cpu":
        cores = torch.get_num_threads()
        with single_threaded_torch():
            yield from map_in_threads(task.score, chunks, cores)
    else:
        device_lock = threading.Lock()
        yield from map_in_threads(lambda chunk: task.score(chunk, device_lock), chunks, GPU_THREADS)


def _score_on_ray(
    task: Task, shards: storage.Filesystem, places: list[Place], workers: int
) -> Iterator[tuple[int, PartialScores]]:
    """Yield (worker, scores of a chunk) as Ray tasks finish them.

    Each worker gets consecutive chunks, and its scores come in their order.

    Raises:
        UserError: The cluster has no core (or, with GPUs, no GPU) for each worker, or a worker
            raised it.
    """
    import ray

    from orchestrator.cluster import cluster_nodes, total_resources

    options = worker_resources(workers, total_resources(cluster_nodes()))
    device = "cuda" if options["num_gpus"] else "cpu"
    chunks = split_into_chunks(places, task.chunk)
    shares = [
        list(
            itertools.chain(*chunks[w * len(chunks) // workers : (w + 1) * len(chunks) // workers])
        )
        for w in range(workers)
    ]
    remote = ray.remote(_score_in_task).options(num_returns="streaming", **options)
    task_ref = ray.put(task)
    running: dict[Any, int] = {  # streaming generators of Ray, each with its worker's number
        remote.remote(task_ref, shards, share, device, options["num_cpus"]): worker
        for worker, share in enumerate(shares)
        if share
    }
    try:
        while running:
            # Ray's annotations do not know that a streaming generator can be waited for.
            ready: Any
            with announced_wait(
                f"scores of {len(running)} Ray tasks; each takes {options['num_cpus']:g} CPU and "
                f"{options['num_gpus']:g} GPU, which others may hold"
            ):
                (ready,), _ = ray.wait(list(running), num_returns=1)
            try:
                scores: Any = ray.get(next(ready))
                yield running[ready], scores
            except StopIteration:
                del running[ready]
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise
    finally:
        for unfinished in running:
            ray.cancel(unfinished, force=True)


def _score_in_task(
    task: Task, shards: storage.Filesystem, places: list[Place], device: str, cores: int
) -> Iterator[PartialScores]:
    """Yield the scores of each chunk of the places; runs in a Ray task on the device."""
    keep_freed_memory()
    torch.set_num_threads(cores)
    task.to(device)
    yield from _score_locally(task, shards, places)
