"""Checkpoint folders: complete or absent, readable without pickle, enough for an exact resume.

- model.safetensors: weights;
- assets.json: what rebuilding the model takes besides (its text encoder's configuration and words);
  only where it has any;
- config.json: model and its options, vocabulary, image_size, fit, threshold, and what the caller
  adds (epoch, metrics ...);
- state.pt: optimiser, scaler, masker, progress; only where training may go on;
- digests.json: SHA-256 of the others, so that damage is seen before anything is loaded. Older
  folders have those of weights and state alone, or none.

A new folder is written beside the old one and renamed; the old one stays as <folder>.previous until
the next save.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from aml.errors import NotSaved, Unreadable, UserError
from aml.files import DRAFT, write_failure
from aml.models import MODELS, build_model
from aml.own_classes import check_allowed
from aml.reading import read_json
from aml.schema import shown
from aml.training.checkpoint_config import (
    ASSETS,
    CONFIG,
    check_side,
    read_assets,
    read_checkpoint_config,
)

logger = logging.getLogger(__name__)

WEIGHTS, STATE, DIGESTS = "model.safetensors", "state.pt", "digests.json"

DIGESTED = (WEIGHTS, STATE, CONFIG, ASSETS)
"""Files whose digests are noted."""

STATE_KEYS = {"optimizer", "scaler", "masker", "progress"}

SPARE = 2**28
"""Bytes that building a model may take beyond twice its weights."""


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
    save_file(_apart(model.state_dict()), draft / WEIGHTS)
    config = {"model": model.spec, "vocabulary": model.vocabulary, **info}
    (draft / CONFIG).write_text(json.dumps(config, indent=1, allow_nan=True), "utf-8")
    if model.assets:
        (draft / ASSETS).write_text(json.dumps(model.assets), "utf-8")
    if state is not None:
        torch.save(state, draft / STATE)
    digests = {name: _digest(draft / name) for name in DIGESTED if (draft / name).exists()}
    (draft / DIGESTS).write_text(json.dumps(digests, indent=1), "utf-8")


def _apart(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors that share no memory, as safetensors wants: tied weights are written twice."""
    found, taken = {}, set()
    for name, value in state.items():
        tensor = value.contiguous()
        if tensor.untyped_storage().data_ptr() in taken:
            tensor = tensor.clone()
        taken.add(tensor.untyped_storage().data_ptr())
        found[name] = tensor
    return found


def before(folder: Path) -> Path:
    """Return the place of the checkpoint before this one."""
    return folder.with_name(folder.name + ".previous")


def damage(folder: Path) -> str:
    """Return what is wrong with a checkpoint's files, in a few words.

    Empty where they are as they were written, or where no digests were noted.
    """
    if not folder.exists():
        return "it is missing"
    if not os.path.lexists(folder / DIGESTS):
        return ""
    try:
        digests = read_json(folder / DIGESTS, limit=2**20)
    except Unreadable as error:
        return str(error)
    if not isinstance(digests, dict) or WEIGHTS not in digests or not set(digests) <= {*DIGESTED}:
        return f"{DIGESTS} is {shown(digests)}, not the digests of {', '.join(DIGESTED)}"
    for name, digest in digests.items():
        if not (folder / name).exists():
            if name != STATE:  # pruned: nothing goes on from here
                return f"{name} is missing"
        elif not (folder / name).is_file() or _digest(folder / name) != digest:
            return f"{name} is not as it was written"
    try:
        for name in {CONFIG, ASSETS} - set(digests):  # of an older folder
            if (folder / name).exists():
                read_json(folder / name, nan=True)
    except Unreadable as error:
        return str(error)
    return ""


def usable_checkpoint(folder: Path, say: Callable[[str], None] = logger.info) -> Path:
    """Return the folder or, where it is damaged and the one before is whole, that one.

    Args:
        folder: A checkpoint folder.
        say: Is told where another one is taken.

    Raises:
        UserError: Both are damaged, or the folder is and there is no other.
    """
    folder = Path(folder)
    if not folder.exists() or not (why := damage(folder)):
        return folder
    previous = before(folder)
    if not previous.exists() or damage(previous):
        raise UserError(f"checkpoint {folder} cannot be used ({why}); use another one")
    epoch: Any = "unknown"
    with suppress(UserError):
        epoch = read_checkpoint_config(previous).get("epoch", epoch)
    say(f"checkpoint {folder} cannot be used ({why}); in its place: {previous.name}, epoch {epoch}")
    return previous


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_model(folder: Path, device: str | torch.device = "cpu") -> tuple[Any, dict[str, Any]]:
    """Return the model of a checkpoint folder in eval mode, and the folder's config.json.

    A damaged folder is replaced by the one before. A model outside this project is built only where
    an experiment of this process, or the person, names the same class (aml.own_classes).

    Raises:
        UserError: No checkpoint, a damaged one, or a class that is not allowed.
    """
    folder = usable_checkpoint(Path(folder))
    config = read_checkpoint_config(folder)
    weights = _read_weights(folder)
    model = _build(folder, config, weights)
    _fill(model, weights, folder)
    return model.to(device).eval(), config


