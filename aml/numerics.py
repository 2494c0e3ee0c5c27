"""Declares the version of what is computed, which is part of every run's name."""

NUMERICS_VERSION = 1
"""Raise it by one in a commit that changes what a training computes from given settings and data.

Raise it for another formula, default, draw, order of the samples or rounding: a run that was begun
before is then not continued by the new code under the same name. Leave it for docstrings, messages,
speed and new settings whose default computes what was computed before.
tests/aml/training/test_numerics.py fails where a training of a few steps gives other losses.
"""
