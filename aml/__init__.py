"""Alignment-aware masked learning for referring image segmentation: pure PyTorch, no cluster, no tracking, no network."""

from importlib import import_module

from aml.errors import UserError

__all__ = ["Masker", "MaskingConfig", "UserError", "preset"]


def __getattr__(name: str):
    # torch takes seconds to import; a command line that only prints its help must not wait for it
    if name in __all__:
        return getattr(import_module("aml.masking"), name)
    raise AttributeError(f"module aml has no attribute {name}")
