"""Test the replay of searches on made-up tables whose answers can be checked by hand."""

import json
import math

import pytest

from aml.errors import UserError
from orchestrator.benchmarks import search_replay
from orchestrator.benchmarks.search_replay import (
    Found,
    Replay,
    epochs_until_good,
    is_good_at,
    measure_search,
    replay,
    settings_of,
)
from orchestrator.benchmarks.search_table import SearchTable, read_table

TAU = "aml.tau"


def made(scores: dict[float, float], epochs: int = 3) -> SearchTable:
    """Return a table of one setting whose two seeds score 0.01 above and below a number."""
    curves = {
        (tau,): [[score + noise] * epochs for noise in (-0.01, 0.01)]
        for tau, score in scores.items()
    }
    return SearchTable("aml/calibrated", "val/mIoU", {TAU: list(scores)}, curves)


FOUR = made({0.2: 0.30, 0.4: 0.60, 0.6: 0.58, 0.8: 0.10})


@pytest.fixture
def ledger(tmp_path):
    """Return a function that writes a ledger of FOUR without some lines, or with one cut short."""

    def write(*left_out: int, short: int | None = None):
        lines = []
        for tau, seeds in ((tau, seeds) for (tau,), seeds in FOUR.curves.items()):
            for seed, curve in enumerate(seeds):
                epochs = 2 if short == len(lines) else 3
                history = [{"epoch": i + 1, "val/mIoU": s} for i, s in enumerate(curve[:epochs])]
                record = {
                    "trial": f"aml_calibrated-search-{len(lines):03d}",
                    "arm": "aml/calibrated",
                    "stage": "search",
                    "seed": seed,
                    "tau": tau,
                    "rho": 0.5,
                    "params": {TAU: tau},
                    "overrides": {TAU: tau},
                    "state": "done",
                    "stopped_by": "",
                    "error": "",
                    "seconds": 1.0,
                    "epochs": epochs,
                    "history": history,
                }
                lines.append(json.dumps(record))
        kept = [line for i, line in enumerate(lines) if i not in left_out]
        path = tmp_path / "ledger.jsonl"
        path.write_text("\n".join(kept) + "\n")
        return path

    return write


def test_the_interval_pools_the_spread_of_a_seed_over_all_settings():
    """Each setting's two scores have a variance of 0.0002; t of 4 degrees of freedom is 2.776."""
    assert FOUR.best == (0.4,) and FOUR.score((0.4,)) == pytest.approx(0.60)
    assert FOUR.margin == pytest.approx(2.776445 * math.sqrt(0.0002 / 2))  # 0.0278
    assert FOUR.good == {(0.4,), (0.6,)}


def test_a_proposal_of_a_range_is_looked_up_at_the_nearest_setting():
    assert FOUR.nearest({TAU: 0.49}) == (0.4,) and FOUR.nearest({TAU: 0.51}) == (0.6,)
    assert FOUR.nearest({TAU: 0.8}) == (0.8,)


def test_a_setting_counts_as_found_from_when_the_search_kept_to_a_good_one():
    bad, good, other = (0.2,), (0.4,), (0.6,)
    assert epochs_until_good(FOUR, [Found(3, bad), Found(5, good), Found(6, other)]) == 5
    assert epochs_until_good(FOUR, [Found(3, good), Found(5, bad), Found(9, other)]) == 9
    assert epochs_until_good(FOUR, [Found(3, good), Found(5, bad)]) == math.inf


def test_of_a_budget_counts_what_the_search_knew_by_then():
    found = [Found(3, (0.2,)), Found(5, (0.4,)), Found(9, (0.8,))]
    known = {3: False, 4: False, 5: True, 8: True, 9: False, 99: False}
    assert {epochs: is_good_at(FOUR, found, epochs) for epochs in known} == known
    assert not is_good_at(FOUR, found, 2), "no trial has ended yet"


def test_a_grid_without_a_scheduler_trains_everything_two_at_a_time():
    found = replay(FOUR, "grid", "none", 0)
    assert [step.epochs for step in found] == [5, 6, 11, 12]
    assert found[-1].setting in FOUR.good


def test_a_grid_lists_its_values_in_another_order_in_each_repetition():
    first = {replay(FOUR, "grid", "none", n)[0].setting for n in range(12)}
    assert len(first) == 4


def test_asha_ends_the_worst_setting_at_its_first_epoch_unless_that_one_came_first():
    for repetition in range(6):
        play = Replay(FOUR, settings_of(FOUR, "grid", "asha, grace 1", repetition))
        assert play.run()[-1].setting in FOUR.good
        (worst,) = [trial for trial, spec in play.specs.items() if spec.overrides == {TAU: 0.8}]
        came_first = worst == "aml_calibrated-search-000"
        assert len(play.histories[worst]) == (3 if came_first else 1)


@pytest.mark.parametrize("scheduler", search_replay.SCHEDULERS)
@pytest.mark.parametrize("method", ["random", "tpe"])
def test_a_search_ends_and_the_same_repetition_gives_the_same(method, scheduler):
    once, again = (replay(FOUR, method, scheduler, 3) for _ in range(2))
    assert once == again and 4 <= once[-1].epochs <= 12


def test_a_method_that_takes_ranges_is_given_them():
    assert settings_of(FOUR, "bayesopt", "none", 0).search.space == {TAU: {"low": 0.2, "high": 0.8}}
    assert replay(FOUR, "bayesopt", "none", 0)[-1].epochs == 12


def test_a_ledger_becomes_rows_that_start_with_the_grid(ledger, monkeypatch):
    monkeypatch.setattr(search_replay, "METHODS", ("grid", "random"))
    result = measure_search(ledger(), repetitions=4)
    assert (result["settings"], result["trainings"], result["epochs"]) == (4, 8, 3)
    assert result["best"] == {TAU: 0.4} and (result["score"], result["margin"]) == (0.6, 0.02776)
    grid, *others = result["rows"]
    assert (grid["method"], grid["scheduler"], grid["ratio"]) == ("grid", "none", 1.0)
    assert (grid["found"], grid["searched"]) == (1.0, 12.0) and len(others) == 11
    assert grid["ratio_to_whole"] == round(grid["epochs"][0] / 12, 3)
    assert list(grid["good_at"]) == [0.125, 0.25, 0.5, 1.0] and grid["good_at"][1.0] == 1.0
    assert grid["good_at"][0.125] == 0.0, "after 1.5 of 12 epochs no trial has ended"
    assert grid["epochs"][1] <= grid["epochs"][0] <= grid["epochs"][2] <= 12


def test_what_is_no_whole_grid_is_refused(ledger, tmp_path):
    with pytest.raises(UserError, match="4 of 4 combinations .* none with a second seed"):
        read_table(ledger(0, 2, 4, 6), None, "val/mIoU")
    with pytest.raises(UserError, match="3 of 4 combinations .* some with a second seed"):
        read_table(ledger(short=3), None, "val/mIoU")
    with pytest.raises(UserError, match="0 of 4 combinations"):
        read_table(ledger(), None, "val/none")
    with pytest.raises(UserError, match="search trials of aml/calibrated, and off was asked"):
        read_table(ledger(), "off", "val/mIoU")
    with pytest.raises(UserError, match="is no file"):
        read_table(tmp_path / "none", None, "val/mIoU")
    with pytest.raises(UserError, match="0 repetitions"):
        measure_search(ledger(), repetitions=0)
