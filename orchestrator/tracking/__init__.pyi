from .mlflow_client import (
    Server as Server,
)
from .mlflow_server import (
    tracking_uri as tracking_uri,
)
from .queue import (
    Tracker as Tracker,
)
from .resolve import (
    checkpoint_owner as checkpoint_owner,
)
from .resolve import (
    find_checkpoint as find_checkpoint,
)
from .run_tracking import (
    deliver_tracking as deliver_tracking,
)
from .run_tracking import (
    describe_dataset as describe_dataset,
)
from .run_tracking import (
    end_lost as end_lost,
)
from .run_tracking import (
    log_dataset as log_dataset,
)
from .run_tracking import (
    open_tracker as open_tracker,
)
from .tracker import (
    MemoryTracker as MemoryTracker,
)
