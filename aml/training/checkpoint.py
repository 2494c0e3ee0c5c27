"""Checkpoint folders: complete or absent, readable without pickle, enough for an exact resume.

- model.safetensors: weights;
- assets.json: what rebuilding the model takes besides (its text encoder's configuration and words);
  only where it has any;
- config.json: model and its options, vocabulary, image_size, fit, threshold, and what the caller
  adds (epoch, metrics ...);
- state.pt: optimiser, scaler, masker, progress; only where training may go on;
- digests.json: SHA-256 of weights and state, so that damage is seen before anything is loaded.

A new folder is written beside the old one and renamed; the old one stays as <folder>.previous until
the next save.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.utils._pytree import tree_leaves

from aml.errors import NotSaved, UserError
from aml.files import write_failure
from aml.models import build_model
from aml.own_classes import check_allowed

logger = logging.getLogger(__name__)

DIGESTS = "digests.json"

DRAFT = ".draft"
"""Ends the name of a folder that is being written."""

WEIGHTY = ("model.safetensors", "state.pt")
"""Files that may be damaged and still be read; JSON that is cut off is not."""


def save_checkpoint(
    folder: Path, model: Any, info: dict[str, Any], state: dict[str, Any] | None = None
) -> None:
    """Write a checkpoint folder.

    Args:
        folder: Where it is written.
        model: The model.
        info: What `Segmenter` needs (image_size, fit, threshold), and anything else JSON takes.
        state: State of the training; None where nothing goes on from here.

    Raises:
        NotSaved: The disk takes no more; what was there before is as it was.
    """
    folder = Path(folder)
    draft = folder.with_name(folder.name + DRAFT)
    previous = before(folder)
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir(parents=True)
        _write(draft, model, info, state)
    except torch.OutOfMemoryError:
        raise
    except (OSError, SafetensorError, RuntimeError) as error:
        # safetensors and torch have exceptions of their own for a full disk
        shutil.rmtree(draft, ignore_errors=True)
        wanted = sum(
            leaf.nbytes
            for leaf in tree_leaves([model.state_dict(), state])
            if isinstance(leaf, torch.Tensor)
        )
        raise NotSaved(write_failure(folder, error, wanted)) from error
    if folder.exists():
        shutil.rmtree(previous, ignore_errors=True)
        os.rename(folder, previous)
    os.rename(draft, folder)


def drop_checkpoint_drafts(folder: Path) -> None:
    """Remove what a lost process was writing in a run's folder; no process may be saving there."""
    for draft in Path(folder).glob(f"*{DRAFT}"):
        shutil.rmtree(draft, ignore_errors=True)


def _write(draft: Path, model: Any, info: dict[str, Any], state: dict[str, Any] | None) -> None:
    save_file(
        {k: v.contiguous() for k, v in model.state_dict().items()}, draft / "model.safetensors"
    )
    config = {"model": model.spec, "vocabulary": model.vocabulary, **info}
    (draft / "config.json").write_text(json.dumps(config, indent=1, allow_nan=True), "utf-8")
    if model.assets:
        (draft / "assets.json").write_text(json.dumps(model.assets), "utf-8")
    if state is not None:
        torch.save(state, draft / "state.pt")
    digests = {name: _digest(draft / name) for name in WEIGHTY if (draft / name).exists()}
    (draft / DIGESTS).write_text(json.dumps(digests, indent=1), "utf-8")


def before(folder: Path) -> Path:
    """Return the place of the checkpoint before this one."""
    return folder.with_name(folder.name + ".previous")


def damage(folder: Path) -> str:
    """Return what is wrong with a checkpoint's files, in a few words.

    Empty where they are as they were written, or where no digests were noted.
    """
    if not folder.exists():
        return "it is missing"
    if not (folder / DIGESTS).exists():
        return ""
    try:
        every = {path.name: json.loads(path.read_text("utf-8")) for path in folder.glob("*.json")}
    except ValueError as error:
        return f"its JSON is cut off or altered: {error}"
    for name, digest in every[DIGESTS].items():
        if not (folder / name).exists():
            if name != "state.pt":  # pruned: nothing goes on from here
                return f"{name} is missing"
        elif _digest(folder / name) != digest:
            return f"{name} is not as it was written"
    return ""


