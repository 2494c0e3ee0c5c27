"""Test the benchmark of the driver's bookkeeping.

All of the bookkeeping is done, and a trial costs the same however many there were before it.
"""

import pytest

from aml.errors import UserError
from orchestrator.benchmarks import scale
from orchestrator.search.methods.study import TPE_BEST, TPE_KEPT, Study


@pytest.mark.parametrize("method", ["grid", "tpe"])
def test_every_trial_is_handed_out_heard_and_written_down(method):
    row = scale.measure_count(20, method)
    assert (
        row["trials"] == 20
        and 20 <= row["epochs"] <= 20 * scale.EPOCHS
        and row["ledger_mb"] > 0
        and row["trials_per_minute"] > 0
    )
    # calls: look for the run, create it, its params, its data, its end and the end's tags;
    # metrics are sent in batches of many trials
    assert 6 <= row["mlflow_calls_per_trial"] <= 6 + scale.EPOCHS + 1


def test_counts_and_methods_that_cannot_be_are_refused():
    with pytest.raises(UserError, match="bench scale was asked for"):
        scale.measure_scale([0], "random")
    with pytest.raises(UserError, match="one of grid, random, tpe"):
        scale.measure_scale([10], "guess")


def test_tpe_reads_the_best_and_the_latest_of_many_trials(tmp_path):
    study = Study(scale.experiment(tmp_path, 9, "tpe"), "aml/calibrated")
    asked = study.ask("still running", 0)
    for i in range(2 * TPE_KEPT):
        study.tell({"trial": f"t{i}", "overrides": {"aml.tau": 0.2, "aml.rho": 0.3}}, [100.0 - i])
    *done, running = study.study.get_trials()
    best_and_latest = [*range(TPE_BEST), *range(TPE_KEPT, 2 * TPE_KEPT)]
    assert [t.value for t in done] == [100.0 - i for i in best_and_latest]
    assert running.params == asked and running.value is None
    study.tell({"trial": "still running", "overrides": asked}, [7.0])
    assert study.study.get_trials()[-1].value == 7.0 and not study.running
    assert set(study.ask("next", 1)) == {"aml.tau", "aml.rho"}
