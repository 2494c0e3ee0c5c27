from . import sweep as sweep
from .notebook import (
    compare as compare,
    evaluate as evaluate,
    load as load,
    report as report,
    run_result as run_result,
    runs as runs,
)
