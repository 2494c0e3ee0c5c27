"""Measure what a training step or an evaluation costs (`python -m aml.bench`).

May import: every other package of aml.
Public names: none.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
