from .hidden_blocks import (
    FixedAlignmentMasker as FixedAlignmentMasker,
    PictureMasking as PictureMasking,
    shown_masking as shown_masking,
)
from .segmenter import (
    Segmenter as Segmenter,
    default_precision as default_precision,
    resize_to_original as resize_to_original,
)
from .visualize import (
    PREDICTION_COLOUR as PREDICTION_COLOUR,
    draw_heatmap as draw_heatmap,
    draw_overlay as draw_overlay,
    draw_training_grid as draw_training_grid,
    encode_png as encode_png,
    example_panels as example_panels,
)
