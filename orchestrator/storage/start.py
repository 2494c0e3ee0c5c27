"""Start a run, or find the one of the same settings and data that goes on."""

import contextlib
import logging
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

from aml.errors import UserError
from orchestrator.config import Experiment, code_version
from orchestrator.storage import uploads
from orchestrator.storage.paths import storage_root
from orchestrator.storage.run import Run, downloaded, local_runs
from orchestrator.utils import git_state, processor

logger = logging.getLogger(__name__)


def start_run(experiment: Experiment, kind: str, manifest: dict, *, fresh: bool) -> Run:
    """Return the run of some settings and data: a new one, or the present one of the same name.

    A run of an earlier version that lacks only settings at their defaults is the same, and so is a
    sweep that differs in the number of its confirmation seeds alone. An unfinished run of the same
    settings and data that another version of the numerics began is not continued, but named in a
    message.

    Args:
        experiment: the settings.
        kind: one of `KINDS`.
        manifest: of the data; its fingerprint is part of the run's name.
        fresh: start another run, even where one of this name exists.
    """
    root = storage_root(experiment.storage.root)
    uploads.download_run_metadata(root)
    name = base = experiment.run_name(manifest["fingerprint"])
    number = 1
    while fresh and (root / name).exists():
        number += 1
        name = f"{base}-{number}"
    run = Run(root / name, kind)
    if not run.state:
        if not fresh:
            if same := _run_under_another_name(root, experiment, kind, manifest["fingerprint"]):
                return downloaded(same)
            _report_other_numerics(root, experiment, kind, manifest["fingerprint"])
        run.folder.mkdir(parents=True, exist_ok=True)
        run.write_settings(experiment)
    return run


def _run_under_another_name(root: Path, experiment: Experiment, kind: str, data: str) -> Run | None:
    """Return the newest run of the same settings and data; None where there is none.

    Its name is another where settings were added since, or where a sweep was started with another
    number of confirmation seeds.
    """
    wanted = (experiment.name, data, kind, code_version())
    seeds = {"search.seeds.confirm": experiment.search.seeds.confirm} if kind == "sweep" else {}
    for run in local_runs(root)[0]:
        state = run.state
        fingerprint = (state.get("data") or {}).get("fingerprint")
        if (state.get("name"), fingerprint, run.kind, state.get("code_version")) != wanted:
            continue
        with contextlib.suppress(UserError, OSError):  # an unreadable run cannot be continued
            if run.experiment().with_overrides(seeds).computed() == experiment.computed():
                return run
    return None


def _report_other_numerics(root: Path, experiment: Experiment, kind: str, data: str) -> None:
    """Name unfinished runs of some settings and data that another version of the numerics began."""
    for run in local_runs(root)[0]:
        state = run.state
        wanted = {"name": experiment.name, "data": data, "kind": kind}
        found = {
            "name": state.get("name"),
            "data": (state.get("data") or {}).get("fingerprint"),
            "kind": run.kind,
        }
        if run.finished or found != wanted or state.get("code_version") == code_version():
            continue
        with contextlib.suppress(UserError, OSError):  # an unreadable run cannot be continued
            if run.experiment().computed() == experiment.computed():
                logger.info(
                    f"note: {run.name} has these settings and data and is not finished, but "
                    f"{state.get('code_version', 'unrecorded')} began it and here is "
                    f"{code_version()}: a new run is started; --resume {run.name} continues that "
                    "one"
                )


def begin_run(run: Run, experiment: Experiment, manifest: dict, uri: str) -> None:
    """Note in the state who runs what, at the start and at each continuation.

    Args:
        run: the run, locked.
        experiment: its settings.
        manifest: of the data.
        uri: where the data are.

    Raises:
        UserError: the run was started with other data.
    """
    given = (run.state.get("data") or {}).get("fingerprint")
    if given and given != manifest["fingerprint"]:
        raise UserError(
            f"{run.name} was made with data {given}, but {uri} now holds "
            f"{manifest['fingerprint']}; restore those data or start another with --fresh"
        )
    sha, dirty = git_state()
    run.update(
        run=run.name,
        name=experiment.name,
        kind=run.kind,
        state="running",
        started=run.state.get("started") or time.time(),
        ended=None,
        command=" ".join(["python -m orchestrator", *sys.argv[1:]]),
        git_sha=sha,
        git_dirty=dirty,
        code_version=code_version(),
        processors=[*dict.fromkeys([*(run.state.get("processors") or []), processor()])],
        versions={
            "python": platform.python_version(),
            **{p: version(p) for p in ("torch", "ray", "mlflow", "transformers", "timm")},
        },
        data={
            "uri": uri,
            **{key: manifest.get(key) for key in ("dataset", "split_by", "fingerprint", "splits")},
        },
        epochs=experiment.train.epochs,
    )
