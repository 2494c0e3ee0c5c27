"""The specification of one trial, as trial.json holds it."""

import json
import re
from dataclasses import dataclass, field, replace

from orchestrator.config import Experiment, upgrade_overrides


@dataclass(frozen=True)
class TrialSpec:
    """One training of one setting with one seed.

    Under population-based training its settings may change at some epochs.
    """

    id: str
    arm: str
    stage: str
    """search or confirm."""
    seed: int
    overrides: dict
    """The settings, or those after the last change."""
    config_history: list = field(default_factory=list)
    """[[finished epochs, overrides from there on], ...]; empty: `overrides` throughout."""
    pause_at_epoch: int | None = None
    """Number of finished epochs at which a member of a population makes way for the others."""

    def experiment(self, base: Experiment) -> Experiment:
        """Return the settings of the trial within a sweep of the settings `base`."""
        return base.for_arm(self.arm, {**self.overrides, "seed": self.seed})

    def config_schedule(self, base: Experiment) -> list[tuple[Experiment, int]]:
        """Return [(settings, number of finished epochs at which they end), ...]."""
        changes = self.config_history or [[0, self.overrides]]
        experiments = [
            replace(self, overrides=overrides).experiment(base) for _, overrides in changes
        ]
        last_epoch = self.pause_at_epoch or experiments[-1].train.epochs
        ends = [start for start, _ in changes[1:]] + [last_epoch]
        return list(zip(experiments, ends, strict=True))

    def describe(self, base: Experiment) -> dict:
        """Return `summary_row` of the trial within a sweep of the settings `base`."""
        return self.summary_row(self.experiment(base))

    def summary_row(self, experiment: Experiment) -> dict:
        """Return what ledger and MLflow identify the trial by.

        Args:
            experiment: The trial's own settings, which take milliseconds to build.

        Returns:
            Arm, stage, seed, tau, rho, and the settings that vary.
        """
        tau, rho = experiment.aml.coordinates
        others = {k: v for k, v in self.overrides.items() if k not in ("aml.tau", "aml.rho")}
        return {
            "trial": self.id,
            "arm": self.arm,
            "stage": self.stage,
            "seed": self.seed,
            "tau": tau,
            "rho": rho,
            "params": {"aml.tau": tau, "aml.rho": rho, **others},
        }


def value_of(record: dict, metric: str) -> float | None:
    """Return the metric at the trial's last epoch; None where it failed or has none."""
    if record["state"] == "failed" or not record["history"]:
        return None
    return record["history"][-1].get(metric)


def slugify(arm: str) -> str:
    """Return the arm's name as trial ids hold it."""
    slug = arm.replace("/", "_").replace("+", "_plus_").replace("@", "_at_")
    return re.sub(r"[(=,\s]+", "_", slug).replace(")", "")


def trial_id(arm: str, stage: str, index: int) -> str:
    """Return the id of an arm's trial."""
    return f"{slugify(arm)}-{stage}-{index:03d}"


def trial_to_json(spec: TrialSpec) -> str:
    """Return the text of trial.json."""
    return json.dumps(
        {
            "id": spec.id,
            "arm": spec.arm,
            "stage": spec.stage,
            "seed": spec.seed,
            "overrides": spec.overrides,
            "path": spec.config_history,
            "until": spec.pause_at_epoch,
        }
    )


def trial_from_json(text: str) -> TrialSpec:
    """Return the trial of a trial.json, also of one that an earlier version wrote."""
    tree = json.loads(text)
    history = [[start, upgrade_overrides(overrides)] for start, overrides in tree.get("path") or []]
    return TrialSpec(
        tree["id"],
        tree["arm"],
        tree["stage"],
        tree["seed"],
        upgrade_overrides(tree["overrides"]),
        history,
        tree.get("until"),
    )
