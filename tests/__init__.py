"""Tests of amlris, in folders that mirror its packages."""

from tests.support import unremembered  # noqa: F401  (before any package of the project)
