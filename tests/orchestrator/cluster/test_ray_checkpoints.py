"""Facts of Ray for which runs keep checkpoints and populations of their own.

docs/ray_checkpoints.md draws the conclusions. A test that fails after an update of Ray says that a
reason is gone, and that page is to be read again.
"""

import asyncio
import inspect
import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray import tune
from ray.tune.execution.tune_controller import TuneController
from ray.tune.schedulers import PopulationBasedTraining
from ray.tune.schedulers.pb2 import PB2

# Train writes its list of checkpoints with methods that pydantic has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:The `(json|parse_obj)` method is deprecated")


def population(**options):
    return PopulationBasedTraining(
        time_attr="epoch",
        metric="score",
        mode="max",
        perturbation_interval=2,
        hyperparam_mutations={"rate": tune.uniform(0.0, 1.0)},
        synch=True,
        **options,
    )


# ---- populations of Tune -------------------------------------------------------------------------


def test_a_population_of_tune_refuses_a_searcher():
    """So it cannot share a Tuner with the searcher of arms, confirmation and ledger."""
    from ray.tune.search import Searcher, SearchGenerator

    controller = SimpleNamespace(search_alg=SearchGenerator(Searcher("score", "max")))
    with pytest.raises(ValueError, match="Search algorithms cannot be used with"):
        population().on_trial_add(controller, None)
    assert issubclass(PB2, PopulationBasedTraining)


def test_a_population_of_tune_is_not_saved_with_a_sweep(tmp_path):
    """A restored sweep begins with a population that knows no scores and no generation."""
    with pytest.raises(NotImplementedError):
        population().save(str(tmp_path / "population"))
    with pytest.raises(NotImplementedError):
        population().restore(str(tmp_path / "population"))


@pytest.mark.parametrize("scheduler", [PopulationBasedTraining, PB2])
def test_a_population_of_tune_takes_no_seed(scheduler):
    assert "seed" not in inspect.signature(scheduler).parameters


def test_explored_settings_depend_on_what_else_draws_in_the_process():
    """The draws are of Python's global generator, whose state no sweep keeps."""
    of, explored = SimpleNamespace(config={"rate": 0.5}), set()
    for draws_before in range(20):
        random.seed(1)
        for _ in range(draws_before):
            random.random()
        config, _ = population(resample_probability=0.0)._get_new_config(of, of)
        explored.add(config["rate"])
    assert explored == {0.4, 0.6}


def test_a_member_takes_over_all_settings_of_its_source():
    """Among them the trial's id, by which the ledger and the run folder know it."""
    source = SimpleNamespace(config={"rate": 0.5, "trial": "source"})
    member = SimpleNamespace(config={"rate": 0.1, "trial": "member"})
    config, _ = population()._get_new_config(member, source)
    assert config["trial"] == "source"


# ---- checkpoints of Train and Tune ---------------------------------------------------------------


def checkpoint_manager(root: Path):
    """Return Train's manager of checkpoints for a run in `root`, as its controller makes it."""
    from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import CheckpointManager
    from ray.train.v2._internal.execution.storage import StorageContext

    config = SimpleNamespace(
        num_to_keep=2, checkpoint_score_attribute=None, checkpoint_score_order="max"
    )
    return CheckpointManager(config, StorageContext(str(root), "run"))


def report(manager, root: Path, epoch: int) -> None:
    """Report a checkpoint to Train's manager, as its controller does for a worker."""
    from ray.train import Checkpoint
    from ray.train.v2._internal.execution.training_report import _TrainingReport

    folder = root / "run" / f"checkpoint_{epoch}"
    if not (root / "run").is_file():
        folder.mkdir(parents=True)
        (folder / "model.bin").write_bytes(bytes(100))
    checkpoint = Checkpoint.from_directory(str(folder))
    done = _TrainingReport(checkpoint=checkpoint, metrics={"epoch": epoch}, validation=False)

    async def register() -> None:
        manager.register_checkpoint(done)

    asyncio.run(register())


def take_away(root: Path) -> None:
    """Put a file in the place of a store, so that nothing can be written there."""
    shutil.rmtree(root / "run")
    (root / "run").write_text("away")


def test_train_raises_where_the_store_is_away(tmp_path):
    """Its controller writes a list of checkpoints at each report, also of those sent later."""
    manager = checkpoint_manager(tmp_path)
    report(manager, tmp_path, 1)
    take_away(tmp_path)
    with pytest.raises(OSError, match="run"):
        report(manager, tmp_path, 2)


def test_train_ends_a_run_whose_store_is_away_however_many_failures_it_may_have():
    import ray.train
    from ray.train.v2._internal.execution.failure_handling import (
        FailureDecision,
        create_failure_policy,
    )

    config = ray.train.FailureConfig(max_failures=-1, controller_failure_limit=-1)
    error = ray.train.ControllerError(OSError("the bucket does not answer"))
    assert create_failure_policy(config).make_decision(error) == FailureDecision.RAISE


def test_train_hands_out_a_damaged_checkpoint(tmp_path):
    """It keeps no digests, and does not look for the checkpoint before."""
    manager = checkpoint_manager(tmp_path)
    for epoch in (1, 2):
        report(manager, tmp_path, epoch)
    (tmp_path / "run" / "checkpoint_2" / "model.bin").write_bytes(b"")
    found = checkpoint_manager(tmp_path).latest_checkpoint_result.checkpoint
    assert Path(found.path).name == "checkpoint_2"


def test_train_does_not_start_where_a_checkpoint_is_missing(tmp_path):
    from ray.train.v2._internal.exceptions import CheckpointManagerInitializationError

    manager = checkpoint_manager(tmp_path)
    for epoch in (1, 2):
        report(manager, tmp_path, epoch)
    shutil.rmtree(tmp_path / "run" / "checkpoint_2")
    with pytest.raises(CheckpointManagerInitializationError, match="does not exist anymore"):
        checkpoint_manager(tmp_path)


def test_tune_raises_in_a_trial_where_the_store_is_away(tmp_path):
    from ray.train._internal.storage import StorageContext

    storage = StorageContext(str(tmp_path), "run", trial_dir_name="trial")
    (tmp_path / "saved").mkdir()
    take_away(tmp_path)
    with pytest.raises((OSError, RuntimeError)):
        storage.persist_current_checkpoint(tune.Checkpoint.from_directory(str(tmp_path / "saved")))


def test_tune_takes_no_checkpoint_from_within_an_epoch(monkeypatch):
    """What is reported with one must have the metric that schedulers and searchers judge by."""
    monkeypatch.delenv("TUNE_DISABLE_STRICT_METRIC_CHECKING", raising=False)
    judged = SimpleNamespace(metric="val/mIoU")
    controller = SimpleNamespace(_metric="val/mIoU", _scheduler_alg=judged, _search_alg=judged)
    with pytest.raises(ValueError, match="did not include the specified metric"):
        TuneController._validate_result_metrics(controller, {"epoch": 1, "step": 100})
