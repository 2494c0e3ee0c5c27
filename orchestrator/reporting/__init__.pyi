from .comparison.groups import (
    find_run_or_part as find_run_or_part,
)
from .comparison.runs import (
    compare_runs as compare_runs,
)
from .report import (
    write_report as write_report,
)
