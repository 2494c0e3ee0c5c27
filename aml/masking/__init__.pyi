from .alignment import (
    Alignment as Alignment,
)
from .config import (
    SCORES as SCORES,
    MaskingConfig as MaskingConfig,
    preset as preset,
)
from .diagnostics import (
    DIAGNOSTICS as DIAGNOSTICS,
    MaskSums as MaskSums,
    measure_masks as measure_masks,
)
from .drawing import (
    BlockDraw as BlockDraw,
)
from .masker import (
    Masker as Masker,
)
from .method import (
    MaskingMethod as MaskingMethod,
)
from .passes import (
    Mask as Mask,
    MaskInputs as MaskInputs,
    Pass as Pass,
)
from .presets import (
    PRESETS as PRESETS,
)
from .selection import (
    blocks_to_pixels as blocks_to_pixels,
)
from .stage1.align import (
    CALIBRATION_BATCHES as CALIBRATION_BATCHES,
    Predictions as Predictions,
)
from .step import (
    Step as Step,
)
