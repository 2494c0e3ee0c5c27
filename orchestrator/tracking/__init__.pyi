from .mlflow_client import (
    ExperimentClient as ExperimentClient,
)
from .mlflow_server import (
    check_store as check_store,
    store_problem as store_problem,
    tracking_uri as tracking_uri,
)
from .mlflow_tracker import (
    Tracker as Tracker,
)
from .resolve import (
    checkpoint_owner as checkpoint_owner,
    find_checkpoint as find_checkpoint,
)
from .run_tracking import (
    COMPLETED as COMPLETED,
    deliver_tracking as deliver_tracking,
    describe_dataset as describe_dataset,
    end_lost as end_lost,
    log_dataset as log_dataset,
    open_tracker as open_tracker,
    run_tags as run_tags,
)
from .tracker import (
    MemoryTracker as MemoryTracker,
    TrackerBase as TrackerBase,
)
