"""Alignment-aware masked learning for referring image segmentation, in pure PyTorch.

Nothing here needs a cluster, experiment tracking or a network.
"""

from importlib import import_module
from typing import Any

from aml.errors import UserError

__version__ = "0.1.0"
"""The version of the project; pyproject.toml reads it from here."""

__all__ = ["Masker", "MaskingConfig", "UserError", "preset"]

FROM_MASKING = ("Masker", "MaskingConfig", "preset")


def __getattr__(name: str) -> Any:
    # torch takes seconds to import; a command line that only prints its help must not wait for it
    if name in FROM_MASKING:
        return getattr(import_module("aml.masking"), name)
    raise AttributeError(f"module aml has no attribute {name}")
