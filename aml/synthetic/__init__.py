"""Generate scenes with referring expressions, drawn or composed of photographs, as REFER files.

May import: aml.data and what it may import.
Public names: KIND, compose_dataset, content_key, generate_dataset.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
