"""Networks for referring image segmentation, one file each, and the registry that names them.

May import: aml.masking and what it may import.
Public names: Features, MODELS, Model, build_model, check, find_class, load_published, make_options,
    open_published, published_tokenizer, resolved.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
