from .functions import (
    compare as compare,
    evaluate as evaluate,
    load as load,
    report as report,
    run_result as run_result,
    runs as runs,
)
from .messages import (
    said_in_a_notebook as said_in_a_notebook,
)
from .tables import (
    Evaluation as Evaluation,
    RunResult as RunResult,
    Table as Table,
)
