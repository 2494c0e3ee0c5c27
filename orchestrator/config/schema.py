"""The settings of an experiment: one class a section, and the Experiment that holds them.

A value that cannot mean anything is refused by the class it belongs to. The resolved experiment
names its run: <name>-<8 hex of settings, data fingerprint and version of the numerics>.
"""

import hashlib
import json
from html import escape
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from aml.conditions import Condition
from aml.errors import UserError
from aml.masking import MaskingConfig, preset
from aml.models import resolved
from aml.numerics import NUMERICS_VERSION
from aml.schema import (
    Count,
    Fit,
    Seed,
    Settings,
    Side,
    Text,
    Wanted,
    leaf,
    shown,
)
from aml.training import EvalConfig, OptimConfig, TrainConfig
from orchestrator.config import arms
from orchestrator.config.resources import ResourcesConfig, StorageConfig, TrackingConfig
from orchestrator.config.search import SearchConfig
from orchestrator.config.space import check_space
from orchestrator.config.yaml_text import write_yaml
from orchestrator.utils import check_address, redact, redact_all

if TYPE_CHECKING:
    import pandas

Name = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,60}$"),
    Wanted("letters, digits, '_', '.' and '-', at most 61 of them: it names folders and runs"),
]


class SynthConfig(Settings):
    """Holds the settings of generated data, made where data.train holds none yet."""

    section: ClassVar[str] = "data.synth"

    dataset: Literal["refcoco", "refcoco+", "refcocog"] = leaf(
        "Which data set's sentences are imitated.", "refcoco"
    )
    images: Annotated[int, Field(ge=8, le=10**7)] = leaf(
        "How many pictures are generated.", 2000, unit="pictures"
    )
    size: Annotated[int, Field(ge=32, le=8192)] = leaf(
        "Longer side of the generated pictures.", 96, unit="pixels"
    )
    seed: Seed = leaf("Seed of the generated pictures.", 0, unit="seed")
    cutouts: Text | None = leaf(
        "COCO's instances file, whose objects are cut out and pasted; null draws shapes.", None
    )
    photographs: Text | None = leaf(
        "The folder of the photographs of data.synth.cutouts, seen from where the command starts.",
        None,
    )

    @model_validator(mode="after")
    def _check_together(self):
        if (self.cutouts is None) != (self.photographs is None):
            raise UserError(
                "data.synth.cutouts and data.synth.photographs belong together: a COCO instances "
                "file and the folder of its photographs; give both, or none"
            )
        return self


class DataConfig(Settings):
    """Holds which shards are read, which splits of them, and what an item is."""

    section: ClassVar[str] = "data"

    train: Annotated[Text | list[Text], Wanted("a folder or URI of shards, or a list of them")] = (
        leaf("The shards: a folder, relative to storage.root, or a URI; several of them are mixed.")
    )
    val: Text | None = leaf("Which of several shards validates; null takes the first.", None)
    train_split: Text = leaf("The split that is trained on.", "train")
    val_split: Text = leaf("The split that validates.", "val")
    size: Side = leaf("Side of the network image.", 112, unit="pixels")
    fit: Fit = leaf("square resizes plainly; letterbox keeps the aspect ratio and pads.", "square")
    unit: Literal["ref", "sentence"] = leaf(
        "What a training item is: ref is one sentence of each referent, drawn anew each epoch, "
        "sentence every one.",
        "ref",
    )
    train_limit: Count | None = leaf(
        "Trains on the first so many items only; null on all.", None, unit="items"
    )
    val_limit: Count | None = leaf(
        "Validates on the first so many items only; null on all.", None, unit="items"
    )
    allow_eval_images: bool = leaf(
        "Whether images that hold referents of an evaluation split are trained on, too.", False
    )
    augment: Annotated[list[Literal["flip", "crop", "colour"]], Field(max_length=3)] = leaf(
        "What is done to training items: flip mirrors them, with left and right changed in the "
        "sentence, too; crop keeps the whole referent; colour changes brightness, contrast, "
        "saturation and hue where the sentence names no colour.",
        [],
    )
    synth: SynthConfig | None = leaf("Generated data, where there are none yet.", None)

    @property
    def trains(self) -> list[str]:
        """The shards that are trained on."""
        return [self.train] if isinstance(self.train, str) else self.train

    @property
    def val_uri(self) -> str:
        """The one of `trains` that validates."""
        return self.val or self.trains[0]

    @model_validator(mode="after")
    def _check_together(self):
        if not self.trains or len(set(self.trains)) < len(self.trains):
            raise UserError(
                f"data.train is {shown(self.train)}; name a folder or URI of shards, or a list of "
                "them, each once"
            )
        for uri in self.trains:
            check_address(uri, "data.train")
        if self.val_uri not in self.trains:
            raise UserError(
                f"data.val is {shown(self.val)}; it must be one of data.train: "
                f"{', '.join(self.trains[:12])}"
            )
        if self.synth is not None and len(self.trains) > 1:
            raise UserError(
                f"data.synth generates one data set, but data.train names {len(self.trains)}; give "
                "one folder or leave data.synth out"
            )
        if len(set(self.augment)) < len(self.augment):
            raise UserError(f"data.augment is {self.augment}; name each augmentation once")
        return self


