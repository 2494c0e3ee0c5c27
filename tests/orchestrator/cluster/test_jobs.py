"""The command `submit`, against a stand-in for the cluster.

Tested are what is handed over with a job, what is not, and the messages.
"""

from types import SimpleNamespace

import pytest
import typer

from aml.errors import UserError
from orchestrator.cli.app import app, main
from orchestrator.cli.job_commands import parameters
from orchestrator.cluster import jobs, packaging
from orchestrator.utils import redaction

YAML = "name: small\ndata: {train: shards}\n"


class Cluster:
    """The part of Ray's JobSubmissionClient that is used; it keeps what it was given."""

    def __init__(self, log=("one\n", "two\n"), status="SUCCEEDED", code=0, breaks=0):
        self.jobs, self.log, self.status, self.code, self.breaks, self.seen = (
            [],
            log,
            status,
            code,
            breaks,
            None,
        )

    def get_address(self):
        return "http://head:8265"

    def list_jobs(self):
        return self.jobs

    def submit_job(self, *, entrypoint, submission_id, runtime_env, metadata):
        from pathlib import Path

        folder = Path(runtime_env["working_dir"])
        self.seen = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
        self.runtime_env, self.metadata = runtime_env, metadata
        self.jobs.append(self._job(submission_id, entrypoint, "RUNNING"))
        return submission_id

    def _job(self, name, entrypoint, status):
        return SimpleNamespace(
            submission_id=name,
            entrypoint=entrypoint,
            status=status,
            start_time=1.7e12 + len(self.jobs),
            message="why",
            driver_exit_code=self.code,
        )

    async def tail_job_logs(self, job):
        for n, text in enumerate(self.log):
            if n == 1 and self.breaks:
                self.breaks -= 1
                raise RuntimeError("WebSocket connection closed unexpectedly")
            yield text
        self.jobs[-1].status = self.status

    def get_job_info(self, job):
        return self.jobs[-1]

    def get_job_logs(self, job):
        if job not in [j.submission_id for j in self.jobs]:
            raise RuntimeError("Job does not exist")
        return "".join(self.log)

    def stop_job(self, job):
        self.get_job_logs(job)
        return self.jobs[-1].status == "RUNNING"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Return a project with files that belong to a job and files that do not, as current folder."""
    for name in (
        "aml/a.py",
        "experiments/x.yaml",
        "tests/t.py",
        ".git/HEAD",
        ".venv/bin/python",
        "runs/r/ledger.jsonl",
        "data/d.parquet",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(YAML if name.endswith("yaml") else "x")
    for name in (
        ".env",
        "aml/server.pem",
        "aml/__pycache__/a.pyc",
        "experiments/results/big.bin",
        "experiments/data/keep.txt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / ".rayignore").write_text("# not for jobs\ntests\nexperiments/results/\n")
    for name in ("AMLRIS_HOME", "MLFLOW_TRACKING_URI", "AMLRIS_GIT_SHA", "AMLRIS_GIT_DIRTY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def submit(project, monkeypatch, capsys):
    """Return a function that runs `submit` and returns exit code, printed text and cluster."""

    def run(*arguments, cluster=None):
        cluster = cluster or Cluster()
        monkeypatch.setattr(jobs, "connect_jobs", lambda address: jobs.JobClient(cluster))
        monkeypatch.setattr("orchestrator.cli.job_commands.project_root", lambda: project)
        with pytest.raises(SystemExit) as left:
            main(["submit", *arguments])
        shown = capsys.readouterr()
        return left.value.code, shown.out + shown.err, cluster

    return run


def test_the_package_is_the_project_without_what_a_job_must_not_get(project):
    packed = packaging.package_working_dir(project)
    assert {str(f) for f in packed.files} == {
        "aml/a.py",
        "experiments/x.yaml",
        "experiments/data/keep.txt",
    }
    assert {
        ".git",
        ".venv",
        "runs",
        "data",
        ".env",
        "tests",
        "experiments/results",
        "aml/server.pem",
    } <= set(packed.left_out)
    assert packed.size == len(YAML) + 2


def test_a_job_gets_the_installed_code_where_there_is_no_checkout(
    submit, tmp_path_factory, monkeypatch
):
    site = tmp_path_factory.mktemp("site")
    for name in (
        "aml/draws.py",
        "aml/__pycache__/draws.pyc",
        "orchestrator/__main__.py",
        "torch/t",
    ):
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text("x")
    monkeypatch.setattr("orchestrator.cli.job_commands.CODE", site)
    code, text, cluster = submit("sweep", "experiments/x.yaml")
    assert code == 0, text
    assert f"code        of {site}" in text and "5 files" in text
    own = {"aml/a.py", "experiments/x.yaml", "experiments/data/keep.txt"}
    assert cluster.seen == own | {"aml/draws.py", "orchestrator/__main__.py"}


def test_a_package_that_is_too_large_names_its_largest_folder(project):
    (project / "weights").mkdir()
    (project / "weights" / "w.bin").write_bytes(bytes(3 * 2**20))
    with pytest.raises(
        UserError, match=r"3\.0 MB, more than 1 MB; weights alone is 3\.0 MB.*\.rayignore"
    ):
        packaging.package_working_dir(project, limit_mb=1)


def test_this_projects_package_is_small_and_whole():
    from pathlib import Path

    packed = packaging.package_working_dir(Path(__file__).parents[3])
    names = {str(f) for f in packed.files}
    assert packed.size < 3 * 2**20
    assert {
        "aml/training/learner.py",
        "orchestrator/reporting/page/report.html.j2",
        "experiments/quickstart.yaml",
        "pyproject.toml",
    } <= names
    assert not any(n.startswith((".git", ".venv", "tests", "runs")) for n in names)


def test_a_matrix_is_handed_over_as_one_job(submit, project):
    (project / "experiments" / "m.yaml").write_text(
        "{name: m, matrix: {data: {a: {data.train: data/a}, b: {data.train: data/b}}}}"
    )
    code, text, cluster = submit("sweep", "experiments/m.yaml")
    assert code == 0, text
    assert cluster.jobs[0].entrypoint == "python -m orchestrator sweep experiments/m.yaml"
    code, text, _ = submit("train", "experiments/m.yaml", cluster=cluster)
    assert code == 2 and "which `sweep` runs" in text


def test_a_job_is_handed_over_and_everything_is_said(submit, monkeypatch):
    monkeypatch.setenv("AMLRIS_HOME", "/shared/amlris")
    monkeypatch.setenv("AMLRIS_GIT_SHA", "abc123")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-key")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:planted-password@mlflow:5000")
    code, text, cluster = submit("sweep", "experiments/x.yaml", "optim.lr=1e-4")
    assert code == 0
    assert (
        cluster.jobs[0].entrypoint
        == "python -m orchestrator sweep experiments/x.yaml optim.lr=1e-4"
    )
    assert cluster.seen == {"aml/a.py", "experiments/x.yaml", "experiments/data/keep.txt"}
    assert cluster.runtime_env["env_vars"] == {
        "AMLRIS_HOME": "/shared/amlris",
        "AMLRIS_GIT_SHA": "abc123",
        "AMLRIS_GIT_DIRTY": "0",
        packaging.STOP_WAIT: "60",
    }
    assert cluster.metadata == {"name": "small", "git_sha": "abc123"}
    for word in ("3 files", ".venv", "small-1", "http://head:8265/#/jobs/small-1", "MLflow"):
        assert word in text
    taken = text.split("taken from the cluster: ")[1].splitlines()[0].split(", ")
    assert {"AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_URI"} <= set(taken)
    assert "planted" not in text and "planted" not in str(vars(cluster))


def test_the_config_is_found_in_the_package_from_another_folder(submit, project, monkeypatch):
    monkeypatch.chdir(project / "experiments")
    code, _, cluster = submit("train", "--fresh", "x.yaml")
    assert (
        code == 0
        and cluster.jobs[0].entrypoint == "python -m orchestrator train --fresh experiments/x.yaml"
    )


def test_the_same_command_again_is_another_job_of_the_same_run_but_not_beside_it(submit):
    _, _, cluster = submit("sweep", "experiments/x.yaml")
    code, text, _ = submit("sweep", "experiments/x.yaml", cluster=cluster)
    assert code == 2 and "small-1 is already running this command" in text
    cluster.jobs[0].status = "FAILED"
    code, text, _ = submit("sweep", "experiments/x.yaml", cluster=cluster)
    assert (
        code == 0
        and [j.submission_id for j in cluster.jobs] == ["small-1", "small-2"]
        and len({j.entrypoint for j in cluster.jobs}) == 1
    )


@pytest.mark.parametrize(
    ("status", "code", "left"),
    [
        ("SUCCEEDED", 0, 0),
        ("FAILED", 1, 1),
        ("FAILED", 2, 2),
        ("FAILED", -9, 1),
        ("STOPPED", None, 130),
    ],
)
def test_following_prints_the_log_and_leaves_with_the_jobs_exit_code(submit, status, code, left):
    exit_code, text, _ = submit(
        "--follow", "sweep", "experiments/x.yaml", cluster=Cluster(status=status, code=code)
    )
    assert exit_code == left and "one\ntwo\n" in text and status.lower() in text


def test_a_log_that_breaks_off_is_taken_up_without_repeating(project, capsys):
    cluster = Cluster(breaks=1)
    cluster.jobs.append(cluster._job("small-1", "x", "RUNNING"))
    assert jobs.JobClient(cluster).follow("small-1", pause_s=0) == 0
    text = capsys.readouterr().out
    assert text.count("one\n") == 1 and text.count("two\n") == 1 and "broke off" in text


def test_a_cluster_that_is_lost_is_said_in_one_sentence_and_one_that_comes_back_is_followed(
    project, capsys
):
    class Away(Cluster):
        def __init__(self, answers_after):
            super().__init__(breaks=1)
            self.asked, self.answers_after = 0, answers_after

        def get_job_info(self, job):
            self.asked += 1
            if self.asked <= self.answers_after:
                raise ConnectionError("connection refused")
            return super().get_job_info(job)

    for answers_after, code in ((jobs.SILENCE - 1, 0), (10**6, 1)):
        cluster = Away(answers_after)
        cluster.jobs.append(cluster._job("small-1", "x", "RUNNING"))
        cluster.breaks = 10**6 if code else 1
        assert jobs.JobClient(cluster).follow("small-1", pause_s=0) == code
        text = capsys.readouterr().out
        assert text.count("broke off") == 1 and (
            "submitted again where one runs it continues" in text
        ) is bool(code)


def test_named_variables_go_along_and_secrets_only_when_asked(submit, monkeypatch):
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-west-2")
    monkeypatch.setenv("HF_TOKEN", "planted")
    code, _, cluster = submit("--env", "AWS_DEFAULT_REGION", "sweep", "experiments/x.yaml")
    assert (
        code == 0
        and cluster.runtime_env["env_vars"]["AWS_DEFAULT_REGION"] == "us-west-2"
        and "HF_TOKEN" not in cluster.runtime_env["env_vars"]
    )
    code, text, cluster = submit("--env", "HF_TOKEN", "sweep", "experiments/x.yaml")
    assert (
        code == 2
        and "--env HF_TOKEN looks like a secret" in text
        and "planted" not in text
        and not cluster.jobs
    )
    code, text, cluster = submit(
        "--env", "HF_TOKEN", "--secret-from-env", "sweep", "experiments/x.yaml"
    )
    assert (
        code == 0
        and cluster.runtime_env["env_vars"]["HF_TOKEN"] == "planted"  # noqa: S105
        and "planted" not in text
    )
    code, text, _ = submit("--env", "NOT_SET=planted", "sweep", "experiments/x.yaml")
    assert code == 2 and "NOT_SET is not set" in text


@pytest.mark.parametrize(
    ("name", "value", "secret"),
    [
        ("AWS_SECRET_ACCESS_KEY", "x", True),
        ("AWS_ACCESS_KEY_ID", "x", True),
        ("HF_TOKEN", "x", True),
        ("POSTGRES_PASSWORD", "x", True),
        ("MLFLOW_TRACKING_URI", "http://me:word@host", True),
        ("MLFLOW_TRACKING_URI", "http://host:5000", False),
        ("AWS_DEFAULT_REGION", "us-west-2", False),
        ("RAY_AUTH_MODE", "disabled", False),
        ("SSH_KEY_NAME", "experiments", False),
        ("OMP_NUM_THREADS", "1", False),
    ],
)
def test_what_looks_like_a_secret(name, value, secret):
    assert redaction.looks_secret(name, value) is secret


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "submit needs one thing to do"),
        (["--list", "sweep", "experiments/x.yaml"], "submit needs one thing to do"),
        (["predict", "x"], "submit runs train, sweep, evaluate on a cluster, not 'predict'"),
        (["sweep", "experiments/absent.yaml"], "experiments/absent.yaml cannot be read"),
        (["sweep", "experiments/x.yaml", "optim.lrr=1"], "did you mean optim.lr"),
        (
            ["sweep", "experiments/x.yaml", "tracking.uri=http://me:planted@host"],
            "holds a password",
        ),
        (
            ["evaluate", "small", "--data", "shards", "--out", "scores"],
            "would be lost with the job's throw-away folder",
        ),
        (["--logs", "small-9"], "there is no job 'small-9' on the cluster; there: none"),
        (["--stop", "small-9"], "there is no job 'small-9' on the cluster; there: none"),
    ],
)
def test_what_cannot_run_is_refused_in_one_sentence_before_anything_is_uploaded(
    submit, arguments, sentence
):
    code, text, cluster = submit(*arguments)
    assert (
        code == 2
        and sentence in text
        and "planted" not in text
        and "Traceback" not in text
        and cluster.seen is None
    )


def test_a_config_outside_the_project_and_a_home_that_would_be_lost_are_refused(
    submit, tmp_path_factory, monkeypatch
):
    outside = tmp_path_factory.mktemp("outside") / "x.yaml"
    outside.write_text(YAML)
    code, text, _ = submit("sweep", str(outside))
    assert code == 2 and "copy it there" in text
    monkeypatch.setenv("AMLRIS_HOME", "runs")
    code, text, _ = submit("sweep", "experiments/x.yaml")
    assert code == 2 and "AMLRIS_HOME is 'runs'" in text
    monkeypatch.setenv("AMLRIS_HOME", "s3://AKIAPLANTED:planted@bucket/amlris")
    code, text, _ = submit("sweep", "experiments/x.yaml")
    assert code == 2 and "holds keys" in text and "planted" not in text.lower()


def test_a_home_in_a_bucket_is_handed_over(submit, monkeypatch):
    monkeypatch.setenv("AMLRIS_HOME", "s3://bucket/amlris")
    code, _, cluster = submit("sweep", "experiments/x.yaml")
    assert code == 0 and cluster.runtime_env["env_vars"]["AMLRIS_HOME"] == "s3://bucket/amlris"


def test_jobs_are_listed_shown_and_stopped(submit):
    _, _, cluster = submit("sweep", "experiments/x.yaml")
    code, text, _ = submit("--list", cluster=cluster)
    assert (
        code == 0
        and text.count("\n") == 1
        and "small-1" in text
        and "RUNNING" in text
        and "sweep experiments/x.yaml" in text
    )
    assert submit("--logs", "small-1", cluster=cluster)[1] == "one\ntwo\n\n"
    assert "asked small-1 to stop" in submit("--stop", "small-1", cluster=cluster)[1]
    assert "no jobs" in submit("--list")[1]


def test_a_cluster_that_does_not_answer_is_said(unused_port):
    with pytest.raises(
        UserError, match=f"no cluster answers at http://127.0.0.1:{unused_port}; start one"
    ):
        jobs.connect_jobs(f"http://127.0.0.1:{unused_port}")


def test_parameters_are_read_as_the_command_itself_reads_them():
    given = parameters(typer.main.get_command(app), "sweep", ["x.yaml", "a=1", "b=2", "--dry-run"])
    assert (given["config"], list(given["overrides"]), given["dry_run"], given["fresh"]) == (
        "x.yaml",
        ["a=1", "b=2"],
        True,
        False,
    )
