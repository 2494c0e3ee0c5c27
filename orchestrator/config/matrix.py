"""Reads a matrix of experiments: one ordinary experiment for each data set and model.

An experiment file with a section `matrix` names data sets and models; everything else in it holds
for all of them. A cell of the matrix is the experiment of one data set and one model.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field

from aml.errors import UserError
from aml.schema import Settings, Text, Wanted, leaf, shown
from orchestrator.config.loader import (
    MATRIX,
    Layer,
    from_dict,
    layers_of_experiment,
    merge_layers,
    merged,
    written_out,
)
from orchestrator.config.schema import Experiment, put

Label = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]{0,30}$"),
    Wanted("letters, digits, '_', '.', '+' and '-', at most 31 of them"),
]

Entries = Annotated[
    dict[Label, dict[str, Any] | None],
    Field(min_length=1, max_length=100),
    Wanted("a mapping of names, each with a mapping of settings"),
]


class MatrixConfig(Settings):
    """Holds the data sets and models of a matrix of experiments."""

    section: ClassVar[str] = "matrix"

    data: Entries = leaf(
        "The data sets: a name for each, with the settings that differ there, as data.train, and "
        "splits, the list of splits that are scored; without it every evaluation split is."
    )
    models: Entries | None = leaf(
        "The models: a name for each, with the settings that differ there; base, the file to "
        "build on, relative to this one; and protocol, square or original, of the scores. null "
        "takes the model of the file.",
        None,
    )


class DataOptions(Settings):
    """Holds what an entry of matrix.data says beside settings."""

    section: ClassVar[str] = "matrix.data"

    splits: Annotated[list[Text], Field(min_length=1)] | None = leaf("Splits to score.", None)


class ModelOptions(Settings):
    """Holds what an entry of matrix.models says beside settings."""

    section: ClassVar[str] = "matrix.models"

    base: Text | None = leaf("The file to build on.", None)
    protocol: Literal["square", "original"] = leaf("Protocol of the scores.", "square")


class Cell(NamedTuple):
    """One experiment of a matrix."""

    data: str
    """Name of its data set in the matrix."""
    model: str
    """Name of its model in the matrix."""
    experiment: Experiment
    splits: list[str] | None
    """Splits that its arms are scored on; None for every evaluation split of the shards."""
    protocol: str

    @property
    def title(self) -> str:
        """Return its place in the matrix, in words."""
        return f"{self.data} x {self.model}"


class Matrix(NamedTuple):
    """A matrix of experiments."""

    name: str
    cells: list[Cell]
    """By data set, then model, so that cells of the same data follow each other."""

    @property
    def arms(self) -> list[str]:
        """Return the arms of all cells, each once."""
        return list(dict.fromkeys(a for c in self.cells for a in c.experiment.search.arms))


def load_matrix(path: str | Path, overrides: Iterable[str] = ()) -> Matrix | None:
    """Return the matrix of an experiment file; None where the file has no section `matrix`.

    A cell's settings are those of the file (or of its model's `base`), of its model, of its data
    set, and the overrides, each above those before it.

    Args:
        path: The file.
        overrides: key=value settings, which hold in every cell.

    Raises:
        UserError: The settings of the matrix or of a cell cannot be used.
    """
    overrides = list(overrides)
    whole = merge_layers(layers_of_experiment(path, overrides))
    if MATRIX not in whole:
        return None
    given = whole[MATRIX]
    if not isinstance(given, dict):
        raise UserError(f"matrix is {shown(given)}; it must be a mapping of data and models")
    config = MatrixConfig(**given)
    name = str(whole.get("name", Path(path).stem))
    models = config.models or {_model_name(whole): None}
    cells = [
        _cell(name, (data, settings or {}), (model, options or {}), path, overrides)
        for data, settings in config.data.items()
        for model, options in models.items()
    ]
    names = [cell.experiment.name for cell in cells]
    if twice := [one for one in names if names.count(one) > 1]:
        raise UserError(f"two cells of the matrix would be called {twice[0]}; rename one of them")
    return Matrix(name, cells)


def _model_name(tree: dict[str, Any]) -> str:
    model = tree.get("model")
    return str(model.get("name", "small")) if isinstance(model, dict) else "small"


def _cell(
    name: str,
    data: tuple[str, dict[str, Any]],
    model: tuple[str, dict[str, Any]],
    path: str | Path,
    overrides: list[str],
) -> Cell:
    """Return the cell of a data set and a model, each given with its entry in the matrix."""
    scored, data_settings = _split(data[1], DataOptions)
    built, model_settings = _split(model[1], ModelOptions)
    if built.base and not any(text.startswith("base=") for text in overrides):
        overrides = [f"base={Path(path).parent / built.base}", *overrides]
    layers = layers_of_experiment(path, overrides)
    above = [layer for layer in layers if layer[0] == "override"]
    entries: list[Layer] = [("matrix", model_settings), ("matrix", data_settings)]
    tree = merge_layers([*layers[: len(layers) - len(above)], *entries, *above])
    del tree[MATRIX]
    tree["name"] = "-".join([name, data[0].replace("+", "plus"), model[0].replace("+", "plus")])
    try:
        experiment = from_dict(tree)
    except UserError as error:
        raise UserError(f"{data[0]} x {model[0]} of the matrix: {error}") from None
    return Cell(data[0], model[0], experiment, scored.splits, built.protocol)


def _split(entry: dict[str, Any], kind: type[Any]) -> tuple[Any, dict[str, Any]]:
    """Return what an entry says beside settings, and its settings, dotted keys written out."""
    options = {key: value for key, value in entry.items() if key in kind.model_fields}
    tree: dict[str, Any] = {}
    for key, value in entry.items():
        if key not in options:
            nested: dict[str, Any] = {}
            put(nested, key, value)
            tree = merged(tree, nested)
    return kind(**options), written_out(tree)
