"""Check the files of cluster/kubernetes: KubeRay accepts them, and pods stay where they run."""

import os
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from tests.orchestrator.cluster.test_cluster_files import ROOT, documents


@pytest.fixture(scope="module")
def schemas() -> dict[str, dict]:
    """KubeRay's custom resource definitions, v1, by kind."""
    folder = Path(os.environ.get("AMLRIS_SCHEMAS", ROOT / ".." / "shared" / "schemas"))
    if not (folder / "ray.io_rayjobs.yaml").is_file():
        pytest.skip(
            f"no KubeRay schemas at {folder}: set AMLRIS_SCHEMAS to the folder with "
            "ray.io_rayclusters.yaml and ray.io_rayjobs.yaml"
        )
    found = {}
    for path in folder.glob("ray.io_*.yaml"):
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        text = path.read_text("utf-8")
        spec = yaml.load(text, loader)["spec"]  # noqa: S506 (both loaders are safe ones)
        (found[spec["names"]["kind"]],) = [
            v["schema"]["openAPIV3Schema"] for v in spec["versions"] if v["name"] == "v1"
        ]
    return found


def closed(schema):
    """Return the schema with unknown keys refused, which the API server would drop silently.

    Quantities may be numbers or text.
    """
    if isinstance(schema, list):
        return [closed(s) for s in schema]
    if not isinstance(schema, dict):
        return schema
    made = {k: closed(v) for k, v in schema.items()}
    if made.pop("x-kubernetes-int-or-string", False):
        made.pop("type", None)
    if (
        isinstance(schema.get("properties"), dict)
        and "type" in schema
        and not schema.get("x-kubernetes-preserve-unknown-fields")
    ):
        made.setdefault("additionalProperties", False)
    return made


@pytest.mark.parametrize("name", ["kubernetes/raycluster.yaml", "kubernetes/rayjob.yaml"])
def test_ray_on_kubernetes_is_what_kuberay_accepts(name, filled, schemas):
    (manifest,) = documents(filled[name])
    jsonschema.Draft7Validator(closed(schemas[manifest["kind"]])).validate(manifest)


def test_the_check_against_the_schema_can_fail(filled, schemas):
    (manifest,) = documents(filled["kubernetes/raycluster.yaml"])
    manifest["spec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["volumeMount"] = []
    with pytest.raises(jsonschema.ValidationError, match="volumeMount"):
        jsonschema.Draft7Validator(closed(schemas["RayCluster"])).validate(manifest)


def test_ray_on_kubernetes_asks_for_a_token_and_keeps_its_head_off_spot_nodes(filled, values):
    (cluster,), (job,) = (
        documents(filled["kubernetes/raycluster.yaml"]),
        documents(filled["kubernetes/rayjob.yaml"]),
    )
    assert job["spec"]["rayClusterSpec"] == cluster["spec"]
    spec = cluster["spec"]
    assert spec["authOptions"] == {"mode": "token"} and spec["autoscalerOptions"]["version"] == "v2"
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP" and spec["headGroupSpec"][
        "rayStartParams"
    ] == {"num-cpus": "0"}
    groups = {g["groupName"]: g["template"]["spec"] for g in spec["workerGroupSpecs"]}
    pods = groups | {"head": spec["headGroupSpec"]["template"]["spec"]}
    market = {name: pod["nodeSelector"][values["SPOT_LABEL"]] for name, pod in pods.items()}
    assert market == {"gpu-spot": "spot", "cpu-data": "on-demand", "head": "on-demand"}
    gpus = {
        name: pod["containers"][0]["resources"]["limits"].get("nvidia.com/gpu")
        for name, pod in groups.items()
    }
    assert gpus == {"gpu-spot": values["GPUS_PER_NODE"], "cpu-data": None}
    assert {m["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] for m in (cluster, job)} == {
        values["QUEUE"]
    }


def test_pods_stay_where_they_run_and_only_the_head_may_change_the_cluster(filled):
    spec = documents(filled["kubernetes/raycluster.yaml"])[0]["spec"]
    head, *workers = [
        group["template"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])
    ]
    (database,) = [
        d["spec"]["template"]
        for d in documents(filled["kubernetes/mlflow.yaml"])
        if d["kind"] == "StatefulSet"
    ]
    (server,) = [
        d["spec"]["template"]
        for d in documents(filled["kubernetes/mlflow.yaml"])
        if d["kind"] == "Deployment"
    ]
    for template in (head, *workers, database):
        assert template["metadata"]["annotations"]["karpenter.sh/do-not-disrupt"] == "true"
    assert "automountServiceAccountToken" not in head["spec"]  # the autoscaler runs there
    assert [t["spec"]["automountServiceAccountToken"] for t in (*workers, server)] == [
        False,
        False,
        False,
    ]


def test_every_kubernetes_document_says_what_it_is_and_refers_to_what_exists(filled, values):
    every = [
        d
        for name, text in filled.items()
        if name.startswith("kubernetes/")
        for d in documents(text)
    ]
    assert all(
        {"apiVersion", "kind", "metadata"} <= set(d)
        and d["metadata"]["namespace"] == values["NAMESPACE"]
        for d in every
    )
    made = {(d["kind"], d["metadata"].get("name")) for d in every}
    text = "".join(filled[n] for n in filled if n.startswith("kubernetes/"))
    assert {("ServiceAccount", a) for a in re.findall(r"serviceAccountName: (\S+)", text)} <= made
    assert {
        ("PersistentVolumeClaim", c) for c in re.findall(r"claimName: \"?([\w-]+)", text)
    } <= made
    for d in every:
        if d["kind"] in ("Deployment", "StatefulSet"):
            assert (
                d["spec"]["selector"]["matchLabels"] == d["spec"]["template"]["metadata"]["labels"]
            )
        if d["kind"] == "Service":
            assert d["spec"].get("type", "ClusterIP") == "ClusterIP"


def test_a_pod_that_is_to_end_has_time_to_save(filled, monkeypatch):
    import importlib

    from ray._private import ray_constants

    (worker,) = [
        g
        for g in documents(filled["kubernetes/raycluster.yaml"])[0]["spec"]["workerGroupSpecs"]
        if g["groupName"] == "gpu-spot"
    ]
    pod = worker["template"]["spec"]
    given = {e["name"]: e["value"] for e in pod["containers"][0]["env"]}
    assert (
        60
        < float(given["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
        < pod["terminationGracePeriodSeconds"]
    )
    monkeypatch.setenv(
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", given["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"]
    )
    spec = importlib.util.spec_from_file_location("constants_of_a_pod", ray_constants.__file__)
    constants = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(constants)  # as Ray reads them in the pod
    assert (
        float(given["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
        == constants.RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S
    )
