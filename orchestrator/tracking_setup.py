"""Which tracker a run talks to, and what it says of an experiment."""

from orchestrator.config import Experiment
from orchestrator.runs import Run


def open_tracker(this: Run, experiment: Experiment):
    """The run's tracker; its address and run id are noted in the run's state by `note_tracking`."""
    from orchestrator.tracking import MemoryTracker, Tracker

    if experiment.tracking.uri == "none":
        return MemoryTracker()
    return Tracker(this.folder, experiment.tracking.uri, experiment.name, experiment.root)


def describe_run(experiment: Experiment, varying: set[str] = frozenset()) -> dict:
    """Every resolved leaf that does not vary, as MLflow params; aml.tau and aml.rho as the numbers the arm is at."""
    tau, rho = experiment.aml.coordinates
    flat = {k: v for k, v in leaves(experiment.to_dict()).items() if k not in varying and k.split(".")[0] not in ("tracking", "storage")}
    return flat | ({} if {"aml.tau", "aml.rho"} & set(varying) else {"aml.tau": tau, "aml.rho": rho})


def leaves(tree: dict, prefix: str = "") -> dict:
    """{"aml": {"tau": 0.5}} -> {"aml.tau": 0.5}; lists and space dimensions stay whole."""
    flat = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and name != "search.space":
            flat |= leaves(value, f"{name}.")
        else:
            flat[name] = value
    return flat
