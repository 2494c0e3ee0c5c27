"""Read the folder of an evaluation, and check that two evaluations can be compared."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from aml.errors import Unreadable, UserError
from aml.reading import problem_of, read_json

Share = Annotated[float, Field(ge=0, le=1)]

Count = Annotated[int, Field(ge=0)]

FOLDER = "give the --out folder of `python -m orchestrator evaluate`"


class _Part(BaseModel):
    """Check a part of a result, which may have more entries than those named."""

    model_config = ConfigDict(extra="allow", strict=True)


class _Data(_Part):
    dataset: str
    split_by: str
    fingerprint: str


class _About(_Part):
    protocol: str
    splits: list[str]
    data: _Data
    image_size: int | None
    fit: str | None = None
    corruptions: list[str] = []
    arm: str | None = None
    seed: int | None = None
    model: dict[str, Any] | str | None = None


class _Scores(_Part):
    mIoU: Share
    oIoU: Share
    p50: Share = Field(alias="P@0.5")
    p70: Share = Field(alias="P@0.7")
    p90: Share = Field(alias="P@0.9")
    n: Count


MetricsKey = Annotated[str, Field(pattern=r"^[^/]+(/[^/:]+:[0-9]{1,3})?$")]
"""A split, or <split>/<corruption>:<severity>."""


class _Mean(_Part):
    """Line of robustness.json."""

    severities: list[int]
    mIoU: float
    oIoU: float
    drop_mIoU: float | None
    drop_oIoU: float | None


class _Row(BaseModel):
    """Check the columns of per_sentence.jsonl that a comparison reads."""

    model_config = ConfigDict(strict=True)
    split: str
    corruption: str
    severity: Count
    image_id: int
    ref_id: int
    sent_id: int
    gt_pixels: Count
    intersection: Count
    union: Count
    no_target: bool = False
    called_empty: bool = False
    """The decision in a split with expressions without a target, else False."""

    @model_validator(mode="after")
    def _check_counts(self):
        if self.intersection > self.union:
            raise ValueError(f"intersection is {self.intersection} and union {self.union}")
        return self


ABOUT = TypeAdapter(_About)

METRICS_OF = TypeAdapter(dict[MetricsKey, _Scores])

TABLES: dict[str, TypeAdapter] = {
    "breakdown.json": TypeAdapter(dict[str, dict[str, dict[str, _Scores]]]),
    "robustness.json": TypeAdapter(dict[str, dict[str, _Mean]]),
}


def read_evaluation(folder: Path) -> tuple[dict, dict]:
    """Return about.json and metrics.json of a folder that `evaluate --out` wrote.

    Raises:
        UserError: The folder is no finished evaluation, or one of the two is damaged.
    """
    about = _read(Path(folder) / "about.json", ABOUT)
    metrics = _read(Path(folder) / "metrics.json", METRICS_OF)
    if missing := [split for split in about["splits"] if split not in metrics]:
        raise UserError(
            f"{folder}: metrics.json has no {missing[0]}, which about.json names; evaluate it again"
        )
    return about, metrics


def read_table(folder: Path, name: str) -> dict:
    """Return breakdown.json or robustness.json of an evaluation; nothing where it has none.

    Raises:
        UserError: The file is damaged.
    """
    path = Path(folder) / name
    return _read(path, TABLES[name]) if path.exists() else {}


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of per_sentence.jsonl; raise UserError with the first damaged line."""
    path = Path(folder) / "per_sentence.jsonl"
    rows: list[dict[str, Any]] = []
    try:
        with path.open("rb") as file:
            for line in file:
                rows.append(dict(_Row.model_validate_json(line)))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); {FOLDER}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "it"
        raise UserError(
            f"{path} is damaged (line {len(rows) + 1}: {place}: {first['msg']}); evaluate it again"
        ) from None
    return rows


def _read(path: Path, kind: TypeAdapter) -> dict:
    """Return the content of a file of an evaluation, checked."""
    try:
        content = read_json(path, nan=True)
    except Unreadable as error:
        raise UserError(f"{path.parent} is no finished evaluation ({error}); {FOLDER}") from None
    if problem := problem_of(kind, content):
        raise UserError(f"{path} is damaged ({problem}); evaluate it again")
    return content


def check_comparable(a: dict, b: dict, name_a: str, name_b: str) -> None:
    """Check that two evaluations measured the same thing.

    Args:
        a: about.json of the first.
        b: about.json of the second.
        name_a: What a message calls the first.
        name_b: What a message calls the second.

    Raises:
        UserError: The shards, the protocol or, in the square protocol, the network size differ.
    """
    same_protocol = "evaluate both with --protocol original"
    checks: list[tuple[str, Callable[[dict], str], str]] = [
        (
            "data fingerprint",
            lambda about: about["data"]["fingerprint"],
            "evaluate both on the same shards",
        ),
        ("protocol", lambda about: about["protocol"], same_protocol),
    ]
    if a["protocol"] == b["protocol"] == "square":
        checks.append(
            (
                "network size",
                lambda about: f"{about['image_size']} px, {about['fit']}",
                f"the square protocol scores at network size, so {same_protocol}",
            )
        )
    for what, value_of, remedy in checks:
        if value_of(a) != value_of(b):
            raise UserError(
                f"{name_a} and {name_b} cannot be compared: the {what} is {value_of(a)} and "
                f"{value_of(b)}; {remedy}"
            )
