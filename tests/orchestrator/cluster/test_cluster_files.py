"""Check the files of cluster/ after their placeholders are filled in.

Ray and KubeRay accept them, versions are those of requirements.txt, and the command line knows the
commands.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[3]
CLUSTER = ROOT / "cluster"
README = (CLUSTER / "README.md").read_text("utf-8")
FILES = sorted(
    str(p.relative_to(CLUSTER))
    for p in CLUSTER.rglob("*")
    if p.suffix in (".yaml", ".sh") and p.name not in ("compose.yaml", "spot.sh")
)
AWKWARD = (
    'sweep experiments/quickstart.yaml "search.space={aml.tau: {low: 0.1, high: 1.0}}" '
    "search.arms=[off,random] 'model={name: small, text: \"a b\"}'"
)
"""COMMAND, quoted as a person quotes it for the shell."""


def render(name: str, *overrides: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, CLUSTER / "render.py", name, *overrides],
        capture_output=True,
        text=True,
        check=False,
    )


def documents(text: str) -> list[dict]:
    return list(yaml.safe_load_all(text))


def entry_points(text: str) -> list[list[str]]:
    """Return the arguments of every `python -m orchestrator` in a text, without comments.

    They end with the line or the code span.
    """
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    return [
        shlex.split(m, comments=True)
        for line in lines
        for m in re.findall(r"python -m orchestrator ([^`]+)", line)
    ]


def test_every_file_fills_in_and_leaves_no_name_open(filled):
    assert set(filled) == set(FILES)
    assert {
        "aws.yaml",
        "slurm.sh",
        "kubernetes/raycluster.yaml",
        "kubernetes/rayjob.yaml",
        "kubernetes/mlflow.yaml",
    } <= set(filled)
    for name, text in filled.items():
        assert not re.search(r"\$\{\w+\}", text) and "!spec" not in text, name


def test_a_value_is_replaced_by_name_and_a_wrong_one_is_refused():
    assert "--nodes=7\n" in render("slurm.sh", "GPU_NODES=7").stdout
    wrong = render("slurm.sh", "GPU_NODE=7")
    assert (
        wrong.returncode
        and "GPU_NODE=7" in wrong.stderr
        and "GPU_NODES" in wrong.stderr
        and "Traceback" not in wrong.stderr
    )
    empty = render("slurm.sh", "PARTITION=")
    assert (
        empty.returncode == 1
        and empty.stderr.startswith("error: PARTITION is given as nothing")
        and not empty.stdout
    )
    assert render("kubernetes/mlflow.yaml", "S3_ENDPOINT=").returncode == 0, (
        "where values.env has nothing, nothing is a value"
    )


def test_a_value_reaches_all_that_names_it_and_one_that_the_file_does_not_read_is_refused():
    for name in ("kubernetes/rayjob.yaml", "slurm.sh"):
        text = render(name, "BUCKET=mine").stdout
        assert "data.train=s3://mine/refcoco" in text and "example-bucket" not in text
    for name, override in (
        ("aws.yaml", "COMMAND=x"),
        ("kubernetes/raycluster.yaml", "COMMAND=x"),
        ("slurm.sh", "GPU_MEMORY=1Gi"),
    ):
        refused = render(name, override)
        assert (
            refused.returncode == 1
            and refused.stderr.startswith(
                f"error: {name} does not read {override.split('=')[0]}; it reads"
            )
            and not refused.stdout
        )


@pytest.mark.parametrize(
    "name", ["gcp.yaml", "compose.yaml", "spot.sh", "Dockerfile", "values.env", "../README.md"]
)
def test_only_what_has_values_to_fill_in_is_filled_in(name):
    refused = render(name)
    assert refused.returncode == 1 and refused.stderr.count("\n") == 1 and not refused.stdout
    assert f"{name} is not filled in here" in refused.stderr and all(
        file in refused.stderr for file in FILES
    )


def test_a_file_may_be_given_by_its_path(filled, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert render("cluster/aws.yaml").stdout == filled["aws.yaml"]
    monkeypatch.chdir(CLUSTER / "kubernetes")
    assert (
        render("rayjob.yaml").stdout
        == filled["kubernetes/rayjob.yaml"]
        == render("kubernetes/rayjob.yaml").stdout
    )


@pytest.mark.parametrize(
    "name", ["aws.yaml", "kubernetes/raycluster.yaml", "kubernetes/rayjob.yaml"]
)
def test_a_value_that_is_no_yaml_there_is_refused_in_a_sentence(name):
    refused = render(name, "NAME=my job: x")
    assert refused.returncode == 1 and refused.stderr.count("\n") == 1 and not refused.stdout
    assert (
        refused.stderr.startswith(f"error: {name} is no YAML with these values: ")
        and "my job: x" in refused.stderr
    )


def printed(shell: str, arguments: str) -> list[str]:
    """The words that a shell makes of arguments."""
    script = f"printf '%s\\0' {arguments}"
    return subprocess.run(
        [shell, "-c", script], capture_output=True, text=True, check=True
    ).stdout.split("\0")[:-1]


def test_a_rayjob_runs_its_command_on_the_cluster_whatever_its_quotes():
    """Quotes survive two shells.

    KubeRay pastes the entrypoint behind `ray job submit --` in a script; Ray makes one line of the
    words, which a shell on the head node reads.
    """
    (job,) = documents(render("kubernetes/rayjob.yaml", f"COMMAND={AWKWARD}").stdout)
    entrypoint = job["spec"]["entrypoint"]
    operators = {
        token
        for token in shlex.shlex(entrypoint, posix=True, punctuation_chars=True)
        if set(token) <= set("();<>|&")
    }
    assert not operators and "\n" not in entrypoint
    words = ["python", "-m", "orchestrator", *shlex.split(AWKWARD)]
    assert printed("sh", subprocess.list2cmdline(printed("bash", entrypoint))) == words
    assert (
        job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0][
            "workingDir"
        ]
        in (CLUSTER / "Dockerfile").read_text()
    )


def test_a_slurm_job_runs_its_command_whatever_its_quotes_on_all_cpus_of_its_nodes(tmp_path):
    for name, text in {
        "srun": "#!/bin/bash\nprintf '%s\\0' \"$@\"\nexit $CODE\n",
        "scontrol": "#!/bin/bash\necho first\necho second\n",
    }.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    script = render("slurm.sh", f"COMMAND={AWKWARD}").stdout
    slurm = {
        "SUBMIT_DIR": tmp_path,
        "JOB_ID": 7,
        "JOB_NODELIST": "first,second",
        "JOB_NUM_NODES": 2,
        "CPUS_PER_TASK": 5,
    }
    environment = (
        os.environ
        | {f"SLURM_{name}": str(value) for name, value in slurm.items()}
        | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    )
    done = subprocess.run(
        ["bash", "-c", script],
        env=environment | {"CODE": "3"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    words = done.stdout.split("\0")[:-1]
    srun, ray = words[: words.index("ray")], words[words.index("ray") : words.index("--")]
    assert (
        "--cpus-per-task=5" in srun
        and "--num-cpus=5" in ray
        and ray[ray.index("--address") + 1] == "first:20007"
    )
    assert words[words.index("python") :] == ["python", "-m", "orchestrator", *shlex.split(AWKWARD)]
    done = subprocess.run(
        ["bash", "-c", script],
        env=environment | {"CODE": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (
        done.returncode == 1 and "the command did not run" in done.stderr
    )  # as where Ray cannot start, which symmetric-run calls a good end


def test_a_slurm_job_asks_for_whole_nodes_and_for_gpus_by_the_node(filled):
    asked = re.findall(r"^#SBATCH --([\w-]+)", filled["slurm.sh"], re.M)
    assert {"exclusive", "gpus-per-node"} <= set(asked)
    assert "gpus-per-task" not in asked, (
        "it needs --ntasks, which sbatch does not take from --nodes"
    )


def test_every_value_is_read_somewhere(values):
    text = "".join(
        p.read_text("utf-8") for p in CLUSTER.rglob("*") if p.is_file() and p.name != "values.env"
    )
    assert [name for name in values if f"${{{name}}}" not in text] == []


def test_the_launcher_file_is_what_ray_accepts(filled):
    import ray

    config = yaml.safe_load(filled["aws.yaml"])
    schema = json.loads(
        (Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text("utf-8")
    )
    jsonschema.validate(config, schema)
    types = config["available_node_types"]
    assert (
        "InstanceMarketOptions" not in types[config["head_node_type"]]["node_config"]
    )  # on demand
    assert types["gpu_spot"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert all(
        re.fullmatch("ami-[0-9a-f]+", t["node_config"]["ImageId"]) for t in types.values()
    ), "Ray's own images are too old for torch"
    workers = [t for name, t in types.items() if name != config["head_node_type"]]
    assert all(1 <= t["min_workers"] <= t["max_workers"] for t in workers), (
        "nobody asks for a `data` node where there is none"
    )
    assert sum(t["max_workers"] for t in workers) < config["max_workers"]
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        assert "RAY_AUTH_MODE=token" in commands[-1] and "\n" not in commands[-1].strip()
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]


def containers(text: str) -> dict[str, dict]:
    """Return the containers of a rendered file's pods, by name."""
    found = {}

    def walk(node) -> None:
        for value in (
            node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
        ):
            walk(value)
        for container in node.get("containers", []) if isinstance(node, dict) else []:
            found[f"{container['name']}-{len(found)}"] = container

    walk(documents(text))
    return found


