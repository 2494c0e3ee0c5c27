from .schema import (
    AT_COMPUTE as AT_COMPUTE,
)
from .schema import (
    METHODS as METHODS,
)
from .schema import (
    BudgetConfig as BudgetConfig,
)
from .schema import (
    DataConfig as DataConfig,
)
from .schema import (
    Experiment as Experiment,
)
from .schema import (
    TrackingConfig as TrackingConfig,
)
from .schema import (
    base_arm as base_arm,
)
from .schema import (
    code_version as code_version,
)
from .schema import (
    from_dict as from_dict,
)
from .schema import (
    from_text as from_text,
)
from .schema import (
    load as load,
)
