"""Step times that were measured on GPUs and are kept in the repository.

They say how long a sweep takes where it is planned on a machine without such a GPU.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from aml.models import make_options
from orchestrator.config import Experiment, masking_arm
from orchestrator.search.plan import Plan

FILE = Path(__file__).parents[3] / "experiments" / "results" / "gpu.jsonl"
"""What `python -m aml.bench step` printed on GPUs, one line a command; a wheel lacks it."""

BESIDE_STEPS = 0.15
"""Share of an epoch's time that is assumed for reading and validation; it was not measured."""

HALF = ("bf16", "fp16")
"""Precisions of train.precision that run at one rate on a GPU's matrix units."""

WEIGHTS = ("pretrained", "weights", "dropout", "drop_path", "max_words", "max_tokens")
"""Options of models that leave a step's time as it is, or nearly so."""

WORDS = "words"
"""Text encoder of the published size with the words of the data set as its vocabulary."""


class MeasuredStep(NamedTuple):
    """A training step of a sweep's model, as measured on a GPU."""

    card: str
    precision: str
    measured_batch: int
    samples: int
    """Samples of a step of the sweep."""
    seconds: float
    """At most, for a step of the sweep, the mean over its arms and epochs."""

    def epoch_s(self, items: int, workers: int) -> float:
        """Return the seconds of an epoch, those beside its steps included."""
        return items * self.seconds / self.samples / workers / (1 - BESIDE_STEPS)

    @property
    def source(self) -> str:
        """Say where the time is from and what is assumed."""
        batch = f"batch {self.measured_batch}"
        if self.measured_batch != self.samples:
            batch += f" and not {self.samples}"
        return (
            f"from steps measured on another machine's {self.card}, {self.precision}, {batch}, "
            f"with {BESIDE_STEPS:.0%} of an epoch assumed, not measured, for reading and validation"
        )


def find_measured_step(experiment: Experiment, plan: Plan) -> MeasuredStep | str:
    """Return the measured time of a sweep's steps, or what is not known of it.

    A step of fewer samples than those measured takes no longer, and one of more takes at most
    proportionally longer; the nearest measured batch counts.

    Args:
        experiment: The settings of the sweep.
        plan: Its plan: the epochs of each arm.
    """
    if experiment.resources.gpus_per_worker % 1:
        return "steps were measured with a GPU of their own, and these trials share one"
    known = [row for row in _rows() if _same_model(experiment.model, row["model"])]
    name = experiment.model["name"]
    if not known:
        return f"no step of {name} with these options was measured on a GPU"
    size = experiment.data.size
    sizes = sorted({row["image_size"] for row in known})
    known = [row for row in known if row["image_size"] == size]
    if not known:
        measured = ", ".join(map(str, sizes))
        return f"steps of {name} were measured on a GPU at {measured} px, not at {size}"
    precision = experiment.train.precision
    alike = HALF if precision in HALF else (precision,)
    known = [row for row in known if row["precision"] in alike]
    if not known:
        return f"no step of {name} at {size} px was measured on a GPU in {precision}"
    samples = experiment.train.batch // experiment.resources.workers
    row = min(known, key=lambda row: (row["batch"] < samples, abs(row["batch"] - samples)))
    epochs = plan.results.epochs_left
    missing = [arm for arm in epochs if masking_arm(arm) not in row["arms"]]
    if missing:
        return f"no step of {name} at {size} px was measured on a GPU for {', '.join(missing)}"
    total = sum(n * row["arms"][masking_arm(arm)]["ms"] for arm, n in epochs.items())
    seconds = total / sum(epochs.values()) / 1000 * max(1.0, samples / row["batch"])
    return MeasuredStep(row["device_name"], row["precision"], row["batch"], samples, seconds)


def _rows() -> list[dict[str, Any]]:
    """Return the measured training steps."""
    if not FILE.is_file():
        return []
    rows = map(json.loads, FILE.read_text("utf-8").splitlines())
    return [row for row in rows if "arms" in row]


def _same_model(wanted: dict[str, Any], measured: dict[str, Any]) -> bool:
    """Return whether two models take the same steps, whatever their weights and vocabulary."""
    return wanted["name"] == measured["name"] and _shape(wanted) == _shape(measured)


def _shape(model: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a model that its steps' time depends on."""
    name = model["name"]
    default = vars(make_options(name, {}))
    options = vars(make_options(name, {k: v for k, v in model.items() if k != "name"}))
    shape = {key: value for key, value in options.items() if key not in WEIGHTS}
    if shape.get("text") == WORDS:
        shape["text"] = default["text"]
    return shape
