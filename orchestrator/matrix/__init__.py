"""Run a matrix of experiments: a sweep for each data set and model, and one table of all.

May import: orchestrator.sweep and what it may import.
Public names: describe_matrix, run_matrix.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
