"""Track to MLflow: durable queue, client, models; find the checkpoint that a name means.

May import: orchestrator.data and what it may import.
Public names: COMPLETED, ExperimentClient, MemoryTracker, Tracker, TrackerBase, check_store,
    checkpoint_owner, deliver_tracking, describe_dataset, end_lost, find_checkpoint, log_dataset,
    open_tracker, run_tags, store_problem, tracking_uri.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
