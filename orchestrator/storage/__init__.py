"""Run folders and their copy in a bucket: paths, file systems, history, leases, uploads.

May import: orchestrator.config and what it may import.
Public names: BackgroundUploader, Filesystem, KINDS, Run, SyncedFolder, add_note, begin_run,
    bucket_of, bucket_problem, delete_remote, download, drop_drafts, find_run, is_lost,
    list_runs, local_path, lock_holder, prune_runs, read_history, read_notes,
    refuse_keys, request_stop, run_line, start_run, stop_requested, storage_root, to_uri,
    try_download, upload_from_every_node, weights_only, without_checkpoints.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
