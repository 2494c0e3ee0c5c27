"""Test names of checkpoints: a folder, a run, a trial, an MLflow run, a registered model."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from aml.data.refer_counts import vocabulary
from aml.errors import UserError
from orchestrator.config.loader import from_text
from orchestrator.tracking import resolve
from tests.support.stores import save_model


@pytest.fixture
def root(tmp_path, data):
    """Return a storage root with a sweep with a champion, a sweep without one, and a training."""
    words = vocabulary(data.rows)
    for name in (
        "quick-11111111/trials/aml-03/last",
        "quick-11111111/trials/off-00/last",
        "quick-11111111/trials/off-00/best",
        "plain-33333333/best",
    ):
        save_model(tmp_path / name, words)
    (tmp_path / "quick-11111111/sweep.json").write_text(
        json.dumps({"state": "done", "champion": {"checkpoint": "trials/aml-03/last"}})
    )
    (tmp_path / "young-22222222").mkdir()
    (tmp_path / "young-22222222/sweep.json").write_text(json.dumps({"state": "running"}))
    (tmp_path / "plain-33333333/train.json").write_text(json.dumps({"state": "interrupted"}))
    return tmp_path


def test_a_checkpoint_is_found_by_folder_and_by_run(root):
    champion = root / "quick-11111111/trials/aml-03/last"
    for text in (
        champion,
        root / "quick-11111111",
        "quick-11111111",
        "quick",
        "quick-11111111/aml-03",
    ):
        assert resolve.find_checkpoint(text, root) == champion
    assert resolve.find_checkpoint("quick/off-00", root).relative_to(root).parts[-2:] == (
        "off-00",
        "last",
    )
    assert resolve.find_checkpoint("quick/trials/off-00/best", root).name == "best"
    assert resolve.find_checkpoint("plain", root) == root / "plain-33333333/best"


def test_the_setting_select_says_which_checkpoint_counts(root, data):
    text = "{name: x, data: {train: data/x, size: 32}, evaluate: {select: SELECT}}"
    words = vocabulary(data.rows)
    save_model(root / "plain-33333333/last", words)
    for select, training, trial in (
        ("null", "best", "last"),
        ("last", "last", "last"),
        ("best_oIoU", "best", "best"),
    ):
        settings = from_text(text.replace("SELECT", select)).to_yaml()
        for run in ("plain-33333333", "quick-11111111"):
            (root / run / "config.yaml").write_text(settings)
        assert resolve.find_checkpoint("plain", root).name == training
        assert resolve.find_checkpoint("quick/off-00", root).name == trial


def test_a_folder_that_only_has_the_name_of_a_run_is_in_nobodys_way(
    root, monkeypatch, tmp_path_factory
):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    for name in ("quick", "nothing"):
        Path(name).mkdir()  # as generated data may be called like the run on them
    assert resolve.find_checkpoint("quick", root) == root / "quick-11111111/trials/aml-03/last"
    with pytest.raises(UserError, match="nothing holds no checkpoint"):
        resolve.find_checkpoint("nothing", root)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("quik", "'quik' is not a folder, and no run under .* give a checkpoint folder"),
        ("young", "without a champion yet"),
        ("quick/aml-04", "no trial 'aml-04'; there: aml-03, off-00"),
        ("models:/quick", "write models:/NAME@champion"),
        ("models:/quick@champion", "no MLflow store"),
        ("0" * 32, "no MLflow store"),
    ],
)
def test_what_names_no_checkpoint_is_refused(root, text, says, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match=says):
        resolve.find_checkpoint(text, root)


def test_a_tokenizer_beside_what_is_no_published_file_is_refused(root):
    with pytest.raises(UserError, match="--tokenizer is for a published .pth file"):
        resolve.find_checkpoint("models:/toy@champion", root, tokenizer="bert")


def test_an_mlflow_run_and_a_registered_model_lead_to_their_checkpoint(root, monkeypatch):
    from orchestrator.tracking import mlflow_server

    logged = root / "artifacts" / "m-1"
    save_model(logged / "artifacts" / "checkpoint", ["red"])
    keys = {
        "a" * 32: "quick-11111111/sweep",
        "b" * 32: "quick-11111111/off-00",
        "c" * 32: "plain-33333333/train",
        "d" * 32: "gone-44444444/train",
    }

    class Client:
        def get_run(self, run_id):
            outputs = SimpleNamespace(
                model_outputs=[SimpleNamespace(model_id="m-1")] if run_id[0] == "d" else []
            )
            return SimpleNamespace(
                data=SimpleNamespace(tags={mlflow_server.KEY_TAG: keys[run_id]}),
                info=SimpleNamespace(run_name="r"),
                outputs=outputs,
            )

        def get_logged_model(self, model_id):
            return SimpleNamespace(artifact_location=logged.as_uri(), model_id=model_id)

        def get_model_version_by_alias(self, name, alias):
            if (name, alias) != ("quick", "champion"):
                raise LookupError(f"no model {name}")
            return SimpleNamespace(source=logged.as_uri(), version="1", run_id="d" * 32)

    (root / "mlflow.db").touch()
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(mlflow_server, "connect", lambda uri: Client())
    found = {letter: resolve.find_checkpoint(letter * 32, root) for letter in "abcd"}
    assert [found[x].relative_to(root).as_posix() for x in "abc"] == [
        "quick-11111111/trials/aml-03/last",
        "quick-11111111/trials/off-00/last",
        "plain-33333333/best",
    ]
    assert (
        found["d"]
        == resolve.find_checkpoint("models:/quick@champion", root)
        == logged / "artifacts" / "checkpoint"
    )
    with pytest.raises(UserError, match="models:/slow@champion cannot be had"):
        resolve.find_checkpoint("models:/slow@champion", root)