def test_ray_and_mlflow_reach_the_same_s3(monkeypatch):
    """Only the variable for S3 is set.

    A variable for all AWS services would also send requests for the pods' role and the launcher's
    nodes to that server.
    """
    import boto3

    compose = yaml.safe_load((CLUSTER / "compose.yaml").read_text("utf-8"))["services"]["mlflow"][
        "environment"
    ]
    assert compose["AWS_ENDPOINT_URL_S3"] == "${S3_ENDPOINT}"
    for endpoint, used in (
        ("", "https://s3.eu-central-1.amazonaws.com"),
        ("https://minio.example.com:9000", "https://minio.example.com:9000"),
    ):
        values = (f"S3_ENDPOINT={endpoint}", "REGION=eu-central-1")
        pods = containers(
            "---\n".join(
                render(f"kubernetes/{name}.yaml", *values).stdout
                for name in ("raycluster", "mlflow")
            )
        )
        reaching = {name: c for name, c in pods.items() if not name.startswith("postgres")}
        assert len(reaching) == 4
        for container in reaching.values():
            given = {e["name"]: e.get("value") for e in container["env"]}
            assert {n for n in given if "ENDPOINT" in n} == {"AWS_ENDPOINT_URL_S3"}
            assert container["envFrom"] == [
                {"secretRef": {"name": "amlris-secrets", "optional": True}}
            ]
            for name in ("AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION"):
                monkeypatch.setenv(name, given[name])
            session = boto3.session.Session("key", "secret")
            assert session.client("s3").meta.endpoint_url == used
            assert (
                session.client("sts").meta.endpoint_url == "https://sts.eu-central-1.amazonaws.com"
            )


