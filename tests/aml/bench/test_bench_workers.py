"""The bench of workers: the same batch three ways, and what cannot be."""

import json

import pytest

from aml.bench import __main__, workers as workers_module
from aml.errors import UserError

SMALL = [
    "--image-size",
    "32",
    "--batch",
    "5",
    "--rounds",
    "2",
    "--device",
    "cpu",
    "--threads",
    "1",
    "--option",
    "width=32",
    "--option",
    "stem=8",
]


def test_two_workers_share_a_batch_that_does_not_divide(capsys):
    __main__.main(["workers", "--workers", "2", *SMALL])
    *text, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    assert found["workers"] == 2 and min(found[f"{way}_ms"] for way in workers_module.WAYS) > 0
    assert found["communication_share"] < 1 and found["speedup"] > 0
    assert "communication and waiting" in text[-1] and "a step of 5: one worker" in text[-2]


@pytest.mark.parametrize("workers, batch", [(1, 4), (5, 4)])
def test_workers_that_cannot_be_are_refused(workers, batch):
    with pytest.raises(UserError, match="at least 2, and a sample for each"):
        workers_module.measure(
            {"name": "small"},
            workers=workers,
            batch=batch,
            size=32,
            precision="fp32",
            device="cpu",
            rounds=1,
        )
