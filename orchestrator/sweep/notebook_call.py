"""The `sweep` of notebooks: what the command does, with the run as its result."""

from pathlib import Path

from orchestrator.config import Experiment
from orchestrator.notebook import RunResult, load, said_in_a_notebook
from orchestrator.search import power_question
from orchestrator.sweep.command import run_sweep


@said_in_a_notebook
def sweep_in_notebook(
    experiment: Experiment | str | Path,
    *,
    resume: str | None = None,
    fresh: bool = False,
    dry_run: bool = False,
) -> RunResult | None:
    """Search settings in every arm, confirm the best on fresh seeds, compare, report.

    A sweep that was interrupted goes on, and one that has finished is returned at once.

    Args:
        experiment: As `load` returns it, or its YAML file.
        resume: Continue the run of this name, whatever the experiment says now.
        fresh: Start another run although one of the same settings and data exists.
        dry_run: Print trials, placement and estimated time, start nothing, return None.

    Raises:
        UserError: The settings or data are refused.
        RunError: The sweep failed, and would again.
    """
    settings = experiment if isinstance(experiment, Experiment) else load(experiment)
    file = "experiment.yaml" if isinstance(experiment, Experiment) else str(experiment)
    question = power_question([], None, file) if dry_run else None
    end = run_sweep(settings, resume=resume, fresh=fresh, plan_for=question)
    return RunResult(end.run) if end.run else None