def usable_checkpoint(folder: Path, say: Callable[[str], None] = logger.info) -> Path:
    """Return the folder or, where it is damaged and the one before is whole, that one.

    Args:
        folder: A checkpoint folder.
        say: Is told where another one is taken.
    """
    why = damage(folder)
    previous = before(folder)
    if not why or not previous.exists() or damage(previous):
        return folder
    say(
        f"checkpoint {folder} cannot be used ({why}); in its place: {previous.name}, "
        f"epoch {read_checkpoint_config(previous).get('epoch', 'unknown')}"
    )
    return previous


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_checkpoint_config(folder: Path) -> dict[str, Any]:
    """Return config.json of a checkpoint folder; raise UserError where there is none."""
    path = Path(folder) / "config.json"
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder} is not a checkpoint folder ({path.name}: {error.__class__.__name__}); "
            "give one that training wrote, as .../best"
        ) from None


def load_model(folder: Path, device: str | torch.device = "cpu") -> tuple[Any, dict[str, Any]]:
    """Return the model of a checkpoint folder in eval mode, and the folder's config.json.

    A damaged folder is replaced by the one before. A model outside this project is built only where
    an experiment of this process, or the person, names the same class (aml.own_classes).

    Raises:
        UserError: No checkpoint, damaged weights, or a class that is not allowed.
    """
    folder = usable_checkpoint(Path(folder))
    config = read_checkpoint_config(folder)
    spec = dict(config["model"])
    check_allowed(spec["name"], folder)
    assets = Path(folder) / "assets.json"
    model = build_model(
        spec.pop("name"),
        vocabulary=config["vocabulary"],
        assets=json.loads(assets.read_text("utf-8")) if assets.exists() else None,
        **spec,
    )
    load_weights(model, folder)
    return model.to(device).eval(), config


def load_weights(model: Any, folder: Path) -> None:
    """Fill a model from a checkpoint folder, or from a published .pth file.

    Raises:
        UserError: A damaged file, or the first parameter that does not fit.
    """
    if Path(folder).is_file():
        from aml.models import load_published

        return load_published(model, folder)
    _fill(model, _weights(Path(folder)), folder)


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    path = folder / "model.safetensors"
    try:
        if why := damage(folder):
            raise ValueError(why)
        return load_file(path)
    except Exception as error:  # safetensors raises its own error class, and OSError
        raise UserError(
            f"{path} cannot be read ({error}); use another checkpoint, as {before(folder).name} "
            "beside it"
        ) from None


def _fill(model: Any, weights: dict[str, torch.Tensor], folder: Path) -> None:
    own = model.state_dict()
    wrong = [k for k in own if k not in weights or weights[k].shape != own[k].shape] + [
        k for k in weights if k not in own
    ]
    if wrong:
        raise UserError(
            f"{folder}/model.safetensors does not fit this model, first at {wrong[0]} "
            f"({len(wrong)} parameters); "
            "use the model and vocabulary it was trained with"
        )
    model.load_state_dict(weights)


def load_training(folder: Path, learner: Any, say: Callable[[str], None] = logger.info) -> bool:
    """Restore model and training state from a folder or, where it is damaged, the one before.

    Everything is read before anything is changed. Where both are damaged the run starts again.

    Args:
        folder: A checkpoint folder, which need not exist.
        learner: Is filled.
        say: Is told of damaged folders.

    Returns:
        Whether the run goes on from one of them.
    """
    folder = Path(folder)
    damaged: list[str] = []
    for place in (folder, before(folder)):
        if not (place / "state.pt").exists():
            continue
        try:
            weights = _weights(place)  # first: it looks at the digest of state.pt too
            state = torch.load(place / "state.pt", map_location=learner.device, weights_only=True)
        except Exception as error:
            # a cut-off file raises EOFError, RuntimeError, UnpicklingError ...
            damaged.append(
                f"{place} ({' '.join(str(error).split())[:160] or type(error).__name__})"
            )
            continue
        _fill(learner.model, weights, place)
        learner.load_state_dict(state)
        if damaged:
            say(
                f"checkpoint {damaged[0]} cannot be used; the run goes on from the one before, "
                f"after epoch {learner.progress.epoch}"
            )
        return True
    if damaged:
        say(
            f"no checkpoint of this run can be used: {'; '.join(damaged)}; it starts again from "
            "its first epoch"
        )
    return False
