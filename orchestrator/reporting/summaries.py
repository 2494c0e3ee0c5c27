"""Define what a report knows of an arm, of a cell of the map and of a point of a line.

Scores are shares in [0, 1]; a value that is missing is NaN, never 0. Attributes are named after
the columns of arms.csv, map.csv and line.csv, which are written from these classes.
"""

from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.reporting.significance import Interval


@dataclass(frozen=True)
class ArmDifference:
    """Mean difference in val/mIoU between two arms, paired by seed."""

    interval: Interval
    """Mean with its 95 % t interval; n is the number of common seeds."""
    excludes_zero_corrected: bool
    """The p value after Holm's correction for all arms is below 0.05."""
    detectable: float
    """Smallest true difference that the test finds four times in five."""

    def columns(self, prefix: str) -> dict[str, Any]:
        """Return the columns of arms.csv that begin with `prefix`."""
        values = {
            "n": self.interval.n,
            "mean": self.interval.mean,
            "low": self.interval.low,
            "high": self.interval.high,
            "excludes_zero": self.interval.excludes_zero,
            "excludes_zero_corrected": self.excludes_zero_corrected,
            "detectable": self.detectable,
        }
        return {f"{prefix}_{name}": value for name, value in values.items()}


@dataclass(frozen=True)
class ArmSummary:
    """One arm in confirmation: its confirmation trials that are done, at the epoch that counts.

    The class has an attribute for every quantity that the report's table of arms shows, hence
    more than ten.
    """

    arm: str
    tau: float
    rho: float
    settings_confirmed: int
    """Number of different settings among the confirmation trials."""
    other: str
    """The confirmed setting's searched values besides tau and rho, as text."""
    not_finished: int
    """Confirmation trials that are not done."""
    epochs: int
    mIoU: Interval
    """Mean over the seeds, which are `mIoU.n`."""
    oIoU: float
    precision: dict[str, float]
    """Mean of P@0.5, P@0.7 and P@0.9 by name."""
    vs_off: ArmDifference
    vs_random: ArmDifference
    settings_tried: int
    """Settings that the search tried for this arm."""
    hidden: float
    """Measured share of the image that the masks hide."""
    cost_ratio: float
    """FLOPs of one training step relative to arm off."""

    @property
    def seeds(self) -> int:
        """Return the number of seeds with a finished confirmation trial."""
        return self.mIoU.n

    def row(self) -> dict[str, Any]:
        """Return the arm's row of arms.csv."""
        return {
            "arm": self.arm,
            "tau": self.tau,
            "rho": self.rho,
            "settings_confirmed": self.settings_confirmed,
            "other": self.other,
            "seeds": self.seeds,
            "not_finished": self.not_finished,
            "epochs": self.epochs,
            "mIoU": self.mIoU.mean,
            "mIoU_low": self.mIoU.low,
            "mIoU_high": self.mIoU.high,
            "mIoU_sd": self.mIoU.sd,
            "oIoU": self.oIoU,
            **self.precision,
            **self.vs_off.columns("vs_off"),
            **self.vs_random.columns("vs_random"),
            "settings_tried": self.settings_tried,
            "hidden": self.hidden,
            "cost_ratio": self.cost_ratio,
        }


@dataclass(frozen=True)
class MapCell:
    """One (arm, tau, rho) of the search.

    The class has an attribute for every column of map.csv, hence more than ten.
    """

    arm: str
    tau: float
    rho: float
    product: float
    """tau times rho, the share of the image meant to be hidden."""
    trials: int
    """Trials that did not fail."""
    furthest: int
    """Trials that reached `epochs_max`, the most epochs of this cell."""
    seeds: int
    """Different seeds among the trials that got furthest."""
    stopped: int
    failed: int
    epochs_min: int
    epochs_max: int
    early: int
    """1 if the scheduler stopped all trials that got furthest, else 0."""
    mIoU_best: float
    """Mean of the best val/mIoU of the trials that got furthest."""
    mIoU_best_sd: float
    common_epoch: int
    """Last epoch that all search trials reached."""
    mIoU_common: float
    """Mean val/mIoU of all of the cell's trials at `common_epoch`."""
    hidden: float
    """Mean measured hidden share of the trials that got furthest."""

    def row(self) -> dict[str, Any]:
        """Return the cell's row of map.csv."""
        return asdict(self)


@dataclass(frozen=True)
class LinePoint:
    """One setting on a line of equal hidden share r = tau rho.

    The class has an attribute for every column of line.csv, hence more than ten.
    """

    line_arm: str
    """Alignment arm whose line this is."""
    line: float
    """The line's r."""
    arm: str
    """Arm of the point itself: `line_arm`, or random."""
    tau: float
    rho: float
    product: float
    epoch: int
    """Last epoch that all points of the line reached; every value here is read at it."""
    of_epochs: int
    """Epochs of a full run."""
    trials: int
    seeds: int
    mIoU: float
    mIoU_sd: float
    hidden: float
    off: float
    """Mean val/mIoU of arm off at the same epoch."""

    def row(self) -> dict[str, Any]:
        """Return the point's row of line.csv."""
        return asdict(self)
