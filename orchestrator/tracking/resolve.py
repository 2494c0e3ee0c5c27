"""Which checkpoint a person means: a folder, a run, an MLflow run id or a registered model."""

import contextlib
import os
import re
import shutil
from pathlib import Path
from urllib.parse import unquote, urlparse

from aml.errors import UserError
from orchestrator import storage

WANTED = (
    "give a checkpoint folder, a run's name, RUN/TRIAL, an MLflow run id or models:/NAME@champion"
)


def find_checkpoint(text: str | Path, root: Path, tracking_uri: str | None = None) -> Path:
    """The checkpoint folder (config.json, model.safetensors) that `text` names.

    A folder that is one; a folder of a run or of a trial; the name of a run under root (a sweep: its champion, a training: its best
    epoch), or <run>/<trial> (its last epoch: the one that counts); an MLflow run id; models:/NAME@ALIAS or models:/NAME/VERSION, fetched into
    root/downloads where MLflow keeps it elsewhere. tracking_uri None: MLFLOW_TRACKING_URI, else the store under root.
    UserError, one sentence, where there is none.
    """
    text, root = str(text), Path(root)
    if text.startswith("models:"):
        return _registered(text, root, tracking_uri)
    if (folder := Path(text).expanduser()).is_dir():
        try:
            return _inside(folder)
        except UserError:
            with contextlib.suppress(UserError):
                return _named(
                    text, root
                )  # a folder here that has the name of a run there, and nothing to do with it
            raise
    if re.fullmatch(r"[0-9a-f]{32}", text):
        return _logged(text, root, tracking_uri)
    return _named(text, root)


def checkpoint_owner(checkpoint: Path) -> tuple[storage.Run, str] | None:
    """The run that a checkpoint folder lies in, and the tracker's key of it or of its trial; None: in none."""
    folder = Path(checkpoint).absolute().parent
    if (folder / "train.json").is_file():
        return storage.Run(folder, "train"), "train"
    sweep = folder.parent.parent
    return (
        (storage.Run(sweep, "sweep"), folder.name)
        if folder.parent.name == "trials" and (sweep / "sweep.json").is_file()
        else None
    )


def _is_checkpoint(folder: Path) -> bool:
    return (folder / "config.json").is_file() and (folder / "model.safetensors").is_file()


def _inside(folder: Path) -> Path:
    """The checkpoint that a folder is, or that counts in a run's, a trial's or a downloaded model's folder."""
    storage.download(folder, wanted=storage.weights_only, wait=False)
    if _is_checkpoint(folder):
        return folder
    kind = next((kind for kind in storage.KINDS if (folder / f"{kind}.json").is_file()), None)
    if kind:
        state = storage.Run(folder, kind).state
        named = state.get("champion", {}).get("checkpoint") or ("best" if kind == "train" else None)
        if named:
            storage.download((folder / named).parent, wanted=storage.weights_only, wait=False)
        if named and _is_checkpoint(folder / named):
            return folder / named
        raise UserError(
            f"{folder.name} is a {kind} (state: {state.get('state', 'unknown')}) without a "
            f"{'champion yet; let it end, or name one of its trials as RUN/TRIAL' if kind == 'sweep' else 'checkpoint yet; let it finish an epoch'}"
        )
    for place in (folder / "last", folder / "best", folder / "artifacts" / "checkpoint"):
        if _is_checkpoint(place):
            return place
    raise UserError(f"{folder} holds no checkpoint (config.json and model.safetensors); {WANTED}")


def _named(text: str, root: Path) -> Path:
    name, _, inner = text.partition("/")
    try:
        run = storage.find_run(root, name)
    except UserError as error:
        raise UserError(f"checkpoint {text!r} is not a folder, and {error}; {WANTED}") from None
    if not inner:
        return _inside(run.folder)
    storage.download(run.folder, wanted=storage.weights_only, wait=False)
    for folder in (run.folder / "trials" / inner, run.folder / inner):
        if folder.is_dir():
            return _inside(folder)
    trials = ", ".join(sorted(p.name for p in run.folder.glob("trials/*"))[:12]) or "none"
    raise UserError(f"{run.name} has no trial {inner!r}; there: {trials}")


