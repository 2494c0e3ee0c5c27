"""The files of cluster/ as they are applied, and their values."""

import pytest

from tests.orchestrator.cluster.test_cluster_files import CLUSTER, FILES, render


@pytest.fixture(scope="session")
def filled() -> dict[str, str]:
    """Every file as it is applied; Compose fills in its own, and spot.sh needs nothing."""
    return {name: done.stdout for name in FILES if (done := render(name)).returncode == 0}


@pytest.fixture(scope="session")
def values() -> dict[str, str]:
    lines = (CLUSTER / "values.env").read_text("utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
