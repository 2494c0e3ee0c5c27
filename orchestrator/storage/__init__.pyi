from .filesystem import (
    READERS as READERS,
)
from .filesystem import (
    Filesystem as Filesystem,
)
from .history import (
    add_note as add_note,
)
from .history import (
    drop_drafts as drop_drafts,
)
from .history import (
    read_history as read_history,
)
from .history import (
    read_notes as read_notes,
)
from .lease import (
    request_stop as request_stop,
)
from .lease import (
    stop_requested as stop_requested,
)
from .paths import (
    bucket_of as bucket_of,
)
from .paths import (
    local_path as local_path,
)
from .paths import (
    root_of as root_of,
)
from .paths import (
    storage_root as storage_root,
)
from .paths import (
    to_uri as to_uri,
)
from .run import (
    KINDS as KINDS,
)
from .run import (
    Run as Run,
)
from .run import (
    begin_run as begin_run,
)
from .run import (
    find_run as find_run,
)
from .run import (
    git_state as git_state,
)
from .run import (
    is_lost as is_lost,
)
from .run import (
    list_runs as list_runs,
)
from .run import (
    lock_holder as lock_holder,
)
from .run import (
    processor as processor,
)
from .run import (
    prune_runs as prune_runs,
)
from .run import (
    run_line as run_line,
)
from .run import (
    start_run as start_run,
)
from .snapshot import (
    TRIAL as TRIAL,
)
from .synced_folder import (
    SyncedFolder as SyncedFolder,
)
from .uploads import (
    ANSWER_S as ANSWER_S,
)
from .uploads import (
    BackgroundUploader as BackgroundUploader,
)
from .uploads import (
    bucket_problem as bucket_problem,
)
from .uploads import (
    delete_remote as delete_remote,
)
from .uploads import (
    download as download,
)
from .uploads import (
    try_download as try_download,
)
from .uploads import (
    upload_from_every_node as upload_from_every_node,
)
from .uploads import (
    weights_only as weights_only,
)
from .uploads import (
    without_checkpoints as without_checkpoints,
)
from .uri import (
    join_uri as join_uri,
)
from .uri import (
    refuse_keys as refuse_keys,
)
