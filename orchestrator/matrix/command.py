"""Run a matrix of experiments: one sweep after another, in one process and on one Ray.

Every cell is an ordinary sweep with a run folder of its own, which continues or is found finished
when the command is given again. Its confirmed arms are then scored on its splits, into splits/ of
that folder, and the table of all cells is written anew.
"""

import logging
from dataclasses import replace

from orchestrator import data, reporting, storage, sweep, utils
from orchestrator.config import Cell, Matrix
from orchestrator.matrix.cells import results_root, shards_of, unscored, with_splits

logger = logging.getLogger(__name__)

SCORES_FOLDER = "splits"
"""Folder of a run for the scores of its arms on the matrix's splits."""

INTERRUPTED = 130


def run_matrix(matrix: Matrix) -> int:
    """Run every cell that has not finished, score all, and write the table after each.

    A cell that fails is named, and the others go on.

    Returns:
        The exit code: 0 where no score is missing, else 1; 130 interrupted.
    """
    folder = storage.Filesystem(f"{matrix.name}-matrix", results_root(matrix.cells[0]))
    scores = [unscored(cell) for cell in matrix.cells]
    for known in scores:
        if not known.manifest:
            logger.info(f"{known.data} x {known.model}: {known.problem}")
    decoded = data.LastDecoded()
    lines: list[str] = []
    code = 0
    for index, cell in enumerate(matrix.cells):
        name = cell.experiment.name
        logger.info(f"cell {index + 1} of {len(matrix.cells)}, {cell.title}: {name}")
        try:
            scores[index] = _run_cell(cell, scores[index], decoded)
        except KeyboardInterrupt:
            code = INTERRUPTED
            scores[index] = replace(scores[index], problem="interrupted")
        except Exception as error:  # of any kind: the other cells do not depend on it
            scores[index] = replace(scores[index], problem=utils.failure(error))
        if scores[index].problem:
            logger.info(f"{cell.title}: {scores[index].problem}")
        lines = reporting.write_matrix(folder, matrix.name, scores)
        if code:
            break
    for text in lines:
        logger.info(text)
    if code:
        logger.info(f"{matrix.name} interrupted; the same command continues it")
        return code
    return 1 if any(known.problem for known in scores) else 0


def _run_cell(
    cell: Cell, known: reporting.CellScores, decoded: data.LastDecoded
) -> reporting.CellScores:
    """Run the sweep of a cell, or find it finished, and score its confirmed arms.

    Args:
        cell: The cell.
        known: What is known of it.
        decoded: Pictures that an earlier cell decoded.

    Raises:
        KeyboardInterrupt: The sweep was interrupted.
    """
    end = sweep.run_sweep(cell.experiment, decoded=decoded)
    if end.code == INTERRUPTED or end.run is None:
        raise KeyboardInterrupt
    run = end.run
    known = replace(with_splits(cell, known), run=run.name)
    with run.locked():
        _, rows = reporting.evaluate_arms(
            run,
            shards_of(cell),
            known.splits,
            run.folder / SCORES_FOLDER,
            protocol=cell.protocol,
            workers=None,
            keep=True,
        )
    missing = [arm for arm in known.arms if not any(row["arm"] == arm for row in rows)]
    problem = f"no confirmed trial of {', '.join(missing)} in {run.name}" if missing else ""
    return replace(known, rows=rows, problem=problem)
