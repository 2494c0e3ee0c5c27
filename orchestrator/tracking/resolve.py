"""Find the checkpoint that a person names: by folder, run, MLflow run id or registered model."""

import contextlib
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import unquote, urlparse

from aml.errors import UserError
from aml.files import DRAFT, home_expanded
from orchestrator import storage
from orchestrator.tracking import mlflow_server
from orchestrator.utils import announced_wait, redact

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

WANTED = (
    "give a checkpoint folder, a run's name, RUN/TRIAL, an MLflow run id or models:/NAME@champion"
)

Answer = TypeVar("Answer")


def find_checkpoint(
    text: str | Path,
    root: Path,
    tracking_uri: str | None = None,
    *,
    tokenizer: str | None = None,
) -> Path:
    """Return the checkpoint folder (config.json, model.safetensors) that `text` names.

    Args:
        text: One of these:
            - a checkpoint folder, or the folder of a run or trial;
            - the name of a run under root (a sweep: its champion, a training: the epoch that
              counts by evaluate.select, by default the best mIoU);
            - RUN/TRIAL (the epoch that counts by evaluate.select, by default the last);
            - a published .pth file of CARIS, MaskRIS or LAVT, made a folder in root/downloads;
            - an MLflow run id;
            - models:/NAME@ALIAS or models:/NAME/VERSION, fetched into root/downloads where MLflow
              keeps the model elsewhere.
        root: Storage root.
        tracking_uri: Tracking address. None: MLFLOW_TRACKING_URI, else the store under root.
        tokenizer: Hub name or folder of BERT's tokenizer, which a published file does not hold.

    Raises:
        UserError: There is no such checkpoint; the message is one sentence.
    """
    text = str(text)
    root = Path(root)
    folder = home_expanded(text)
    if folder.is_file():
        return _published_checkpoint(folder, root, tokenizer)
    if tokenizer is not None:
        raise UserError(
            f"--tokenizer is for a published .pth file, and {text} is none: a checkpoint brings "
            "its own; leave --tokenizer out"
        )
    if text.startswith("models:"):
        return _registered_checkpoint(text, root, tracking_uri)
    if folder.is_dir():
        try:
            return _checkpoint_in(folder)
        except UserError:
            # The folder may merely have the same name as a run under root.
            with contextlib.suppress(UserError):
                return _run_checkpoint(text, root)
            raise
    if re.fullmatch(r"[0-9a-f]{32}", text):
        return _mlflow_run_checkpoint(text, root, tracking_uri)
    return _run_checkpoint(text, root)


def checkpoint_owner(checkpoint: Path) -> tuple[storage.Run, str] | None:
    """Return the run of a checkpoint folder and the run key of it or its trial; None without one.

    Args:
        checkpoint: Checkpoint folder.
    """
    folder = Path(checkpoint).absolute().parent
    if (folder / "train.json").is_file():
        return storage.Run(folder, "train"), "train"
    sweep = folder.parent.parent
    if folder.parent.name == "trials" and (sweep / "sweep.json").is_file():
        return storage.Run(sweep, "sweep"), folder.name
    return None


