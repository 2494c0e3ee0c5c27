"""Train one run with Ray Train, or one trial in its own process.

May import: orchestrator.reporting and what it may import.
Public names: BlockSource, RunContext, failure_metrics, limit_gpu_memory, load_items,
    make_learner, make_trainer, restore_from_bucket, run_training, train.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
