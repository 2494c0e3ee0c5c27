from .comparison import (
    compare_runs as compare_runs,
)
from .comparison import (
    find_run_or_part as find_run_or_part,
)
from .report import (
    write_report as write_report,
)
