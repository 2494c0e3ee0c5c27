"""The Experiment: strict YAML, dotted overrides, every setting checked before anything is started.

A key nobody knows is refused with the nearest known one; a value that cannot mean anything is refused by the dataclass it belongs to.
The resolved experiment names its run: <name>-<8 hex of settings, data fingerprint and code version>.
"""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from aml.data import AUGMENTATIONS
from aml.errors import UserError
from aml.masking import PRESETS, MaskingConfig, preset
from aml.training import EvalConfig, OptimConfig, TrainConfig
from orchestrator.config import loader


@dataclass(frozen=True, kw_only=True)
class BudgetConfig:
    """Where a sweep stops with the best so far; null: no limit. A sweep that is continued counts what it has used before."""

    trials: int | None = None
    epochs: int | None = None
    """Of all trials together."""
    hours: float | None = None
    """Of wall clock."""
    cost: float | None = None
    """In the currency of resources.price_per_gpu_hour and price_per_cpu_hour."""

    def __post_init__(self):
        for name, value in asdict(self).items():
            if value is not None and value <= 0:
                raise UserError(
                    f"search.budget.{name} is {value}; it must be above 0, or null for no limit"
                )

    @property
    def limits(self) -> dict[str, float]:
        return {k: v for k, v in asdict(self).items() if v is not None}


ARMS = ("off", "random", "two_pass", "maskris", *(f"aml/{name}" for name in PRESETS))

METHODS = ("grid", "random", "tpe")

SCHEDULERS = ("none", "asha", "pbt")

DRIVERS = ("auto", "light", "train")

EQUALITIES = ("epochs", "compute", "seconds")

AT_COMPUTE = "@compute"

"""Ending of an arm that is trained for as many epochs as the costliest arm's FLOPs would pay for."""


