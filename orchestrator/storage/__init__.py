"""Run folders and their copy in a bucket: paths, file systems, records, leases, uploads.

May import: orchestrator.config and what it may import.
Public names: BackgroundUploader, Filesystem, KINDS, LEDGER, Run, SyncedFolder, add_note, begin_run,
    bucket_of, bucket_problem, check_root, delete_remote, download, drop_drafts, find_run, is_lost,
    list_runs, local_path, lock_holder, prune_runs, read_history, read_notes, read_state,
    read_trials, request_stop, run_facts, run_line, start_run, stop_requested, storage_root,
    to_uri, try_download, upload_from_every_node, weights_only, without_checkpoints.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
