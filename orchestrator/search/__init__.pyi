from .budget import (
    BudgetTracker as BudgetTracker,
)
from .budget import (
    Usage as Usage,
)
from .budget import (
    budget_message as budget_message,
)
from .budget import (
    hourly_price as hourly_price,
)
from .budget import (
    is_used_up as is_used_up,
)
from .cost import (
    equal_epochs as equal_epochs,
)
from .cost import (
    flops_ratios as flops_ratios,
)
from .forecast import (
    describe_plan as describe_plan,
)
from .forecast import (
    estimate_at_launch as estimate_at_launch,
)
from .generations import (
    Generations as Generations,
)
from .pace import (
    ThroughputEstimator as ThroughputEstimator,
)
from .plan import (
    Plan as Plan,
)
from .plan import (
    check_plan as check_plan,
)
from .trial_spec import (
    TrialSpec as TrialSpec,
)
from .trial_spec import (
    trial_from_json as trial_from_json,
)
from .trial_spec import (
    trial_to_json as trial_to_json,
)