def test_the_tracking_server_of_compose_listens_on_this_machine_only():
    services = yaml.safe_load((CLUSTER / "compose.yaml").read_text("utf-8"))["services"]
    assert (
        services["mlflow"]["ports"] == ["127.0.0.1:5000:5000"]
        and "ports" not in services["postgres"]
    )


def test_the_tracking_servers_options_are_mlflows(filled):
    from importlib.util import find_spec

    source = (Path(find_spec("mlflow").origin).parent / "utils" / "cli_args.py").read_text(
        "utf-8"
    )  # importing the command line takes 20 s
    compose = yaml.safe_load((CLUSTER / "compose.yaml").read_text("utf-8"))["services"]["mlflow"][
        "command"
    ]
    (deployment,) = [
        d for d in documents(filled["kubernetes/mlflow.yaml"]) if d["kind"] == "Deployment"
    ]
    for arguments in (compose, deployment["spec"]["template"]["spec"]["containers"][0]["args"]):
        options = [a for a in arguments if a.startswith("--")]
        assert {"--artifacts-destination", "--allowed-hosts"} <= set(options)
        assert [o for o in options if f'"{o}"' not in source] == []


def test_no_file_holds_a_key(filled):
    """A password stands for its name: of a secret, or of a variable of the shell."""
    for text in [
        *filled.values(),
        *(
            p.read_text("utf-8")
            for p in CLUSTER.rglob("*")
            if p.is_file() and "__pycache__" not in p.parts
        ),
    ]:
        assert not re.search(
            r"AKIA[0-9A-Z]{16}|-----BEGIN|aws_secret_access_key[\"\']?[ \t]*[=:][ \t]*\S",
            text,
            re.I,
        )
        given = re.findall(r"(?i)password[\"']?\s*[:=]\s*\"?([^\s\"},]+)", text)
        assert all(g.startswith(("$", "...", '"$')) for g in given), given


