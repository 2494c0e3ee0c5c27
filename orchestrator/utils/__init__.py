"""Helpers that know nothing of experiments: files, locks, messages, waits, signals, redaction.

May import: aml.errors and aml.files.
Public names: INTERRUPTED, NON_RETRYABLE, NOT_SAVED, PeakMemory, Progress, TERMINATING,
    TRAINING_PAGES, announced_wait, atomic_write, break_silence, called_as, check_address, duration,
    exclusive_lock, failure, git_state, holder_of, is_address, is_dead, learn_secrets,
    lease_seconds, lease_text, listening_socket, looks_secret, mlflow_pages, on_interrupt,
    print_messages, process_lock, processor, progress_logger, quieten, range_text, redact,
    redact_all, restored_handlers, root_cause, save_on_terminate, seconds_setting, shows_live,
    stop_at_once, ui_command, without_nan.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
