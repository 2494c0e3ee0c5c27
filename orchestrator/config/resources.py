"""Settings of workers, of the MLflow store, and of where results go."""

import re
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from aml.errors import UserError
from aml.schema import (
    NotNegative,
    Positive,
    Settings,
    Text,
    leaf,
    shown,
)
from orchestrator.utils import check_address, learn_secrets, redact

Workers = Annotated[int, Field(ge=1, le=4096)]


class ResourcesConfig(Settings):
    """Holds what a run or a trial gets."""

    section: ClassVar[str] = "resources"

    workers: Workers = leaf("Workers of a run or trial.", 1, unit="workers")
    min_workers: Workers | None = leaf(
        "With how few workers train goes on where more do not fit; null keeps resources.workers. "
        "Batch, order and schedule stay those of the global batch.",
        None,
        unit="workers",
    )
    cpus_per_worker: Annotated[float, Field(gt=0, le=4096)] = leaf(
        "CPUs of a worker.", 1.0, unit="CPUs"
    )
    gpus_per_worker: Annotated[float, Field(ge=0, le=64)] = leaf(
        "GPUs of a worker: a part of one, or a whole number.", 0.0, unit="GPUs"
    )
    memory_gb: Positive | None = leaf(
        "Memory that a worker asks Ray for, so that no more of them share a node than it holds; "
        "null "
        "does not count it.",
        None,
        unit="GiB",
    )
    driver: Literal["auto", "light", "train"] = leaf(
        "auto trains trials of one worker inside the Tune process and others by Ray Train; light "
        "and "
        "train force one of the two.",
        "auto",
    )
    max_failures: Annotated[int, Field(ge=0, le=1000)] = leaf(
        "Restarts of a run or trial after a killed worker.", 2, unit="restarts"
    )
    epoch_timeout_s: Positive | None = leaf(
        "How long an epoch may take, start included, and after the last one of a search by "
        "robust/mIoU the scoring under corruption: a sweep's trial that is silent for longer "
        "has failed, the workers of train start again after the last epoch; null waits for ever.",
        None,
        unit="seconds",
    )
    save_every_s: Positive | None = leaf(
        "Saves a run in the middle of an epoch, too, when it has not been for so long; null "
        "saves at "
        "the end of epochs alone.",
        600.0,
        unit="seconds",
    )
    grace_s: NotNegative = leaf(
        "How long a command has to save after SIGTERM; Kubernetes and Slurm follow it with SIGKILL "
        "after 30.",
        25.0,
        unit="seconds",
    )
    price_per_gpu_hour: NotNegative = leaf(
        "Price of a GPU, in any currency.", 0.0, unit="currency an hour"
    )
    price_per_cpu_hour: NotNegative = leaf(
        "Price of a CPU, in the same currency.", 0.0, unit="currency an hour"
    )

    @model_validator(mode="after")
    def _check_together(self):
        if self.min_workers is not None and self.min_workers > self.workers:
            raise UserError(
                f"resources.min_workers is {self.min_workers}; give 1 to {self.workers}, which is "
                "resources.workers, or null"
            )
        if self.gpus_per_worker > 1 and self.gpus_per_worker % 1:
            raise UserError(
                f"resources.gpus_per_worker is {self.gpus_per_worker}; give a part of one GPU or a "
                "whole number of them"
            )
        if self.driver == "light" and self.workers > 1:
            raise UserError(
                f"resources.driver light runs one worker, but resources.workers is {self.workers}; "
                "use driver train or workers 1"
            )
        return self

    @property
    def elastic(self) -> bool:
        """Return whether training may go on with fewer workers."""
        return self.min_workers is not None and self.min_workers < self.workers

    @property
    def light(self) -> bool:
        """Return whether a trial trains inside the Tune process."""
        return self.driver == "light" or (self.driver == "auto" and self.workers == 1)


class TrackingConfig(Settings):
    """Holds where MLflow is."""

    section: ClassVar[str] = "tracking"

    uri: Text | None = leaf(
        "Address of MLflow's store: a server (http, https), a database (sqlite, postgresql, mysql, "
        "mssql) or a folder; null takes MLFLOW_TRACKING_URI, else SQLite under storage.root; none "
        "tracks nothing.",
        None,
    )

    @model_validator(mode="after")
    def _check_address(self):
        learn_secrets(self.uri or "")
        if self.uri is not None and not is_served_by_mlflow(self.uri):
            raise UserError(
                f"tracking.uri is {shown(redact(self.uri))}; it must be none, a folder, "
                "sqlite:///FILE, "
                "http(s)://HOST, or a postgresql, mysql or mssql address with a host, or null"
            )
        return self


class StorageConfig(Settings):
    """Holds where results go."""

    section: ClassVar[str] = "storage"

    root: Text | None = leaf(
        "A folder, or an s3:// or gs:// address; null takes AMLRIS_HOME, else runs/ here, or "
        "~/amlris inside a Ray job.",
        None,
    )

    @model_validator(mode="after")
    def _check_address(self):
        if self.root is not None:
            check_address(self.root, "storage.root", results=True)
        return self


def is_served_by_mlflow(uri: str) -> bool:
    """Return whether MLflow serves an address."""
    scheme, separator, rest = uri.partition(":")
    if not separator or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]+", scheme):
        return uri not in ("databricks", "databricks-uc", "uc")  # else none, or a folder
    base, at_host = scheme.lower().split("+")[0], rest.startswith("//")
    if base == "sqlite":
        return rest.startswith("///") and len(rest) > 3
    if base == "file":
        return len(rest.strip("/")) > 0
    if base not in ("http", "https", "postgresql", "mysql", "mssql") or not at_host:
        return False
    if base.startswith("http") and "+" in scheme:
        return False
    # a password may hold a slash or an @: the host stands behind the last of these
    place = rest[2:].rpartition("@")[2]
    found = re.match(r"([\w.-]+|\[[0-9A-Fa-f:.]+\])(?::(\d{1,5}))?(?=[/?#]|$)", place)
    return found is not None and 0 < int(found[2] or 1) < 65536
