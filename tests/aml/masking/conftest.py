"""Fixtures of several files."""

import pytest

from aml.data.batches import train_batches


@pytest.fixture
def batch(items, make_model):
    return next(train_batches(items["train"], make_model(), batch=16, seed=0, epoch=0))
