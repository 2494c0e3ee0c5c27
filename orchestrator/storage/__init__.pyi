from .filesystem import (
    Filesystem as Filesystem,
)
from .lease import (
    request_stop as request_stop,
    stop_requested as stop_requested,
)
from .listing import (
    is_lost as is_lost,
    lock_holder as lock_holder,
    prune_runs as prune_runs,
    run_facts as run_facts,
    run_line as run_line,
)
from .paths import (
    bucket_of as bucket_of,
    check_root as check_root,
    local_path as local_path,
    storage_root as storage_root,
    to_uri as to_uri,
)
from .records import (
    LEDGER as LEDGER,
    add_note as add_note,
    drop_drafts as drop_drafts,
    read_history as read_history,
    read_notes as read_notes,
    read_state as read_state,
    read_trials as read_trials,
)
from .run import (
    KINDS as KINDS,
    Run as Run,
    find_run as find_run,
    list_runs as list_runs,
)
from .start import (
    begin_run as begin_run,
    start_run as start_run,
)
from .synced_folder import (
    SyncedFolder as SyncedFolder,
)
from .uploads import (
    BackgroundUploader as BackgroundUploader,
    bucket_problem as bucket_problem,
    delete_remote as delete_remote,
    download as download,
    try_download as try_download,
    upload_from_every_node as upload_from_every_node,
    weights_only as weights_only,
    without_checkpoints as without_checkpoints,
)
