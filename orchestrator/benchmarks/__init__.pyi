from .data_reading import (
    measure_data as measure_data,
)
from .data_scale import (
    measure_readers as measure_readers,
)
from .scale import (
    measure_scale as measure_scale,
)
from .search_replay import (
    measure_search as measure_search,
)
from .trial_start import (
    measure_trial as measure_trial,
)
