from .failures import (
    NON_RETRYABLE as NON_RETRYABLE,
)
from .failures import (
    failure as failure,
)
from .failures import (
    root_cause as root_cause,
)
from .files import (
    atomic_write as atomic_write,
)
from .files import (
    without_nan as without_nan,
)
from .locks import (
    exclusive_lock as exclusive_lock,
)
from .locks import (
    is_dead as is_dead,
)
from .locks import (
    lease_seconds as lease_seconds,
)
from .locks import (
    lease_text as lease_text,
)
from .locks import (
    seconds_setting as seconds_setting,
)
from .process_memory import (
    PeakMemory as PeakMemory,
)
from .redaction import (
    looks_secret as looks_secret,
)
from .redaction import (
    redact as redact,
)
from .redaction import (
    redact_all as redact_all,
)
from .signals import (
    INTERRUPTED as INTERRUPTED,
)
from .signals import (
    TERMINATING as TERMINATING,
)
from .signals import (
    on_interrupt as on_interrupt,
)
from .signals import (
    restored_handlers as restored_handlers,
)
from .signals import (
    save_on_terminate as save_on_terminate,
)
from .signals import (
    stop_at_once as stop_at_once,
)
