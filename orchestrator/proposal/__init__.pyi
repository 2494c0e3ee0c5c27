from .experiment_file import (
    write_experiment as write_experiment,
)
from .machine import (
    PHOTO_ENCODERS as PHOTO_ENCODERS,
    Machine as Machine,
    Proposal as Proposal,
    measure_machine as measure_machine,
    propose as propose,
)
from .sources import (
    DataSource as DataSource,
    find_sources as find_sources,
)
