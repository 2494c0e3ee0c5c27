from .command import (
    train as train,
)
from .context import (
    BlockSource as BlockSource,
    RunContext as RunContext,
)
from .loop import (
    failure_metrics as failure_metrics,
    limit_gpu_memory as limit_gpu_memory,
    load_items as load_items,
    make_learner as make_learner,
    restore_from_bucket as restore_from_bucket,
    run_training as run_training,
)
from .trainer import (
    make_trainer as make_trainer,
)
