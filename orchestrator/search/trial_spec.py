"""The specification of one trial, as trial.json holds it."""

import json
from dataclasses import asdict, dataclass, field, replace

from orchestrator.config import Experiment


@dataclass(frozen=True)
class TrialSpec:
    """One run of one setting with one seed; under population-based training its settings may change at some epochs."""

    id: str
    arm: str
    stage: str
    seed: int
    overrides: dict
    """The settings, or those after the last change."""
    path: list = field(default_factory=list)
    """[[epochs done, overrides from there on], ...] where they change on the way; empty: `overrides` throughout."""
    until: int | None = None
    """Epochs done at which it makes way for the other members of its population; null: it trains to its end."""

    def experiment(self, base: Experiment) -> Experiment:
        return base.for_arm(self.arm, {**self.overrides, "seed": self.seed})

    def legs(self, base: Experiment) -> list[tuple[Experiment, int]]:
        """What it trains with, each up to which epoch."""
        changes = [
            (replace(self, overrides=overrides).experiment(base), begin)
            for begin, overrides in self.path or [[0, self.overrides]]
        ]
        ends = [begin for _, begin in changes[1:]] + [self.until or changes[-1][0].train.epochs]
        return [(experiment, end) for (experiment, _), end in zip(changes, ends, strict=True)]

    def describe(self, base: Experiment) -> dict:
        """What the ledger and MLflow know a trial by: arm, stage, seed, tau, rho, and the leaves that vary."""
        return self.facts(self.experiment(base))

    def facts(self, experiment: Experiment) -> dict:
        """`describe` for the trial's own experiment, which takes milliseconds to build."""
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
    """The metric at the trial's last epoch; None where it failed or has none."""
    if record["state"] == "failed" or not record["history"]:
        return None
    return record["history"][-1].get(metric)


def slugify(arm: str) -> str:
    return arm.replace("/", "_").replace("@", "_at_")


def trial_to_json(trial: TrialSpec) -> str:
    return json.dumps(asdict(trial))


def trial_from_json(text: str) -> TrialSpec:
    return TrialSpec(**json.loads(text))
