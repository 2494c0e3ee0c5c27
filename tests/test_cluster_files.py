"""The files of cluster/, filled in: what Ray and KubeRay accept, versions as in requirements.txt, commands that the command line knows."""

import json
import os
import re
import shlex
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "cluster"
FILES = sorted(str(p.relative_to(CLUSTER)) for p in CLUSTER.rglob("*") if p.suffix in (".yaml", ".sh"))


def render(name: str, *overrides: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, CLUSTER / "render.py", name, *overrides], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def filled() -> dict[str, str]:
    """Every file as it is applied; Compose fills in its own."""
    return {name: done.stdout for name in FILES if name != "compose.yaml" and (done := render(name)).returncode == 0}


@pytest.fixture(scope="module")
def values() -> dict[str, str]:
    lines = (CLUSTER / "values.env").read_text("utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def documents(text: str) -> list[dict]:
    return list(yaml.safe_load_all(text))


@pytest.fixture(scope="module")
def schemas() -> dict[str, dict]:
    """KubeRay's custom resource definitions, v1, by kind."""
    folder = Path(os.environ.get("AMLRIS_SCHEMAS", ROOT / ".." / "shared" / "schemas"))
    if not (folder / "ray.io_rayjobs.yaml").is_file():
        pytest.skip(f"no KubeRay schemas at {folder}: set AMLRIS_SCHEMAS to the folder with ray.io_rayclusters.yaml and ray.io_rayjobs.yaml")
    found = {}
    for path in folder.glob("ray.io_*.yaml"):
        spec = yaml.load(path.read_text("utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))["spec"]  # noqa: S506
        (found[spec["names"]["kind"]],) = [v["schema"]["openAPIV3Schema"] for v in spec["versions"] if v["name"] == "v1"]
    return found


def closed(schema):
    """The schema with unknown keys refused: the API server would drop them without a word. Quantities may be numbers or text."""
    if isinstance(schema, list):
        return [closed(s) for s in schema]
    if not isinstance(schema, dict):
        return schema
    made = {k: closed(v) for k, v in schema.items()}
    if made.pop("x-kubernetes-int-or-string", False):
        made.pop("type", None)
    if isinstance(schema.get("properties"), dict) and "type" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made


def entry_points(text: str) -> list[list[str]]:
    """What follows `python -m orchestrator` in a text, up to the end of the line or code span, comments left out."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    return [shlex.split(m, comments=True) for line in lines for m in re.findall(r"python -m orchestrator ([^`]+)", line)]


def test_every_file_fills_in_and_leaves_no_name_open(filled):
    assert set(filled) == set(FILES) - {"compose.yaml"}
    assert {"aws.yaml", "slurm.sh", "kubernetes/raycluster.yaml", "kubernetes/rayjob.yaml", "kubernetes/mlflow.yaml"} <= set(filled)
    for name, text in filled.items():
        assert not re.search(r"\$\{\w+\}", text) and "!spec" not in text, name


def test_a_value_is_replaced_by_name_and_a_wrong_one_is_refused():
    assert "--nodes=7\n" in render("slurm.sh", "GPU_NODES=7").stdout
    wrong = render("slurm.sh", "GPU_NODE=7")
    assert wrong.returncode and "GPU_NODE=7" in wrong.stderr and "GPU_NODES" in wrong.stderr and "Traceback" not in wrong.stderr
    absent = render("gcp.yaml")
    assert absent.returncode and "aws.yaml" in absent.stderr and "Traceback" not in absent.stderr


def test_every_value_is_read_somewhere(values):
    text = "".join(p.read_text("utf-8") for p in CLUSTER.rglob("*") if p.is_file() and p.name != "values.env")
    assert [name for name in values if f"${{{name}}}" not in text] == []


def test_the_launcher_file_is_what_ray_accepts(filled):
    import ray

    config = yaml.safe_load(filled["aws.yaml"])
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text("utf-8"))
    jsonschema.validate(config, schema)
    types = config["available_node_types"]
    assert "InstanceMarketOptions" not in types[config["head_node_type"]]["node_config"]  # on demand
    assert types["gpu_spot"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        assert "RAY_AUTH_MODE=token" in commands[-1] and "\n" not in commands[-1].strip()
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]


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
    (cluster,), (job,) = documents(filled["kubernetes/raycluster.yaml"]), documents(filled["kubernetes/rayjob.yaml"])
    assert job["spec"]["rayClusterSpec"] == cluster["spec"]
    spec = cluster["spec"]
    assert spec["authOptions"] == {"mode": "token"} and spec["autoscalerOptions"]["version"] == "v2"
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP" and spec["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    groups = {g["groupName"]: g["template"]["spec"] for g in spec["workerGroupSpecs"]}
    pods = groups | {"head": spec["headGroupSpec"]["template"]["spec"]}
    market = {name: pod["nodeSelector"][values["SPOT_LABEL"]] for name, pod in pods.items()}
    assert market == {"gpu-spot": "spot", "cpu-data": "on-demand", "head": "on-demand"}
    gpus = {name: pod["containers"][0]["resources"]["limits"].get("nvidia.com/gpu") for name, pod in groups.items()}
    assert gpus == {"gpu-spot": values["GPUS_PER_NODE"], "cpu-data": None}
    assert {m["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] for m in (cluster, job)} == {values["QUEUE"]}


def test_every_kubernetes_document_says_what_it_is_and_refers_to_what_exists(filled, values):
    every = [d for name, text in filled.items() if name.startswith("kubernetes/") for d in documents(text)]
    assert all({"apiVersion", "kind", "metadata"} <= set(d) and d["metadata"]["namespace"] == values["NAMESPACE"] for d in every)
    made = {(d["kind"], d["metadata"].get("name")) for d in every}
    text = "".join(filled[n] for n in filled if n.startswith("kubernetes/"))
    assert {("ServiceAccount", a) for a in re.findall(r"serviceAccountName: (\S+)", text)} <= made
    assert {("PersistentVolumeClaim", c) for c in re.findall(r"claimName: \"?([\w-]+)", text)} <= made
    for d in every:
        if d["kind"] in ("Deployment", "StatefulSet"):
            assert d["spec"]["selector"]["matchLabels"] == d["spec"]["template"]["metadata"]["labels"]
        if d["kind"] == "Service":
            assert d["spec"].get("type", "ClusterIP") == "ClusterIP"


def test_the_tracking_server_of_compose_listens_on_this_machine_only():
    services = yaml.safe_load((CLUSTER / "compose.yaml").read_text("utf-8"))["services"]
    assert services["mlflow"]["ports"] == ["127.0.0.1:5000:5000"] and "ports" not in services["postgres"]


def test_the_tracking_servers_options_are_mlflows(filled):
    from importlib.util import find_spec

    source = (Path(find_spec("mlflow").origin).parent / "utils" / "cli_args.py").read_text("utf-8")  # importing the command line takes 20 s
    compose = yaml.safe_load((CLUSTER / "compose.yaml").read_text("utf-8"))["services"]["mlflow"]["command"]
    (deployment,) = [d for d in documents(filled["kubernetes/mlflow.yaml"]) if d["kind"] == "Deployment"]
    for arguments in (compose, deployment["spec"]["template"]["spec"]["containers"][0]["args"]):
        options = [a for a in arguments if a.startswith("--")]
        assert {"--artifacts-destination", "--allowed-hosts"} <= set(options)
        assert [o for o in options if f'"{o}"' not in source] == []


def test_no_file_holds_a_key(filled):
    """A password stands for its name: of a secret, or of a variable of the shell."""
    for text in [*filled.values(), *(p.read_text("utf-8") for p in CLUSTER.rglob("*") if p.is_file() and "__pycache__" not in p.parts)]:
        assert not re.search(r"AKIA[0-9A-Z]{16}|-----BEGIN|aws_secret_access_key[\"\']?[ \t]*[=:][ \t]*\S", text, re.I)
        given = re.findall(r"(?i)password[\"']?\s*[:=]\s*\"?([^\s\"},]+)", text)
        assert all(g.startswith(("$", "...", '"$')) for g in given), given


def test_versions_are_those_of_the_requirements(values):
    pinned = dict(re.findall(r"^([\w-]+)(?:\[[\w,]+\])?==(\S+)", (ROOT / "requirements.txt").read_text("utf-8"), re.M))
    assert (values["RAY_VERSION"], values["MLFLOW_VERSION"]) == (pinned["ray"], pinned["mlflow"])
    image, tracking = (CLUSTER / "Dockerfile").read_text("utf-8"), (CLUSTER / "mlflow.Dockerfile").read_text("utf-8")
    assert f"ARG RAY_VERSION={pinned['ray']}\n" in image and f"-py{values['PYTHON_VERSION'].replace('.', '')}-" in image
    assert f"ARG MLFLOW_VERSION={pinned['mlflow']}\n" in tracking and f"ARG PYTHON_VERSION={values['PYTHON_VERSION']}\n" in tracking
    assert f"PYTHON ?= python{values['PYTHON_VERSION']}\n" in (ROOT / "Makefile").read_text("utf-8")


def test_what_the_image_copies_is_there():
    for line in re.findall(r"^COPY (?:--\S+ )?(.+)$", (CLUSTER / "Dockerfile").read_text("utf-8"), re.M):
        for name in line.split()[:-1]:
            assert (ROOT / name).exists(), name


def test_every_command_of_the_files_parses(filled):
    from orchestrator.cli import parameters
    from orchestrator.jobs import COMMANDS

    found = [e for text in [*filled.values(), (CLUSTER / "README.md").read_text("utf-8")] for e in entry_points(text)]
    assert len(found) > 6
    for arguments in found:
        given = parameters(arguments[0], arguments[1:])  # raises where the command line refuses them
        if arguments[0] == "submit":
            inner = arguments[next(i for i, a in enumerate(arguments) if a in COMMANDS) :]
            assert given["follow"] and parameters(inner[0], inner[1:])


def test_experiments_that_are_named_load(filled):
    from orchestrator.config import load

    for arguments in (e for text in filled.values() for e in entry_points(text) if e[0] in ("train", "sweep")):
        assert load(ROOT / arguments[1], [a for a in arguments[2:] if "=" in a]).name


@pytest.mark.parametrize("name", [n for n in FILES if n.endswith(".sh")])
def test_scripts_are_bash(name, filled):
    for text in (filled[name], (CLUSTER / name).read_text("utf-8")):
        subprocess.run(["bash", "-n"], input=text, text=True, check=True)


def test_the_markets_notice_is_handed_on_to_ray(tmp_path):
    """A metadata service as AWS has it: a token first, and 404 until there is a notice."""
    asked = []

    class Metadata(BaseHTTPRequestHandler):
        def answer(self, code: int, text: bytes = b"") -> None:
            asked.append((self.command, self.path, self.headers.get("X-aws-ec2-metadata-token")))
            self.send_response(code)
            self.end_headers()
            self.wfile.write(text)

        def do_PUT(self):
            self.answer(200 if self.headers.get("X-aws-ec2-metadata-token-ttl-seconds") else 400, b"t0ken")

        def do_GET(self):
            self.answer(200 if len(asked) > 4 else 404, b'{"action": "terminate"}')

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    (tmp_path / "ray").write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    (tmp_path / "ray").chmod(0o755)
    where = {"AWS_EC2_METADATA_SERVICE_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "SPOT_POLL_S": "0.05"}
    environment = os.environ | where | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "TMPDIR": str(tmp_path)}
    done = subprocess.run(["bash", CLUSTER / "spot.sh"], env=environment, capture_output=True, text=True, timeout=60, check=True)
    server.shutdown()
    assert done.stdout.splitlines()[0] == "drain-node" and asked[:2] == [
        ("PUT", "/latest/api/token", None),
        ("GET", "/latest/meta-data/spot/instance-action", "t0ken"),
    ]
    assert len(asked) == 6, "it asks until there is a notice, and then no more"


def test_draining_is_asked_for_as_ray_takes_it(filled):
    from ray.scripts.scripts import drain_node

    (worker,) = [g for g in documents(filled["kubernetes/raycluster.yaml"])[0]["spec"]["workerGroupSpecs"] if g["groupName"] == "gpu-spot"]
    pod = worker["template"]["spec"]
    hook = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    for text in (hook[-1], (CLUSTER / "spot.sh").read_text("utf-8")):
        words = shlex.split(next(line for line in re.split(r"&&|\n", text) if "drain-node" in line).split("ray drain-node")[1])
        given = drain_node.make_context("drain-node", words).params
        assert given["reason"] == "DRAIN_NODE_REASON_PREEMPTION" and given["reason_message"]
    slept = int(re.search(r"sleep (\d+)", hook[-1])[1])
    assert slept < given["deadline_remaining_seconds"] <= pod["terminationGracePeriodSeconds"]


def test_the_slurm_script_uses_options_ray_has(filled):
    import ray

    words = filled["slurm.sh"].split("ray symmetric-run", 1)[1].split(" -- ")[0]
    scripts = Path(ray.__file__).parent / "scripts"
    source = (scripts / "scripts.py").read_text("utf-8") + (scripts / "symmetric_run.py").read_text("utf-8")
    options = re.findall(r"--[\w-]+", words)
    assert "--min-nodes" in options and [o for o in options if f'"{o}' not in source] == []