def test_versions_are_those_of_the_requirements(values):
    pinned = dict(
        re.findall(
            r"^([\w-]+)(?:\[[\w,]+\])?==(\S+)", (ROOT / "requirements.txt").read_text("utf-8"), re.M
        )
    )
    assert (values["RAY_VERSION"], values["MLFLOW_VERSION"]) == (pinned["ray"], pinned["mlflow"])
    image, tracking = (
        (CLUSTER / "Dockerfile").read_text("utf-8"),
        (CLUSTER / "mlflow.Dockerfile").read_text("utf-8"),
    )
    assert (
        f"ARG RAY_VERSION={pinned['ray']}\n" in image
        and f"-py{values['PYTHON_VERSION'].replace('.', '')}-" in image
    )
    assert (
        f"ARG MLFLOW_VERSION={pinned['mlflow']}\n" in tracking
        and f"ARG PYTHON_VERSION={values['PYTHON_VERSION']}\n" in tracking
    )
    assert f"PYTHON ?= python{values['PYTHON_VERSION']}\n" in (ROOT / "Makefile").read_text("utf-8")


def test_what_the_image_copies_is_there():
    for line in re.findall(
        r"^COPY (?:--\S+ )?(.+)$", (CLUSTER / "Dockerfile").read_text("utf-8"), re.M
    ):
        for name in line.split()[:-1]:
            assert (ROOT / name).exists(), name


def test_every_command_of_the_files_parses(filled):
    from functools import partial

    import typer

    from orchestrator.cli import app, job_commands

    parameters = partial(job_commands.parameters, typer.main.get_command(app.app))
    from orchestrator.cluster.jobs import COMMANDS

    found = [e for text in [*filled.values(), README] for e in entry_points(text)]
    assert len(found) > 6
    for arguments in found:
        given = parameters(
            arguments[0], arguments[1:]
        )  # raises where the command line refuses them
        if arguments[0] == "submit":
            inner = arguments[next(i for i, a in enumerate(arguments) if a in COMMANDS) :]
            assert given["follow"] and parameters(inner[0], inner[1:])


def test_experiments_that_are_named_load(filled):
    from orchestrator.config.loader import load

    for arguments in (
        e for text in filled.values() for e in entry_points(text) if e[0] in ("train", "sweep")
    ):
        assert load(ROOT / arguments[1], [a for a in arguments[2:] if "=" in a]).name


def test_scripts_are_bash(filled):
    for text in (
        filled["slurm.sh"],
        (CLUSTER / "slurm.sh").read_text("utf-8"),
        (CLUSTER / "spot.sh").read_text("utf-8"),
    ):
        subprocess.run(["bash", "-n"], input=text, text=True, check=True)


def test_the_slurm_script_uses_options_ray_has(filled):
    import ray

    words = filled["slurm.sh"].split("ray symmetric-run", 1)[1].split(" -- ")[0]
    scripts = Path(ray.__file__).parent / "scripts"
    source = (scripts / "scripts.py").read_text("utf-8") + (scripts / "symmetric_run.py").read_text(
        "utf-8"
    )
    options = re.findall(r"--[\w-]+", words)
    assert "--min-nodes" in options and [o for o in options if f'"{o}' not in source] == []
