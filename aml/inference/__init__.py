"""Predict masks with a trained model, and draw them.

May import: aml.training and what it may import.
Public names: PREDICTION_COLOUR, FixedAlignmentMasker, PictureMasking, Segmenter,
    default_precision, draw_heatmap, draw_overlay, draw_training_grid, encode_png, example_panels,
    resize_to_original, shown_masking.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
