"""Hide what does not match the sentence: alignment scores (PMME), block masks (AFM), methods.

May import: aml.synthetic and what it may import.
Public names: Alignment, BlockDraw, CALIBRATION_BATCHES, DIAGNOSTICS, Mask, MaskInputs, MaskSums,
    Masker, MaskingConfig, MaskingMethod, PRESETS, Pass, Predictions, SCORES, Step,
    blocks_to_pixels, measure_masks, preset.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
