"""Helpers that know nothing of experiments: files, locks, messages, signals, redaction, memory.

May import: aml.errors and aml.files.
Public names: INTERRUPTED, NON_RETRYABLE, PeakMemory, TERMINATING, atomic_write, exclusive_lock,
    failure, git_state, holder_of, is_dead, lease_seconds, lease_text, looks_secret, on_interrupt,
    print_messages, process_lock, processor, redact, redact_all, restored_handlers, root_cause,
    save_on_terminate, seconds_setting, stop_at_once, without_nan.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
