"""Checkpoint folders: complete or absent, readable without pickle, enough for an exact resume.

    model.safetensors   weights
    assets.json         what rebuilding the model takes besides (its text encoder's configuration and words); only where it has any
    config.json         model and its options, vocabulary, image_size, fit, threshold, and what the caller adds (epoch, metrics ...)
    state.pt            optimiser, scaler, masker, progress; only where training may go on

A new folder is written beside the old one and renamed; the old one stays as <folder>.previous until the next save.
"""

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from aml.errors import UserError
from aml.models import build


def save(folder: Path, model, info: dict, state: dict | None = None) -> None:
    """Write model, info (what `Segmenter` needs: image_size, fit, threshold; plus anything JSON) and optionally a training state."""
    folder = Path(folder)
    draft, previous = folder.with_name(folder.name + ".draft"), folder.with_name(folder.name + ".previous")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, draft / "model.safetensors")
    config = {"model": model.spec, "vocabulary": model.vocabulary, **info}
    (draft / "config.json").write_text(json.dumps(config, indent=1, allow_nan=True), "utf-8")
    if model.assets:
        (draft / "assets.json").write_text(json.dumps(model.assets), "utf-8")
    if state is not None:
        torch.save(state, draft / "state.pt")
    if folder.exists():
        shutil.rmtree(previous, ignore_errors=True)
        os.rename(folder, previous)
    os.rename(draft, folder)


def read_config(folder: Path) -> dict:
    """config.json of a checkpoint folder. UserError where there is none."""
    path = Path(folder) / "config.json"
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder} is not a checkpoint folder ({path.name}: {error.__class__.__name__}); give one that training wrote, as .../best"
        ) from None


def load_model(folder: Path, device="cpu"):
    """The model of a checkpoint folder with its weights, in eval mode.   -> model, config"""
    config = read_config(folder)
    spec = dict(config["model"])
    assets = Path(folder) / "assets.json"
    model = build(
        spec.pop("name"), vocabulary=config["vocabulary"], assets=json.loads(assets.read_text("utf-8")) if assets.exists() else None, **spec
    )
    load_weights(model, folder)
    return model.to(device).eval(), config


def load_weights(model, folder: Path) -> None:
    """From a checkpoint folder, or from a published .pth file. UserError names a damaged file, or the first parameter that does not fit."""
    if Path(folder).is_file():
        from aml.models.published import load_published

        return load_published(model, folder)
    path = Path(folder) / "model.safetensors"
    try:
        weights = load_file(path)
    except Exception as error:  # safetensors raises its own error class, and OSError
        raise UserError(f"{path} cannot be read ({error}); use another checkpoint, as {Path(folder).name}.previous beside it") from None
    own = model.state_dict()
    wrong = [k for k in own if k not in weights or weights[k].shape != own[k].shape] + [k for k in weights if k not in own]
    if wrong:
        raise UserError(
            f"{path} does not fit this model, first at {wrong[0]} ({len(wrong)} parameters); use the model and vocabulary it was trained with"
        )
    model.load_state_dict(weights)


def load_training(folder: Path, learner) -> bool:
    """Restore model and training state from folder or, where that is damaged, folder.previous.   -> whether one was there

    UserError where something was there but nothing of it can be used: starting over in silence would lose the run.
    """
    folder, problems = Path(folder), []
    for place in (folder, folder.with_name(folder.name + ".previous")):
        if not (place / "state.pt").exists():
            continue
        try:
            state = torch.load(place / "state.pt", map_location=learner.device, weights_only=True)
            load_weights(learner.model, place)
            learner.load_state_dict(state)
            return True
        except Exception as error:  # a cut-off file raises EOFError, RuntimeError, UnpicklingError ...
            problems.append(f"{place} ({' '.join(str(error).split())[:160] or type(error).__name__})")
            print(f"checkpoint {problems[-1]} cannot be used; trying the one before", flush=True)
    if problems:
        raise UserError(f"no checkpoint of this run can be used: {'; '.join(problems)}; restore one of them, or start another run with --fresh")
    return False
