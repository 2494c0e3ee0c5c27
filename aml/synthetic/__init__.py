"""Generate drawn scenes with referring expressions, written as REFER files.

May import: aml.data and what it may import.
Public names: KIND, POSITION_WORDS, generate_dataset.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
