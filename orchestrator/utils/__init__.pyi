from .addresses import (
    TRAINING_PAGES as TRAINING_PAGES,
    check_address as check_address,
    is_address as is_address,
    mlflow_pages as mlflow_pages,
    ui_command as ui_command,
)
from .failures import (
    NON_RETRYABLE as NON_RETRYABLE,
    failure as failure,
    root_cause as root_cause,
)
from .files import (
    atomic_write as atomic_write,
    without_nan as without_nan,
)
from .locks import (
    exclusive_lock as exclusive_lock,
    holder_of as holder_of,
    is_dead as is_dead,
    lease_seconds as lease_seconds,
    lease_text as lease_text,
    process_lock as process_lock,
    seconds_setting as seconds_setting,
)
from .messages import (
    break_silence as break_silence,
    called_as as called_as,
    print_messages as print_messages,
)
from .network import (
    listening_socket as listening_socket,
)
from .process_memory import (
    PeakMemory as PeakMemory,
)
from .progress import (
    Progress as Progress,
    duration as duration,
    progress_logger as progress_logger,
    quieten as quieten,
    range_text as range_text,
    shows_live as shows_live,
)
from .provenance import (
    git_state as git_state,
    processor as processor,
)
from .redaction import (
    learn_secrets as learn_secrets,
    looks_secret as looks_secret,
    redact as redact,
    redact_all as redact_all,
)
from .signals import (
    INTERRUPTED as INTERRUPTED,
    NOT_SAVED as NOT_SAVED,
    TERMINATING as TERMINATING,
    on_interrupt as on_interrupt,
    restored_handlers as restored_handlers,
    save_on_terminate as save_on_terminate,
    stop_at_once as stop_at_once,
)
from .waits import (
    announced_wait as announced_wait,
)
