from .budget import (
    BudgetTracker as BudgetTracker,
    Usage as Usage,
    budget_message as budget_message,
    is_used_up as is_used_up,
    money as money,
)
from .estimates.cost import (
    equal_epochs as equal_epochs,
    flops_ratios as flops_ratios,
)
from .estimates.estimate import (
    Estimate as Estimate,
    SweepSize as SweepSize,
    describe_plan as describe_plan,
    estimate_at_launch as estimate_at_launch,
    size_sweep as size_sweep,
)
from .estimates.power import (
    PowerQuestion as PowerQuestion,
    describe_power as describe_power,
    power_question as power_question,
)
from .estimates.throughput import (
    ThroughputEstimator as ThroughputEstimator,
)
from .methods.dashboard import (
    STUDIES as STUDIES,
    write_studies as write_studies,
)
from .plan import (
    Plan as Plan,
)
from .populations.generations import (
    Generations as Generations,
)
from .trial_spec import (
    TrialSpec as TrialSpec,
    trial_from_json as trial_from_json,
    trial_id as trial_id,
    trial_to_json as trial_to_json,
)