def _logged(run_id: str, root: Path, tracking_uri: str | None) -> Path:
    """An MLflow run leads to its run folder by its tag; where that folder is not here, to the model it logged."""
    from orchestrator.tracking.mlflow_server import KEY_TAG

    client, uri = _client(root, tracking_uri)
    run = _ask(client.get_run, run_id, what=f"MLflow run {run_id}", uri=uri)
    folder, _, key = run.data.tags.get(KEY_TAG, "").partition("/")
    for place in (root / folder / "trials" / key, root / folder) if folder and key else ():
        if place.is_dir() and (place.name == key or key in storage.KINDS):
            return _inside(place)
    models = run.outputs.model_outputs if run.outputs else []
    if not models:
        raise UserError(
            f"MLflow run {run_id} ({run.info.run_name}) logged no model, and its folder {folder or '?'} is not under {root}; {WANTED}"
        )
    model = _ask(
        client.get_logged_model,
        models[-1].model_id,
        what=f"the model of MLflow run {run_id}",
        uri=uri,
    )
    return _fetch(model.artifact_location, root / "downloads" / model.model_id, uri)


def _registered(text: str, root: Path, tracking_uri: str | None) -> Path:
    match = re.fullmatch(r"models:/([^/@]+)(?:@([\w.-]+)|/(\d+))", text)
    if not match:
        raise UserError(
            f"{text!r} is not a registered model's address; write models:/NAME@champion or models:/NAME/VERSION"
        )
    name, alias, number = match.groups()
    client, uri = _client(root, tracking_uri)
    ask = (
        (client.get_model_version_by_alias, name, alias)
        if alias
        else (client.get_model_version, name, number)
    )
    found = _ask(*ask, what=text, uri=uri)
    return _fetch(found.source, root / "downloads" / f"{name}-{found.version}-{found.run_id}", uri)


def _client(root: Path, tracking_uri: str | None):
    """-> client, the address in use. A SQLite file that is not there is not made."""
    from orchestrator.tracking import mlflow_server

    if tracking_uri == "none":
        raise UserError(
            "tracking.uri is none, so no MLflow store knows runs or models; give a checkpoint folder or a run's name"
        )
    uri = mlflow_server.tracking_uri(tracking_uri, root)
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        raise UserError(
            f"there is no MLflow store at {uri}; train something first, or set MLFLOW_TRACKING_URI"
        )
    return mlflow_server.connect(uri), uri


def _ask(call, *args, what: str, uri: str):
    from orchestrator.utils import redact

    try:
        return call(*args)
    except Exception as error:  # MLflow's own, and whatever the store behind it raises
        raise UserError(
            f"{what} cannot be had from MLflow at {redact(uri)} ({' '.join(redact(error).split())[:200]}); {WANTED}"
        ) from None


def _fetch(source: str, into: Path, uri: str) -> Path:
    """The checkpoint of a logged model: where it lies on this machine, else a copy made once."""
    local = Path(unquote(urlparse(source).path)) if source.startswith("file:") else Path(source)
    if local.is_dir():
        return _inside(local)
    if not into.is_dir():
        from mlflow.artifacts import download_artifacts

        draft = into.with_name(into.name + ".draft")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        _ask(
            lambda: download_artifacts(artifact_uri=source, dst_path=str(draft), tracking_uri=uri),
            what="the model's files",
            uri=uri,
        )
        os.replace(draft, into)
    folders = sorted(p.parent for p in into.rglob("model.safetensors"))
    if not folders:
        raise UserError(
            f"the model at {source} holds no checkpoint; it was not logged by train or sweep"
        )
    return _inside(folders[0])
