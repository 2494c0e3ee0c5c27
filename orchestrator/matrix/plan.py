"""Say what a matrix of experiments would train, how long, at what price, and what is missing."""

import math

from aml.errors import UserError
from orchestrator import cluster, config, search, utils
from orchestrator.config import Cell, Matrix
from orchestrator.matrix.cells import NOT_YET, run_of, unscored


def describe_matrix(matrix: Matrix, question: search.PowerQuestion | None = None) -> str:
    """Return the plan of a matrix: a line for each cell, then the sums over unfinished cells.

    Args:
        matrix: The matrix.
        question: Which differences between arms the confirmation should show; None asks nothing.
    """
    nodes = cluster.planned_nodes()
    seeds = sorted({cell.experiment.search.seeds.confirm for cell in matrix.cells})
    lines = [
        f"{matrix.name}: {len(matrix.cells)} sweeps, one for each data set and model; arms "
        f"{', '.join(matrix.arms)}; {' or '.join(map(str, seeds))} confirmation seeds an arm"
    ]
    sizes: list[search.SweepSize | None] = []
    trials = 0
    for cell in matrix.cells:
        more, planned, size = _describe_cell(cell, nodes, question)
        lines += more
        trials += planned
        if planned:
            sizes.append(size)
    known = [size for size in sizes if size and size.estimate]
    total = f"in all {trials} trainings"
    if known:
        hours = math.fsum(_most_hours(size.estimate) for size in known if size.estimate)
        price = math.fsum(size.estimate["cost"] for size in known if size.estimate)
        disk = sum(size.disk or 0 for size in known)
        total += f", at most {_hours(hours)}{_price(price)}{_disk(disk)}"
    if unknown := len(sizes) - len(known):
        total += f"; time, money and disk of {unknown} sweep(s) are unknown"
    return "\n".join([*lines, total, "nothing was started"])


def _describe_cell(
    cell: Cell, nodes: list[dict[str, float]], question: search.PowerQuestion | None
) -> tuple[list[str], int, search.SweepSize | None]:
    """Return a cell's lines, its trainings (0 where it has finished) and what it takes."""
    found = unscored(cell)
    experiment = cell.experiment
    run = run_of(cell) if found.problem == NOT_YET else None
    first = f"  {cell.title}: "
    if run and run.finished:
        return [f"{first}finished, {run.name}"], 0, None
    planned = search.Plan(experiment).counts.total
    begun = f", {len(run.ledger())} of them ended in {run.name}" if run else ""
    trainings = f"{planned} trainings of {experiment.train.epochs} epochs{begun}"
    try:
        if found.problem != NOT_YET:
            raise UserError(found.problem)
        placement = cluster.plan_placement(experiment, nodes)
        size = search.size_sweep(experiment, placement)
    except UserError as error:
        return [f"{first}{trainings}", f"    missing: {error}"], planned, None
    splits = ", ".join(found.splits) or "every evaluation split"
    disk = _disk(size.disk) if size.disk else ", disk unknown"
    text = f"time unknown{disk}"
    if size.estimate:
        hours, price = _most_hours(size.estimate), size.estimate["cost"]
        text = f"at most {_hours(hours)}{_price(price)}{disk}"
    lines = [f"{first}{trainings}, {placement.concurrent} at a time, {text}; scored on {splits}"]
    lines.append(f"    time: {size.source}")
    if question:
        power = search.describe_power(experiment, question, size.seed_hours)
        lines += [f"    {line}" for line in power]
    if size.estimate and not config.hourly_price(experiment.resources):
        lines[0] += "; no prices given"
    return lines, planned, size


def _most_hours(estimate: search.Estimate) -> float:
    """Return the hours that a sweep takes at most, as its own plan says."""
    return estimate.get("hours_range", [0.0, estimate["hours"]])[1]


def _hours(hours: float) -> str:
    return utils.duration(3600 * hours)


def _price(price: float) -> str:
    return f", cost {search.money(price)}" if price else ""


def _disk(size: int) -> str:
    return f", {size / 1e9:.2g} GB of checkpoints" if size else ""
