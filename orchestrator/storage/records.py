"""What a run's files hold: its state, finished trials, finished epochs, notes.

The driver writes sweep.json or train.json and ledger.jsonl, the processes that train epochs.jsonl
and notes.txt. Each is read here alone, and what a reader relies on is checked first: a damaged file
or line is named, never taken for a number.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    model_validator,
)

from aml import files
from aml.errors import NotSaved, Unreadable, UserError
from aml.reading import problem_of, read_json, read_lines
from aml.schema import shown
from orchestrator.utils import redact

NOTES, EPOCHS, LEDGER = "notes.txt", "epochs.jsonl", "ledger.jsonl"

Number = int | float | None
"""A missing number is null."""


def _check_metrics(epoch: dict[str, Any]) -> dict[str, Any]:
    number = epoch.get("epoch")
    if type(number) is not int or number < 1:
        raise ValueError(f"epoch is {shown(number)}, not a whole number from 1 on")
    for name, value in epoch.items():
        if "/" in name and value is not None and type(value) not in (int, float):
            raise ValueError(f"{name} is {shown(value)}, not a number")
    return epoch


Epoch = Annotated[dict[str, Any], AfterValidator(_check_metrics)]
"""Metrics of an epoch; the names of metrics have a slash."""


def _check_order(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    numbers = [epoch["epoch"] for epoch in history]
    if numbers != sorted(set(numbers)):
        raise ValueError(f"history has the epochs {shown(numbers)}, which do not rise")
    return history


History = Annotated[list[Epoch], AfterValidator(_check_order)]


def _check_path(step: list[Any]) -> list[Any]:
    if len(step) != 2 or type(step[0]) is not int or not isinstance(step[1], dict):
        raise ValueError(f"path has {shown(step)}, not an epoch and settings")
    return step


class _Record(BaseModel):
    """Check a record, which may have more entries than those named."""

    model_config = ConfigDict(extra="allow", strict=True)


class _Data(_Record):
    uri: str | None = None
    fingerprint: str | None = None
    dataset: str | None = None
    split_by: str | None = None
    splits: dict[str, dict[str, int]] | None = None


class _Champion(_Record):
    checkpoint: str | None = None
    arm: str | None = None
    trial: str | None = None


class _Baselines(_Record):
    n: int | None = None
    champion: dict[str, Number] | None = None
    untrained: dict[str, Number] | None = None
    random_object: dict[str, Number] | None = None
    largest_object: dict[str, Number] | None = None
    wrong_sentence: dict[str, Number] | None = None


class _Scores(_Record):
    """Scores of a checkpoint under one condition."""

    mIoU: float


class _Robustness(_Record):
    n: int | None = None
    split: str | None = None
    conditions: list[Annotated[str, Field(pattern=r"^[a-z_]+:[0-5]$")]] | None = None
    trials: dict[str, dict[Annotated[str, Field(pattern=r"^[a-z_]+:[0-5]$")], _Scores]] | None = (
        None
    )


class _State(_Record):
    """State of a run, content of sweep.json or train.json."""

    run: str | None = None
    name: str | None = None
    state: str | None = None
    concluded: bool | None = None
    started: Annotated[Number, Field(ge=0, le=1e11)] = None
    ended: Annotated[Number, Field(ge=0, le=1e11)] = None
    command: str | None = None
    error: str | None = None
    stopped_by: str | None = None
    git_sha: str | None = None
    git_dirty: bool | None = None
    code_version: str | None = None
    processors: list[str] | None = None
    versions: dict[str, str] | None = None
    data: _Data | None = None
    epochs: int | None = None
    epochs_by_arm: dict[str, int] | None = None
    metric: str | None = None
    mode: str | None = None
    objectives: list[Annotated[list[str], Field(min_length=2, max_length=2)]] | None = None
    windowed: bool | None = None
    init: str | None = None
    arm: str | None = None
    seed: int | None = None
    tau: Number = None
    rho: Number = None
    history: History | None = None
    champion: _Champion | None = None
    settings_tried: dict[str, int] | None = None
    cost: dict[str, dict[str, Number]] | None = None
    baselines: _Baselines | None = None
    robustness: _Robustness | None = None
    budget: dict[str, Any] | None = None
    estimate: dict[str, Any] | None = None
    spent: dict[str, Number] | None = None
    mlflow: dict[str, str | None | dict[str, str]] | None = None


class _Trial(_Record):
    """Finished trial, a line of ledger.jsonl."""

    trial: Annotated[str, Field(pattern=r"^[^/\x00-\x1f\x7f]{1,200}$")]
    arm: Annotated[str, Field(min_length=1, max_length=500)]
    stage: Literal["search", "confirm"]
    state: Literal["done", "stopped", "failed"]
    stopped_by: str = ""
    error: str = ""
    seed: int | None = None
    tau: Number = None
    rho: Number = None
    seconds: Number = None
    params: dict[str, Any] | None = None
    overrides: dict[str, Any] | None = None
    epochs: Annotated[int | None, Field(ge=0)] = None
    history: History
    path: list[Annotated[list[Any], AfterValidator(_check_path)]] | None = None

    @model_validator(mode="after")
    def _check_epochs(self):
        last = self.history[-1]["epoch"] if self.history else 0
        if (self.epochs or 0) > last:
            raise ValueError(f"epochs is {self.epochs}, but history ends at {last}")
        return self


STATE, TRIAL, EPOCH = TypeAdapter(_State), TypeAdapter(_Trial), TypeAdapter(Epoch)


def read_state(path: Path) -> dict[str, Any]:
    """Return the content of sweep.json or train.json; raise UserError for a damaged one."""
    problem, state = "", {}
    try:
        state = read_json(path, nan=True)
        problem = problem_of(STATE, state)
    except Unreadable as error:
        problem = str(error).rpartition(";")[0]
    if problem:
        raise UserError(
            f"{path} is damaged ({problem}); restore it, or start another run with --fresh"
        )
    return state


def read_trials(path: Path) -> tuple[list[dict], list[str]]:
    """Return the trials of a ledger, and what is wrong with each line that is left out.

    A trial with several lines, which went on after its budget was raised, counts as it ended last.
    """
    records, problems = read_lines(path, TRIAL)
    return list({record["trial"]: record for record in records}.values()), problems


def read_history(folder: Path) -> list[dict]:
    """Return the metrics of every finished epoch of the run or trial in a folder.

    Raises:
        UserError: A line is damaged; epochs are known by their place.
    """
    epochs, problems = read_lines(folder / EPOCHS, EPOCH)
    if problems:
        raise UserError(
            f"{folder / EPOCHS} is damaged ({problems[0]}); remove it, and training writes it anew"
        )
    return epochs


def add_note(folder: Path, text: str) -> None:
    """Append a line that the driver logs, because the user sees nothing that a worker prints.

    Raises:
        NotSaved: the disk takes no more.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / NOTES, "a", encoding="utf-8") as file:
            file.write(redact(text) + "\n")
    except OSError as error:
        raise NotSaved(files.write_failure(folder / NOTES, error, len(text))) from error


def read_notes(folder: Path) -> list[str]:
    """Return the notes of a run or trial in the order in which its workers wrote them."""
    path = folder / NOTES
    return path.read_text("utf-8").splitlines() if path.exists() else []


def drop_drafts(folder: Path) -> None:
    """Delete the temporary files that a lost process left in the folder of a run or trial.

    No process may be writing in the folder.
    """
    from aml.training import drop_checkpoint_drafts  # imports torch, which readers do without

    drop_checkpoint_drafts(folder)
    for pattern in (f"*{files.DRAFT}", f"pictures/*{files.DRAFT}"):
        for draft in folder.glob(pattern):
            draft.unlink(missing_ok=True)
