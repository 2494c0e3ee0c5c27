"""Predict masks with a trained model, and draw them.

May import: aml.training and what it may import.
Public names: PREDICTION, Segmenter, draw_overlay, panels, png, to_original, training_rows,
    usual_precision.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
