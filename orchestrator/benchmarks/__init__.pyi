from .data_reading import (
    measure_data as measure_data,
)
from .scale import (
    measure_scale as measure_scale,
)
from .trial_start import (
    measure_trial as measure_trial,
)