@dataclass(frozen=True, kw_only=True)
class SynthConfig:
    """Generated data made where data.train holds none yet."""

    dataset: str = "refcoco"
    images: int = 2000
    size: int = 96
    """Longer side of the generated pictures, pixels."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which shards, which splits, and what an item is."""

    train: str | list[str]
    """Shards: a folder, relative to storage.root, or a URI; several of them are mixed."""
    val: str | None = None
    """Which of several shards validates. Null: the first."""
    train_split: str = "train"
    val_split: str = "val"
    size: int = 112
    """Side of the network image, pixels."""
    fit: str = "square"
    """square: plain resize. letterbox: keep the aspect ratio, pad."""
    unit: str = "ref"
    """Training item: ref (one sentence drawn anew each epoch) or sentence (every one)."""
    train_limit: int | None = None
    val_limit: int | None = None
    """Use the first so many items only."""
    allow_eval_images: bool = False
    """Train on images that hold refs of an evaluation split, too."""
    augment: list[str] = field(default_factory=list)
    """Of training items: flip (left and right change places in the sentence, too), crop (keeps the whole referent)."""
    synth: SynthConfig | None = None

    @property
    def trains(self) -> list[str]:
        return [self.train] if isinstance(self.train, str) else self.train

    @property
    def val_uri(self) -> str:
        """The one of `trains` that validates."""
        return self.val or self.trains[0]

    def __post_init__(self):
        if (
            not self.trains
            or not all(isinstance(uri, str) and uri for uri in self.trains)
            or len(set(self.trains)) < len(self.trains)
        ):
            raise UserError(
                f"data.train is {self.train!r}; name a folder or URI of shards, or a list of them, each once"
            )
        if self.val_uri not in self.trains:
            raise UserError(
                f"data.val is {self.val!r}; it must be one of data.train: {', '.join(self.trains)}"
            )
        if self.synth is not None and len(self.trains) > 1:
            raise UserError(
                f"data.synth generates one data set, but data.train names {len(self.trains)}; give one folder or leave data.synth out"
            )
        loader.choice("data.fit", self.fit, ("square", "letterbox"))
        loader.choice("data.unit", self.unit, ("ref", "sentence"))
        for name in self.augment:
            loader.choice("data.augment", name, AUGMENTATIONS)
        for name in ("size", "train_limit", "val_limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"data.{name} is {value}; it must be 1 or more")


@dataclass(frozen=True, kw_only=True)
class SeedsConfig:
    """Seeds of a sweep."""

    search: int = 1
    """Each setting is searched with this many seeds: seed, seed + 1, ..."""
    confirm: int = 2
    """Each arm's best setting is trained again with this many fresh seeds; 0: no confirmation."""

    def __post_init__(self):
        if self.search < 1 or self.confirm < 0:
            raise UserError(
                f"search.seeds is search {self.search}, confirm {self.confirm}; search must be at least 1, confirm 0 or more"
            )


@dataclass(frozen=True, kw_only=True)
class AshaConfig:
    """Rungs of ASHA, inside one arm."""

    grace: int = 2
    """No trial stops before this epoch."""
    reduction: int = 3
    """One in so many goes on from each rung."""

    def __post_init__(self):
        if self.grace < 1 or self.reduction < 2:
            raise UserError(
                f"search.asha is grace {self.grace}, reduction {self.reduction}; grace must be at least 1, reduction at least 2"
            )


@dataclass(frozen=True, kw_only=True)
class PbtConfig:
    """Generations of population-based training: an arm's search trials are one population."""

    interval: int = 2
    """Epochs of a generation."""
    quantile: float = 0.25
    """Share of the members that go on from a copy of one of as many best."""
    resample: float = 0.25
    """Chance that a setting is then drawn anew instead of moved a little."""

    def __post_init__(self):
        if self.interval < 1 or not 0 < self.quantile <= 0.5 or not 0 <= self.resample <= 1:
            raise UserError(
                f"search.pbt is interval {self.interval}, quantile {self.quantile}, resample {self.resample}; interval must be at least 1, "
                "quantile above 0 and at most 0.5, resample between 0 and 1"
            )


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """What a sweep searches. `train` does not read it."""

    arms: list[str] = field(default_factory=lambda: ["off", "random", "aml/calibrated"])
    space: dict[str, Any] = field(
        default_factory=lambda: {"aml.tau": [0.25, 0.5], "aml.rho": [0.5, 1.0]}
    )
    """Dotted key -> list of values, or {low, high, log} for random and tpe."""
    method: str = "grid"
    scheduler: str = "none"
    asha: AshaConfig = field(default_factory=AshaConfig)
    pbt: PbtConfig = field(default_factory=PbtConfig)
    metric: str = "val/mIoU"
    mode: str = "max"
    trials: int | None = None
    """Search trials of every arm; null: the whole grid."""
    max_concurrent: int | None = None
    """Null: as many as the cluster holds."""
    seeds: SeedsConfig = field(default_factory=SeedsConfig)
    equal: str = "epochs"
    """What arms are compared at: epochs; compute or seconds, then each arm is trained for the epochs that the costliest one's FLOPs (or
    time) would pay for. A single arm named x@compute is such a control beside the others."""
    time_limit_s: float | None = None
    """A trial stops at the end of the epoch in which it passes this."""
    budget: BudgetConfig = field(default_factory=BudgetConfig)

    @property
    def dimensions(self) -> set[str]:
        """Dotted keys that the search varies."""
        bundles = {key: values for key, values in self.space.items() if "." not in key}
        return set(self.space) - set(bundles) | {
            f"{key}.{leaf}" for key, values in bundles.items() for value in values for leaf in value
        }

    def __post_init__(self):
        for arm in self.arms:
            loader.choice("search.arms", base_arm(arm), ARMS)
        if not self.arms or len(set(self.arms)) < len(self.arms):
            raise UserError(
                f"search.arms is {self.arms}; it must name at least one arm, each once, out of {', '.join(ARMS)}"
            )
        loader.choice("search.method", self.method, METHODS)
        loader.choice("search.scheduler", self.scheduler, SCHEDULERS)
        loader.choice("search.mode", self.mode, ("max", "min"))
        loader.choice("search.equal", self.equal, EQUALITIES)
        for key, values in self.space.items():
            _check_dimension(key, values, self.method)
        if self.method != "grid" and self.trials is None:
            raise UserError(
                f"search.method {self.method} needs search.trials, the number of trials of every arm; set it"
            )
        if self.trials is not None and self.trials < 1:
            raise UserError(f"search.trials is {self.trials}; it must be 1 or more")


@dataclass(frozen=True, kw_only=True)
class ResourcesConfig:
    """What a run or a trial gets."""

    workers: int = 1
    min_workers: int | None = None
    """`train` goes on with as few as these where more do not fit, and takes the others up again; null: always `workers`. Batch, order and
    schedule stay those of the global batch."""
    cpus_per_worker: float = 1
    gpus_per_worker: float = 0
    memory_gb: float | None = None
    """Memory a worker asks Ray for, GiB, so that no more of them share a node than it holds; null: not counted."""
    driver: str = "auto"
    """auto: trials of one worker are light (inside the Tune process), others use Ray Train. light, train: force it."""
    max_failures: int = 2
    """Restarts of a run or trial after a killed worker."""
    trial_timeout_s: float | None = None
    """A sweep's trial that has not finished an epoch for so long is killed and has failed; the workers of `train` are killed and start again
    after the last epoch, at most max_failures times. null: it may take for ever. Their start, tens of seconds in a fresh process, counts."""
    save_every_s: float | None = 600
    """A run is saved in the middle of an epoch, too, when it has not been for so long; null: at the end of epochs alone."""
    grace_s: float = 25
    """What SIGTERM leaves a command to save what is under way, seconds; Kubernetes and Slurm follow it with SIGKILL after 30."""
    price_per_gpu_hour: float = 0
    price_per_cpu_hour: float = 0
    """What a sweep's cost is reckoned with, in any currency."""

    def __post_init__(self):
        loader.choice("resources.driver", self.driver, DRIVERS)
        if (
            self.workers < 1
            or self.cpus_per_worker <= 0
            or self.gpus_per_worker < 0
            or self.max_failures < 0
        ):
            raise UserError(
                f"resources: workers {self.workers}, cpus_per_worker {self.cpus_per_worker}, gpus_per_worker {self.gpus_per_worker}, "
                f"max_failures {self.max_failures}: workers must be at least 1, CPUs above 0, the others not below 0"
            )
        if self.price_per_gpu_hour < 0 or self.price_per_cpu_hour < 0:
            raise UserError(
                f"resources: price_per_gpu_hour {self.price_per_gpu_hour}, price_per_cpu_hour {self.price_per_cpu_hour}; give 0 or more"
            )
        if self.trial_timeout_s is not None and self.trial_timeout_s <= 0:
            raise UserError(
                f"resources.trial_timeout_s is {self.trial_timeout_s}; it must lie above 0, or be null for no limit"
            )
        if self.save_every_s is not None and self.save_every_s <= 0:
            raise UserError(
                f"resources.save_every_s is {self.save_every_s}; it must lie above 0, or be null to save at the end of epochs alone"
            )
        if self.grace_s < 0:
            raise UserError(
                f"resources.grace_s is {self.grace_s}; give the seconds that a command has to save when it is asked to end, 0 or more"
            )
        if self.min_workers is not None and not 1 <= self.min_workers <= self.workers:
            raise UserError(
                f"resources.min_workers is {self.min_workers}; give 1 to {self.workers}, which is resources.workers, or null"
            )
        if self.memory_gb is not None and self.memory_gb <= 0:
            raise UserError(
                f"resources.memory_gb is {self.memory_gb}; it must be above 0, or null to leave memory uncounted"
            )
        if self.gpus_per_worker > 1 and self.gpus_per_worker % 1:
            raise UserError(
                f"resources.gpus_per_worker is {self.gpus_per_worker}; give a part of one GPU or a whole number of them"
            )
        if self.driver == "light" and self.workers > 1:
            raise UserError(
                f"resources.driver light runs one worker, but resources.workers is {self.workers}; use driver train or workers 1"
            )

    @property
    def elastic(self) -> bool:
        return self.min_workers is not None and self.min_workers < self.workers

    @property
    def light(self) -> bool:
        return self.driver == "light" or (self.driver == "auto" and self.workers == 1)


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where MLflow is."""

    uri: str | None = None
    """Null: MLFLOW_TRACKING_URI, else SQLite under storage.root. none: no tracking."""


@dataclass(frozen=True, kw_only=True)
class StorageConfig:
    """Where results go."""

    root: str | None = None
    """A folder or an s3:// address. Null: AMLRIS_HOME, else runs/ here, or ~/amlris inside a Ray job."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One resolved experiment."""

    name: str
    seed: int = 0
    data: DataConfig
    model: dict[str, Any] = field(default_factory=lambda: {"name": "small"})
    """name, and that model's options."""
    aml: MaskingConfig = field(default_factory=MaskingConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvalConfig = field(default_factory=EvalConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)

    def __post_init__(self):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,60}", self.name):
            raise UserError(
                f"name is {self.name!r}; use letters, digits, '_', '.' and '-', at most 61 of them: it names folders and runs"
            )
        if self.seed < 0:
            raise UserError(f"seed is {self.seed}; it must be 0 or more")
        self.train.check_workers(self.resources.workers)

    def to_dict(self) -> dict:
        return asdict(self)

    def for_workers(self) -> dict:
        """What those who train get, and Ray keeps: nothing of the tracking address, which may hold a password."""
        return self.to_dict() | {"tracking": {}}

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)

    def leaves(self) -> dict[str, Any]:
        """{"aml.tau": 0.5, ...}: every setting by its dotted key; lists and the search space stay whole."""
        return loader.leaves(self.to_dict(), "")

    def params(self, varying: set[str] = frozenset()) -> dict[str, Any]:
        """What MLflow gets as params: every leaf but the varying ones, aml.tau and aml.rho as the numbers the arm is at."""
        tau, rho = self.aml.coordinates
        may_change = (
            "tracking.",
            "storage.",
            "search.budget.",
            "resources.price",
        )  # when a run is continued, which MLflow's params must not
        fixed = {
            k: v
            for k, v in self.leaves().items()
            if k not in varying and not k.startswith(may_change)
        }
        return fixed | {
            k: v for k, v in {"aml.tau": tau, "aml.rho": rho}.items() if k not in varying
        }

    def with_overrides(self, overrides: dict[str, Any]) -> "Experiment":
        """The same experiment with dotted leaves replaced, checked again."""
        tree = self.to_dict()
        for key, value in overrides.items():
            loader.put(tree, key, value)
        return from_dict(tree)

    def for_arm(self, arm: str, overrides: dict[str, Any]) -> "Experiment":
        """This experiment as a trial of an arm (x@compute as x): `off` and `two_pass` ignore masking leaves, `random` hides tau*rho blindly."""
        arm = base_arm(arm)
        if arm in ("off", "two_pass"):
            overrides = {k: v for k, v in overrides.items() if not k.startswith("aml.")} | {
                "aml.mode": arm
            }
        elif arm in ("random", "maskris"):
            overrides = overrides | {"aml.mode": arm}
        else:
            changed = {
                k: v
                for k, v in asdict(self.aml).items()
                if v != getattr(preset(self.aml.preset), k) and k not in ("mode", "preset")
            }
            base = self.to_dict() | {
                "aml": {"mode": "aml", "preset": arm.removeprefix("aml/"), **changed}
            }
            return from_dict(base).with_overrides(overrides)
        return self.with_overrides(overrides)

    def run_name(self, fingerprint: str) -> str:
        """<name>-<8 hex>. Where, on how many machines and within what budget it runs is left out: it may continue elsewhere, or with more."""
        tree = {
            k: v for k, v in self.to_dict().items() if k not in ("resources", "tracking", "storage")
        }
        del tree["search"]["max_concurrent"], tree["search"]["budget"]
        digest = hashlib.sha256(
            json.dumps([tree, fingerprint, code_version()], sort_keys=True).encode()
        )
        return f"{self.name}-{digest.hexdigest()[:8]}"


