"""Write a commented experiment for data that were found, or for generated scenes: `init`."""

import hashlib
import logging
import shlex
from dataclasses import dataclass
from pathlib import Path

from aml.errors import UserError
from aml.files import MADE_BY, check_file
from aml.reading import read_text
from orchestrator.config import check_sweep, from_dict, from_text
from orchestrator.proposal.machine import (
    Machine,
    Proposal,
    has_photo_encoders,
    measure_machine,
    propose,
)
from orchestrator.proposal.sources import DataSource, find_sources
from orchestrator.utils import atomic_write

logger = logging.getLogger(__name__)

GENERATED = DataSource(
    "generated scenes",
    splits={"train": (2620, 7470), "val": (431, 1228)},
    side=96,
)
"""The scenes of `SYNTH`, and what their shards hold."""

SYNTH = (
    "  synth: {dataset: refcoco, images: 1400, size: 96, seed: 0}  # made where there are none\n"
)


@dataclass(frozen=True)
class _Plan:
    """Holds all that an experiment's file is written from."""

    name: str
    source: DataSource
    others: list[DataSource]
    machine: Machine
    sizes: Proposal
    program: str

    @property
    def shards(self) -> str:
        """The shards as data.train names them."""
        return self.source.shards or f"data/{self.name}"

    @property
    def commands(self) -> list[str]:
        """The commands that the experiment is run with, in order."""
        file = shlex.quote(f"{self.name}.yaml")
        shard = ["shard", *self.source.shard, "--out", self.shards]
        first = [shlex.join(shard)] if self.source.shard else []
        every = [*first, f"sweep {file} --dry-run", f"sweep {file}"]
        return [f"{self.program} {one}" for one in every]


def write_experiment(
    name: str,
    folder: Path | None,
    root: Path,
    *,
    into: Path | None = None,
    program: str = "python -m orchestrator",
) -> Path:
    """Find data, propose settings for them and this machine, and write NAME.yaml.

    Args:
        name: Of the experiment.
        folder: Where the data are; None looks in the current folder, and generates scenes where
            there are none.
        root: The storage root.
        into: The folder that the file is written to; None is the current one.
        program: How commands begin, for those that are named.

    Returns:
        The file.

    Raises:
        UserError: The name cannot be one, the folder holds no data, or a file of that name is
            there that this command did not write or that was changed since.
        NotSaved: The disk takes no more.
    """
    name = name.removesuffix(".yaml")
    from_dict({"name": name, "data": {"train": "x"}})  # refuses a name that cannot be one
    path = (into or Path()) / f"{name}.yaml"
    _check_place(path)
    source, others = _choose(folder, root)
    machine = measure_machine()
    refs = source.splits[source.train_split][0]
    sentences = source.splits[source.val_split][1]
    sizes = propose(machine, refs, sentences, source.side, photo_encoders=has_photo_encoders())
    plan = _Plan(name, source, others, machine, sizes, program)
    body = _body(plan)
    check_sweep(from_text(body, where=str(path)))
    atomic_write(path, _signed(body).encode())
    for line in _messages(plan):
        logger.info(line)
    return path


def _choose(folder: Path | None, root: Path) -> tuple[DataSource, list[DataSource]]:
    """Return the source that an experiment is written for, and the others that were found."""
    found = find_sources(folder or Path(), root)
    usable = [source for source in found if not source.problem]
    for source in found:
        if source.problem:
            logger.info(f"left out: {source.problem}")
    if usable:
        return usable[0], usable[1:]
    if folder is not None:
        raise UserError(
            f"{folder} holds nothing to train on that is known here: a folder with refs(NAME).p "
            "and instances.json, a .csv or .jsonl table with image, expression, mask and split, "
            "or shards; give another --data, or leave it out for generated scenes"
        )
    return GENERATED, []


def _check_place(path: Path) -> None:
    """Refuse a file that this command did not write, or that a person has changed since."""
    check_file(path, "the experiment's file")
    if not path.is_file():
        return
    text = read_text(path, "an experiment")
    _, _, body = text.partition("\n")
    if text and text != _signed(body):
        raise UserError(
            f"{path} was changed since `init` wrote it; give another name, or move that file away"
        )


