"""Arguments and options that several commands share, and how a command prints its result."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aml.errors import UserError
from aml.files import home_expanded
from orchestrator.utils import redact

if TYPE_CHECKING:
    from orchestrator.storage import Filesystem

Config = Annotated[str, typer.Argument(metavar="CONFIG", help="An experiment's YAML file.")]

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Dotted settings, as optim.lr=1e-4."),
]

Resume = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Continue this run, whatever CONFIG says now."),
]

Fresh = Annotated[
    bool,
    typer.Option(
        "--fresh", help="Start another run instead of continuing the one of the same settings."
    ),
]

Precision = Annotated[
    str | None,
    typer.Option(help="fp32, bf16 or fp16; default: training's on a GPU, fp32 on a CPU."),
]

MaxMegapixels = Annotated[
    float,
    typer.Option(metavar="N", help="Millions of pixels of a picture at most."),
]

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on the last line.")]


def result_place(text: str | Path) -> Path:
    """Return the path of a result as a person gave it; an empty one would be the current folder."""
    if not str(text):
        raise UserError("an empty text names no place for results; give a file or a folder")
    return Path(text)


SHARDS = (
    "Shards: a folder below the current one that holds some, or whose path begins with ./; else a "
    "data set's folder below the results root (AMLRIS_HOME, or runs); or an s3://, gs:// or "
    "abfs:// address, or one at hf://, which is only read."
)
"""How shards are named on a command line, for --help; `orchestrator.data.named_shards` reads it."""

Shards = Annotated[str, typer.Option(metavar="URI", help=SHARDS)]

ResultPage = Annotated[Path, typer.Option(help="HTML file to write.", parser=result_place)]


def echo(text: str) -> None:
    """Print a command's result, without passwords and keys."""
    print(redact(text), flush=True)


def named_shards(text: str) -> "Filesystem":
    """Return the shards that a person names, see `SHARDS`."""
    from orchestrator import data, storage

    return data.named_shards(text, storage.storage_root())


def echo_written(*files: Path) -> None:
    """Print which files were written, with their whole paths."""
    *first, last = (str(Path(file).absolute()) for file in files)
    echo(f"wrote {', '.join(first)}{' and ' if first else ''}{last}")


def checkpoint_folder(text: str, tokenizer: str | None = None) -> Path:
    """Return the folder of a checkpoint that a folder, file, run or models:/NAME@ALIAS names.

    Args:
        text: The name.
        tokenizer: Hub name or folder of BERT's tokenizer, for a published .pth file.

    Raises:
        UserError: Nothing of that name holds a checkpoint.
    """
    from orchestrator import storage, tracking

    root = storage.storage_root()
    return tracking.find_checkpoint(text, root, None, tokenizer=tokenizer).absolute()


def initial_weights(text: str | None) -> Path | None:
    """Return the weights to start a training from: a checkpoint's folder, or a published file."""
    if text is None:
        return None
    file = home_expanded(text)
    return file.absolute() if file.is_file() else checkpoint_folder(text)