class _OutOfProportion(Exception):
    """A model being built is larger than the weights it is built for."""


class _SizeLimit(TorchFunctionMode):
    """Raises _OutOfProportion once a `with` block has made tensors of more than so many bytes.

    A configuration may name sizes that take all memory. Empty tensors take none until they are
    written, so a layer is refused before it is initialised.
    """

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.left = limit

    def __torch_function__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if func in (torch.empty, torch.zeros, torch.ones, torch.randn, torch.rand, torch.full):
            self.left -= made.nbytes
            if self.left < 0:
                raise _OutOfProportion("it takes far more memory than the weights")
        return made


def _build(folder: Path, config: dict[str, Any], weights: dict[str, torch.Tensor]) -> Any:
    """Return the model that a checkpoint describes, not yet filled."""
    spec = dict(config["model"])
    name = spec.pop("name")
    check_allowed(name, folder)
    assets = read_assets(folder)
    own = name not in MODELS
    limit = 2 * sum(values.nbytes for values in weights.values()) + SPARE
    try:
        with nullcontext() if own else _SizeLimit(limit):
            model = build_model(name, vocabulary=config["vocabulary"], assets=assets, **spec)
        check_side(config["image_size"], name, model.image_multiple)
    except UserError as error:
        raise UserError(f"{folder / CONFIG} cannot be used: {error}") from None
    except Exception as error:  # whatever torch, transformers or timm raise
        if own or isinstance(error, OSError):  # an author wants to see the place of a mistake
            raise
        why = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(
            f"{folder} holds no model that can be built ({why}): {CONFIG} or {ASSETS} is damaged; "
            "use another checkpoint"
        ) from error
    return model


def load_weights(model: Any, folder: Path, say: Callable[[str], None] = logger.info) -> None:
    """Fill a model from a checkpoint folder, or from a published .pth file.

    Args:
        model: The model.
        folder: The folder, in whose place the one before is taken if it is damaged; or the file.
        say: Is told where another folder is taken.

    Raises:
        UserError: A damaged file, or the first parameter that does not fit.
    """
    if Path(folder).is_file():
        from aml.models import load_published

        return load_published(model, folder)
    folder = usable_checkpoint(Path(folder), say)
    _fill(model, _read_weights(folder), folder)


def _read_weights(folder: Path) -> dict[str, torch.Tensor]:
    path = folder / WEIGHTS
    try:
        if not path.is_file():
            raise FileNotFoundError("there is no such file")
        return load_file(path)
    except Exception as error:  # safetensors raises its own error class, and OSError
        raise UserError(
            f"{path} cannot be read ({' '.join(str(error).split())[:160]}); use another checkpoint"
        ) from None


def _fill(model: Any, weights: dict[str, torch.Tensor], folder: Path) -> None:
    """Fill a model; every parameter must have the shape and type of the model's, and be finite."""
    path = folder / WEIGHTS
    own = model.state_dict()
    wrong = [k for k in own if k not in weights or weights[k].shape != own[k].shape] + [
        k for k in weights if k not in own
    ]
    if wrong:
        raise UserError(
            f"{path} does not fit this model, first at {wrong[0]} "
            f"({len(wrong)} parameters); "
            "use the model and vocabulary it was trained with"
        )
    for name, values in weights.items():
        if values.dtype != own[name].dtype:
            raise UserError(
                f"{path} has {name} as {values.dtype}, and the model as {own[name].dtype}; use "
                "a checkpoint as training wrote it"
            )
        # a model of one's own may keep infinities, as a mask of attention
        if not _all_finite(values) and _all_finite(own[name]):
            raise _not_finite(path, name)
    model.load_state_dict(weights)


def check_weights(folder: Path) -> None:
    """Refuse a checkpoint folder that is damaged, or whose weights are not finite numbers.

    No model is built, so this is said before anything starts; `load_weights` checks the rest.
    """
    folder = usable_checkpoint(Path(folder))
    read_checkpoint_config(folder)
    for name, values in _read_weights(folder).items():
        if values.isnan().any():
            raise _not_finite(folder / WEIGHTS, name)


def _not_finite(path: Path, name: str) -> UserError:
    return UserError(f"{path} has NaN or infinity in {name}; use another checkpoint")


def _all_finite(values: torch.Tensor) -> bool:
    return not values.is_floating_point() or bool(torch.isfinite(values).all())


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
        if not (place / STATE).exists():
            continue
        try:
            if why := damage(place):
                raise ValueError(why)
            weights = _read_weights(place)
            state = torch.load(place / STATE, map_location=learner.device, weights_only=True)
            if not isinstance(state, dict) or not set(state) >= STATE_KEYS:
                raise ValueError(f"{STATE} holds no state of a training")
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
