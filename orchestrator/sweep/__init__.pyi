from .command import (
    SweepEnd as SweepEnd,
    run_sweep as run_sweep,
)
from .driver import (
    Sweep as Sweep,
)
from .notebook_call import (
    sweep_in_notebook as sweep_in_notebook,
)
from .reproduce import (
    reproduce_run as reproduce_run,
)
from .tune.arm_schedulers import (
    PAUSE as PAUSE,
    STOP as STOP,
    ArmSchedulers as ArmSchedulers,
)
