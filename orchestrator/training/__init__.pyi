from .checks import (
    check_run as check_run,
)
from .checks import (
    setting_warnings as setting_warnings,
)
from .command import (
    train as train,
)
from .loop import (
    failure_metrics as failure_metrics,
)
from .loop import (
    limit_gpu_memory as limit_gpu_memory,
)
from .loop import (
    load_items as load_items,
)
from .loop import (
    make_learner as make_learner,
)
from .loop import (
    restore_from_bucket as restore_from_bucket,
)
from .loop import (
    run_training as run_training,
)
from .trainer import (
    make_trainer as make_trainer,
)
