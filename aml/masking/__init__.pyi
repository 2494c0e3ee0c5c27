from .alignment import (
    Alignment as Alignment,
)
from .config import (
    PRESETS as PRESETS,
)
from .config import (
    SCORES as SCORES,
)
from .config import (
    MaskingConfig as MaskingConfig,
)
from .config import (
    preset as preset,
)
from .diagnostics import (
    DIAGNOSTICS as DIAGNOSTICS,
)
from .diagnostics import (
    MaskSums as MaskSums,
)
from .diagnostics import (
    measure_masks as measure_masks,
)
from .masker import (
    CALIBRATION_BATCHES as CALIBRATION_BATCHES,
)
from .masker import (
    Mask as Mask,
)
from .masker import (
    Masker as Masker,
)
from .masker import (
    Pass as Pass,
)
from .selection import (
    blocks_to_pixels as blocks_to_pixels,
)