def base_arm(arm: str) -> str:
    """The arm whose settings this one has."""
    return arm.removesuffix(AT_COMPUTE)


def code_version() -> str:
    """Hash of what computes the results: the sources of aml."""
    import aml

    files = sorted(Path(aml.__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()[:12]


def load(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Experiment:
    """An experiment from a YAML file and key=value overrides. UserError says what is wrong in one sentence.

    `base: OTHER.yaml` (relative to the file, or base=OTHER.yaml among the overrides, relative to here) names the file whose keys this one
    changes.
    """
    given = [o.partition("=")[2] for o in overrides if o.startswith("base=")]
    tree = loader.with_base(Path(path), Experiment, Path(given[-1]) if given else None)
    return _overridden(tree, [o for o in overrides if not o.startswith("base=")])


def from_text(text: str, overrides=(), where: str = "the experiment") -> Experiment:
    return _overridden(loader.tree_of(text, where, Experiment), overrides)


def _overridden(tree: dict, overrides) -> Experiment:
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise UserError(f"override {override!r} is not key=value, as in optim.lr=1e-4")
        loader.put(tree, key, loader.parsed(value, f"override {override}"))
    return from_dict(tree)


def from_dict(tree: dict) -> Experiment:
    """A checked Experiment out of plain data."""
    from aml.models import model_options

    tree = dict(tree)
    loader.check_keys(Experiment, tree, "")
    masking = tree.pop("aml", None) or {}
    if not isinstance(masking, dict):
        raise UserError(f"aml is {masking!r}; it must be a mapping of masking settings")
    model = {"name": "small"} | (tree.get("model") or {})
    checked = model_options(**loader.plain(model, "model"))
    tree["model"] = {"name": model["name"], **asdict(checked)}
    tree["aml"] = preset(
        masking.get("preset", "calibrated"), **{k: v for k, v in masking.items() if k != "preset"}
    )
    return loader.build(Experiment, tree, "")


def _check_dimension(key: str, values, method: str) -> None:
    bundles = isinstance(values, list) and values and all(isinstance(v, dict) for v in values)
    if key.split(".")[0] not in ("data", "model", "aml", "optim", "train") or (
        "." not in key and not bundles
    ):
        raise UserError(
            f"search.space names {key!r}; a dimension is a dotted key of data, model, aml, optim or train, as aml.tau, "
            "or one of these sections with a list of mappings whose keys go together"
        )
    if bundles and ("." in key or method != "grid"):
        raise UserError(
            f"search.space {key}: mappings whose keys go together belong to a whole section and to search.method grid"
        )
    if isinstance(values, list) and values:
        return
    if not isinstance(values, dict) or not {"low", "high"} <= set(values) <= {"low", "high", "log"}:
        raise UserError(
            f"search.space {key} is {values!r}; give a list of values, or low and high (and log: true) for method random or tpe"
        )
    if method == "grid":
        raise UserError(
            f"search.space {key} is a range, which a grid cannot enumerate; list its values or use search.method random or tpe"
        )
    if not values["low"] < values["high"] or (values.get("log") and values["low"] <= 0):
        raise UserError(
            f"search.space {key}: low {values['low']} must lie below high {values['high']}, and above 0 with log"
        )
