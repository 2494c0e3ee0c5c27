"""What cluster/README.md says to type is what bash, Ray and the files take."""

import re
import shlex
import subprocess
from pathlib import Path

from tests.orchestrator.cluster.test_cluster_files import README, ROOT


def lines_of_the_readme() -> list[str]:
    """Return the lines that a reader types, top to bottom."""
    return [
        line
        for block in re.findall(r"```bash\n(.*?)```", README, re.S)
        for line in block.splitlines()
    ]


def test_what_the_readme_says_to_type_is_bash():
    lines = lines_of_the_readme()
    assert len(lines) > 30
    for line in lines:
        subprocess.run(["bash", "-n"], input=line, text=True, check=True)
    assert not [line for line in lines if line.partition(" #")[0].rstrip().endswith("&")], (
        "what runs in the background is not there yet in the next line"
    )


def test_rays_commands_of_the_readme_are_rays():
    from ray.scripts.scripts import cli

    typed = [
        shlex.split(part, comments=True)[1:]
        for line in lines_of_the_readme()
        for part in line.strip("()").split(" && ")
        if part.startswith("ray ")
    ]
    assert {words[0] for words in typed} >= {
        "start",
        "stop",
        "up",
        "exec",
        "attach",
        "dashboard",
        "rsync-up",
        "get-auth-token",
    }
    for name, *arguments in typed:
        words = arguments[: arguments.index(">")] if ">" in arguments else arguments
        command = cli.commands.get(name) or cli.commands[name.replace("-", "_")]
        command.make_context(name, words)  # raises where Ray refuses them


def test_what_the_readme_types_for_kubernetes_is_made_before_it_is_used(values):
    lines = lines_of_the_readme()

    def first(text: str) -> int:
        return next(i for i, line in enumerate(lines) if text in line)

    namespace = first(f"kubectl create namespace {values['NAMESPACE']}")
    assert namespace < min(
        i for i, line in enumerate(lines) if "kubectl" in line and i != namespace
    )
    base, secret, mlflow, job = (
        first(text)
        for text in (
            "base.yaml",
            "create secret generic mlflow-postgres",
            "mlflow.yaml",
            "rayjob.yaml",
        )
    )
    assert max(base, secret) < mlflow < job
    cluster, there, tunnel, token = (
        first(text)
        for text in (
            "raycluster.yaml",
            "kubectl -n research wait",
            "amlris-head-svc",
            "RAY_AUTH_TOKEN=",
        )
    )
    assert cluster < there < tunnel < token
    environment = first("source .venv/bin/activate")
    assert environment < min(
        i for i, line in enumerate(lines) if line.startswith(("ray ", "python "))
    )


def test_names_in_the_readme_are_those_of_the_values(values):
    assert set(re.findall(r"kubectl -n (\S+)", README)) == {values["NAMESPACE"]}
    assert set(re.findall(r"docker build .*? -t (\S+)|docker push (\S+)", README)) == {
        pair
        for image in (values["IMAGE"], values["MLFLOW_IMAGE"])
        for pair in ((image, ""), ("", image))
    }
    assert set(re.findall(r"s3://([\w-]+)", README)) - {"bucket"} == {values["BUCKET"]}
    assert (
        f"service/{values['NAME']}-head-svc" in README
        and f"raycluster/{values['NAME']} " in README
        and f"generic {values['NAME']}-secrets " in README
    )


def test_what_the_readme_writes_into_the_projects_folder_is_no_part_of_it():
    from orchestrator.cluster.packaging import ignored

    written = {
        name for line in lines_of_the_readme() for name in re.findall(r"> ([\w.-]+)(?: |$)", line)
    }
    assert written == {"aws.yaml", "amlris.sbatch"}
    patterns = (ROOT / ".gitignore").read_text("utf-8").split()
    assert all(ignored(Path(name), patterns) for name in written) and not ignored(
        Path("cluster/aws.yaml"), patterns
    )
