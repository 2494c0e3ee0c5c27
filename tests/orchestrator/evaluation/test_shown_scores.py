"""What `evaluate` prints: per cent, while the files hold shares of 1."""

import json

from orchestrator import reporting
from orchestrator.cli import model_commands


def test_scores_are_shown_in_per_cent_and_stored_as_shares(tmp_path, monkeypatch, capsys):
    scores = {"mIoU": 0.3615, "oIoU": 0.3, "P@0.5": 0.25, "n": 4}
    groups = {"val": {"size": {"small": scores}}}
    (tmp_path / "breakdown.json").write_text(json.dumps(groups))
    monkeypatch.setattr(reporting, "write_intervals", lambda out: {"val": {"mIoU": [0.3, 0.42]}})
    monkeypatch.setattr(reporting, "evaluation_tables", lambda outs: {"evaluations": []})
    model_commands._show_evaluation(tmp_path, {"val": scores})
    text = capsys.readouterr().out
    head, total, interval, group, *_ = text.splitlines()
    assert head == "scores in %; the files hold shares of 1"
    assert total.split() == ["val", "mIoU", "36.15", "oIoU", "30.00", "P@0.5", "25.00", "n", "4"]
    assert interval.endswith("mIoU 30.00 to 42.00") and "mIoU 36.15" in group
    assert "0.3615" not in text
    assert json.loads((tmp_path / "breakdown.json").read_text()) == groups