def _published_checkpoint(file: Path, root: Path, tokenizer: str | None) -> Path:
    """Return the checkpoint folder of a published .pth file, made once for a tokenizer.

    Without a tokenizer the folder stays as it was made; another one makes it anew.

    Args:
        file: The file.
        root: Storage root.
        tokenizer: See `find_checkpoint`.
    """
    from aml.models import open_published, published_tokenizer
    from aml.training import read_assets, save_checkpoint

    with open(file, "rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()[:16]
    folder = root / "downloads" / f"{file.stem}-{digest}"
    kept = _is_checkpoint(folder)
    if kept and tokenizer is not None:
        held = (read_assets(folder) or {}).get("tokenizer")
        kept = held == published_tokenizer(tokenizer, file)
    if not kept:
        model, about = open_published(file, tokenizer)
        save_checkpoint(folder, model, about)
        logger.info(f"{file.name} is {about['arm']}; as a checkpoint it is kept in {folder}")
    return folder


def _is_checkpoint(folder: Path) -> bool:
    return (folder / "config.json").is_file() and (folder / "model.safetensors").is_file()


def _checkpoint_in(folder: Path) -> Path:
    """Return the checkpoint that a folder is or holds.

    Args:
        folder: A checkpoint, or the folder of a run, a trial or a downloaded model; of these the
            checkpoint that counts is returned.
    """
    storage.download(folder, wanted=storage.weights_only, wait=False)
    if _is_checkpoint(folder):
        return folder
    kind = next((kind for kind in storage.KINDS if (folder / f"{kind}.json").is_file()), None)
    if kind:
        return _chosen_checkpoint(storage.Run(folder, kind), kind)
    sweep = storage.Run(folder.absolute().parent.parent, "sweep")
    counted = _counted(sweep, "last") if folder.absolute().parent.name == "trials" else "last"
    for name in dict.fromkeys((counted, "last", "best", "artifacts/checkpoint")):
        place = folder / name
        if _is_checkpoint(place):
            return place
    raise UserError(f"{folder} holds no checkpoint (config.json and model.safetensors); {WANTED}")


def _counted(run: storage.Run, default: str) -> str:
    """Return the folder of the checkpoint that counts in a run or its trials, "last" or "best"."""
    if not (run.folder / "config.yaml").is_file():
        return default
    return run.experiment().evaluate.checkpoint(default)


def _chosen_checkpoint(run: storage.Run, kind: str) -> Path:
    """Return a sweep's champion, or the epoch of a training that counts."""
    state = run.state
    name = state.get("champion", {}).get("checkpoint")
    if name is None and kind == "train":
        name = _counted(run, "best")
    if name:
        checkpoint = run.folder / name
        storage.download(checkpoint.parent, wanted=storage.weights_only, wait=False)
        if _is_checkpoint(checkpoint):
            return checkpoint
    if kind == "sweep":
        missing = "champion yet; let it end, or name one of its trials as RUN/TRIAL"
    else:
        missing = "checkpoint yet; let it finish an epoch"
    raise UserError(
        f"{run.folder.name} is a {kind} (state: {state.get('state', 'unknown')}) without a "
        f"{missing}"
    )


def _run_checkpoint(text: str, root: Path) -> Path:
    """Return the checkpoint of RUN or RUN/TRIAL."""
    name, _, inner = text.partition("/")
    try:
        run = storage.find_run(root, name)
    except UserError as error:
        raise UserError(f"checkpoint {text!r} is not a folder, and {error}; {WANTED}") from None
    if not inner:
        return _checkpoint_in(run.folder)
    storage.download(run.folder, wanted=storage.weights_only, wait=False)
    for folder in (run.folder / "trials" / inner, run.folder / inner):
        if folder.is_dir():
            return _checkpoint_in(folder)
    trials = ", ".join(sorted(p.name for p in run.folder.glob("trials/*"))[:12]) or "none"
    raise UserError(f"{run.name} has no trial {inner!r}; there: {trials}")


def _mlflow_run_checkpoint(run_id: str, root: Path, tracking_uri: str | None) -> Path:
    """Return the checkpoint of an MLflow run.

    The run's tag names its run folder; where that folder is not on this machine, the model that
    the run logged is fetched.
    """
    client, uri = _connect(root, tracking_uri)
    run = _ask(lambda: client.get_run(run_id), what=f"MLflow run {run_id}", uri=uri)
    folder, _, run_key = run.data.tags.get(mlflow_server.KEY_TAG, "").partition("/")
    if folder and run_key:
        for place in (root / folder / "trials" / run_key, root / folder):
            if place.is_dir() and (place.name == run_key or run_key in storage.KINDS):
                return _checkpoint_in(place)
    models = run.outputs.model_outputs if run.outputs else []
    if not models:
        raise UserError(
            f"MLflow run {run_id} ({run.info.run_name}) logged no model, and its folder "
            f"{folder or '?'} is not under {root}; {WANTED}"
        )
    model = _ask(
        lambda: client.get_logged_model(models[-1].model_id),
        what=f"the model of MLflow run {run_id}",
        uri=uri,
    )
    return _fetch(model.artifact_location, root / "downloads" / model.model_id, uri)


def _registered_checkpoint(text: str, root: Path, tracking_uri: str | None) -> Path:
    """Return the checkpoint of models:/NAME@ALIAS or models:/NAME/VERSION."""
    match = re.fullmatch(r"models:/([^/@]+)(?:@([\w.-]+)|/(\d+))", text)
    if not match:
        raise UserError(
            f"{text!r} is not a registered model's address; write models:/NAME@champion or "
            "models:/NAME/VERSION"
        )
    name, alias, number = match.groups()
    client, uri = _connect(root, tracking_uri)
    version = _ask(
        lambda: (
            client.get_model_version_by_alias(name, alias)
            if alias
            else client.get_model_version(name, number)
        ),
        what=text,
        uri=uri,
    )
    folder = root / "downloads" / f"{name}-{version.version}-{version.run_id}"
    return _fetch(version.source, folder, uri)


def _connect(root: Path, tracking_uri: str | None) -> tuple["MlflowClient", str]:
    """Return a client and the address in use; a SQLite file that is missing is not created."""
    if tracking_uri == "none":
        raise UserError(
            "tracking.uri is none, so no MLflow store knows runs or models; give a checkpoint "
            "folder or a run's name"
        )
    uri = mlflow_server.tracking_uri(tracking_uri, root)
    if uri.startswith(mlflow_server.SQLITE):
        file = Path(uri.removeprefix(mlflow_server.SQLITE))
        if not file.is_file():
            raise UserError(
                f"there is no MLflow store at {uri}; train something first, or set "
                "MLFLOW_TRACKING_URI"
            )
    return _ask(lambda: mlflow_server.connect(uri), what="the list of models", uri=uri), uri


def _ask(call: Callable[[], Answer], *, what: str, uri: str) -> Answer:
    """Return what a request to MLflow returns; any error becomes a UserError.

    Args:
        call: Makes the request.
        what: Name, for the message, of what is asked for.
        uri: Tracking address, redacted in the message.
    """
    try:
        with announced_wait(f"MLflow at {redact(uri)} to answer"):
            return call()
    except UserError:
        raise
    except Exception as error:  # MLflow's own, or whatever the store behind it raises
        reason = " ".join(redact(error).split())[:200]
        raise UserError(
            f"{what} cannot be had from MLflow at {redact(uri)} ({reason}); {WANTED}"
        ) from None


def _fetch(source: str | None, into: Path, uri: str) -> Path:
    """Return the checkpoint of a logged model.

    Args:
        source: Where MLflow keeps the model. A folder on this machine is used in place.
        into: Folder for a copy, which is made once.
        uri: Tracking address.
    """
    if source is None:
        raise UserError(f"MLflow does not say where it keeps the model; {WANTED}")
    local = Path(unquote(urlparse(source).path)) if source.startswith("file:") else Path(source)
    if local.is_dir():
        return _checkpoint_in(local)
    if not into.is_dir():
        from mlflow.artifacts import download_artifacts

        draft = into.with_name(into.name + DRAFT)
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
    return _checkpoint_in(folders[0])
