"""Continue population-based training whose exploit step could not be saved."""

import json

import pytest

from aml.errors import NotSaved
from orchestrator.search.populations import generations
from orchestrator.storage import run as run_module
from tests.orchestrator.search.test_population_in_a_bucket import PBT_OF_THREE
from tests.orchestrator.sweep.test_sweep import TINY

pytestmark = pytest.mark.fault


def test_a_move_that_cannot_be_saved_ends_the_sweep_in_one_sentence_and_the_same_command_makes_it(
    tmp_path, ray_session, monkeypatch
):
    (tmp_path / "pbt.yaml").write_text(TINY)
    line = [
        "sweep",
        str(tmp_path / "pbt.yaml"),
        f"storage.root={tmp_path}",
        "tracking.uri=none",
        *PBT_OF_THREE,
    ]
    with monkeypatch.context() as patch:
        patch.setattr(
            generations,
            "_replace",
            lambda *_: (_ for _ in ()).throw(
                NotSaved("there is no room; make room and give the same command again")
            ),
        )
        code, text = ray_session(line)
    assert code == 1 and "error: there is no room; make room" in text and "Traceback" not in text
    (run,) = run_module.list_runs(tmp_path)
    assert (
        run.state["state"] == "failed"
        and run.ledger() == []
        and len((run.folder / generations.FILE).read_text().splitlines()) == 1
    )
    code, text = ray_session(line)
    assert code == 0 and f"continuing {run.name}" in text, text
    decision, _ = (
        json.loads(entry) for entry in (run.folder / generations.FILE).read_text().splitlines()
    )
    histories = {r["trial"]: r["history"] for r in run.ledger()}
    for member, move in decision["moves"].items():
        assert histories[member][0] == histories[move["from"]][0]