def _signed(body: str) -> str:
    """Return a file's text, whose first line says who made it and the digest of the rest."""
    digest = hashlib.sha256(body.encode()).hexdigest()[:8]
    return f"# {MADE_BY} init ({digest})\n{body}"


def _messages(plan: _Plan) -> list[str]:
    """Return what a person is told."""
    sizes = plan.sizes
    where = "no data were found, so the experiment is on" if plan.source is GENERATED else "found"
    lines = [f"{where} {plan.source.what}: {_counts(plan.source)}", *plan.source.notes]
    lines += [f"also found, not used: {other.what}" for other in plan.others]
    lines += [
        f"this machine: {plan.machine.text}",
        f"proposed: model {sizes.model} ({sizes.why}), {sizes.size} px, batch {sizes.batch}, "
        f"{sizes.epochs} epochs, {sizes.max_concurrent} trials at once",
        "now run, in this order:",
    ]
    return lines + [f"  {command}" for command in plan.commands]


def _counts(source: DataSource) -> str:
    """Return the splits with their numbers of referents and sentences."""
    return ", ".join(
        f"{name} {sentences:,} sentences" for name, (_, sentences) in source.splits.items()
    )


def _body(plan: _Plan) -> str:
    """Return the text of the experiment without its first line."""
    source, sizes = plan.source, plan.sizes
    head = [
        f"Does masking help on {source.what}?",
        "Run, in this order:",
        *(f"    {command}" for command in plan.commands),
        f"Holds: {_counts(source)}",
        *source.notes,
        *(f"Also found, not used: {other.what}" for other in plan.others),
        f"Proposed for {plan.machine.text}. Every setting: {plan.program} config explain",
    ]
    val_note = "" if not source.val_split.startswith("test") else "; its scores are no test results"
    limit = f"{sizes.val_limit}" if sizes.val_limit else "null"
    return (
        "".join(f"# {line}\n" for line in head)
        + f"""\
name: {plan.name}
seed: 0
data:
  train: {_yaml(plan.shards)}  # shards; a relative path is below AMLRIS_HOME, or runs/
{SYNTH if source is GENERATED else ""}\
  train_split: {_yaml(source.train_split)}  # {source.splits[source.train_split][0]:,} referents
  val_split: {_yaml(source.val_split)}  # {source.splits[source.val_split][1]:,} sentences{val_note}
  val_limit: {limit}  # validates on the first so many sentences of each epoch; null on all
  size: {sizes.size}  # side of the network image in pixels, a multiple of {sizes.multiple}
  fit: square  # letterbox keeps the aspect ratio
# {sizes.why}; others, most of which need weights: docs/models.md
model: {{name: {sizes.model}}}
aml: {{preset: calibrated}}  # how alignment is read and blocks are hidden
optim: {{{sizes.optim}, weight_decay: 0.05, warmup: 0.5epochs, loss: ce+dice}}
train: {{epochs: {sizes.epochs}, batch: {sizes.batch}}}
evaluate:
  batch: 64
  corrupt: "fog:2,fog:4,low_light:2,low_light:4,occlusion:2,occlusion:4"  # robust scores at the end
search:
  arms: [off, random, aml/calibrated]  # compared with each other
  space:  # every arm tries what it can vary of this
    aml.tau: [0.2, 0.4]
    aml.rho: [0.5, 1.0]
  method: grid
  trials: 3  # of each arm, of this grid
  # asha stops the worse trials of an arm early
  scheduler: {{name: asha, grace: {max(1, sizes.epochs // 4)}, reduction: 2}}
  seeds: {{search: 1, confirm: 3}}  # the best of each arm again, on seeds that were not searched
  max_concurrent: {sizes.max_concurrent}  # trials that train at once
resources:
  workers: 1  # of one trial
  cpus_per_worker: {sizes.cpus_per_worker}
  gpus_per_worker: {sizes.gpus_per_worker}
"""
    )


def _yaml(text: str) -> str:
    """Return a text as a YAML scalar in double quotes where it needs them."""
    plain = text.replace("/", "").replace("_", "").replace("-", "")
    if plain.isalnum() and not plain.isdigit() and text not in ("null", "true", "false"):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
