"""Test that a cluster whose nodes do not see the results folder is refused."""

import pytest
import ray

from aml.errors import UserError
from orchestrator.cluster import shared_folder


def test_a_node_that_does_not_see_the_results_folder_is_named(tmp_path, ray_session, monkeypatch):
    """This node plays another one, which is asked by a task of its own."""
    monkeypatch.setattr(shared_folder, "SEEN_S", 0.0)
    seen = tmp_path / "seen"
    seen.touch()
    (node,) = ray.nodes()
    assert shared_folder.hosts_without(seen, own="another") == []
    assert shared_folder.hosts_without(seen, own=node["NodeID"]) == []
    hosts = shared_folder.hosts_without(tmp_path / "not there", own="another")
    assert hosts == [node["NodeManagerHostname"]]
    shared_folder.check_shared_folder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["seen"]
    monkeypatch.setattr(shared_folder, "hosts_without", lambda *_: ["worker-1", "worker-2"])
    with pytest.raises(UserError, match="which worker-1, worker-2 of the cluster cannot see"):
        shared_folder.check_shared_folder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["seen"]