class Experiment(Settings):
    """Holds one resolved experiment."""

    name: Name = leaf("Names the experiment, its folders and runs.")
    seed: Seed = leaf("Seed of weights, order and draws.", 0, unit="seed")
    data: DataConfig = leaf("Which data are read.")
    model: Annotated[dict[str, Any], Wanted("a mapping of a name and that model's options")] = leaf(
        "The model: its name, and its options.", {"name": "small"}
    )
    aml: MaskingConfig = leaf("Masked learning.", MaskingConfig())
    optim: OptimConfig = leaf("The optimiser.", OptimConfig())
    train: TrainConfig = leaf("Length and arithmetic of training.", TrainConfig())
    evaluate: EvalConfig = leaf("Validation at each epoch's end.", EvalConfig())
    search: SearchConfig = leaf("What a sweep searches.", SearchConfig())
    resources: ResourcesConfig = leaf("What a run or a trial gets.", ResourcesConfig())
    tracking: TrackingConfig = leaf("Where MLflow is.", TrackingConfig())
    storage: StorageConfig = leaf("Where results go.", StorageConfig())

    @model_validator(mode="before")
    @classmethod
    def _resolve_model(cls, given: Any) -> Any:
        return {**given, "model": resolved(given.get("model"))}

    @model_validator(mode="after")
    def _check_together(self):
        self.train.check_workers(self.resources.workers)
        search = self.search
        check_space(search.space, search.method.name, self.model["name"], DataConfig)
        return self

    @property
    def searched_conditions(self) -> list[Condition]:
        """The corruptions that search trials are scored under, as search.metric asks for it."""
        is_scored = self.search.needs_corruption and self.search.trials != 0
        return self.evaluate.conditions if is_scored else []

    def for_workers(self) -> dict[str, Any]:
        """Return what those who train get, and Ray keeps.

        Nothing of the tracking address, which may hold a password, is in it.
        """
        return self.to_dict() | {"tracking": {}}

    def to_yaml(self) -> str:
        """Return the experiment as YAML that reads back as itself."""
        return write_yaml(self.to_dict())

    def frame(self) -> "pandas.DataFrame":
        """Return the settings as a data frame of setting and value, secrets removed."""
        import pandas

        return pandas.DataFrame(redact_all(self.leaves()).items(), columns=["setting", "value"])

    def _repr_html_(self) -> str:
        """Return the settings as YAML for a notebook, secrets removed."""
        return f"<pre>{escape(redact(self.to_yaml()))}</pre>"

    def leaves(self) -> dict[str, Any]:
        """Return every setting by its dotted key; lists and the search space stay whole."""
        return leaves(self.to_dict())

    def params(self, varying: set[str] | frozenset[str] = frozenset()) -> dict[str, Any]:
        """Return what MLflow gets as params: every setting but the varying ones.

        aml.tau and aml.rho are the numbers the arm is at.
        """
        tau, rho = self.aml.coordinates
        # what may change when a run is continued, which MLflow's params must not
        may_change = (
            "tracking.",
            "storage.",
            "resources.",
            "search.budget.",
            "search.max_concurrent",
            "search.seeds.confirm",
            "evaluate.corrupt",
        )
        fixed = {k: v for k, v in self.leaves().items() if not k.startswith(may_change)}
        fixed |= {"aml.tau": tau, "aml.rho": rho}
        return {k: v for k, v in fixed.items() if k not in varying}

    def with_overrides(self, overrides: dict[str, Any]) -> "Experiment":
        """Return the same experiment with dotted leaves replaced, checked again."""
        tree = self.to_dict()
        for key, value in overrides.items():
            put(tree, key, value)
        return Experiment(**tree)

    def for_arm(self, arm: str, overrides: dict[str, Any]) -> "Experiment":
        """Return this experiment as a trial of an arm (x@compute as x, x+colour with that too).

        Every arm ignores the masking settings that it does not read.
        """
        own = self.aml.to_dict()
        base = preset(self.aml.preset).to_dict()
        differs = {k: v for k, v in own.items() if v != base[k] and k not in ("mode", "preset")}
        if arms.DIMENSIONS.get(arms.masking_arm(arm)) == ():
            overrides = {k: v for k, v in overrides.items() if not k.startswith("aml.")}
        tree = self.to_dict() | {"aml": arms.masking_of(arm, own, differs)}
        for key, value in overrides.items():
            put(tree, key, value)
        tree["data"] |= {"augment": arms.augmentations_of(arm, tree["data"]["augment"])}
        return Experiment(**tree)

    def computed(self) -> dict[str, Any]:
        """Return the settings that decide what is computed.

        Where, on how many machines and within what budget it runs, and what its checkpoints are
        scored under at the end, is left out: a run may continue elsewhere, or with more. What a
        search goes by stays, corruptions too.
        """
        elsewhere = ("resources", "tracking", "storage")
        tree = {k: v for k, v in self.to_dict().items() if k not in elsewhere}
        if tree["evaluate"]["select"] is None:  # names of runs from before the setting
            del tree["evaluate"]["select"]
        if tree["aml"]["stage1"] != "teacher":  # as above, and nothing reads it
            del tree["aml"]["teacher_decay"]
        del tree["search"]["max_concurrent"], tree["search"]["budget"]
        if not self.search.needs_corruption:
            del tree["evaluate"]["corrupt"]
        return tree

    def run_name(self, fingerprint: str) -> str:
        """Return the name of the run on data of this fingerprint: <name>-<8 hex>."""
        key = json.dumps([self.computed(), fingerprint, code_version()], sort_keys=True)
        return f"{self.name}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"


def code_version() -> str:
    """Return the version of what computes the results, as run folders record it."""
    return f"numerics {NUMERICS_VERSION}"


def leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested mappings by their dotted keys; the search space stays whole."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        nested = isinstance(value, dict) and name != "search.space"
        flat |= leaves(value, f"{name}.") if nested else {name: value}
    return flat


def put(tree: dict[str, Any], dotted: str, value: Any) -> None:
    """Set a dotted key in nested mappings; what follows search.space is one key."""
    path = dotted.split(".")
    if path[:2] == ["search", "space"] and len(path) > 2:
        path = ["search", "space", ".".join(path[2:])]
    *sections, last = path
    if len(sections) > 4:
        raise UserError(f"override {shown(dotted)}: no setting lies so deep; see `config explain`")
    for part in sections:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise UserError(
                f"override {shown(dotted)}: {part} is not a section, so its keys cannot be set; "
                "see "
                "`config explain`"
            )
    tree[last] = value
