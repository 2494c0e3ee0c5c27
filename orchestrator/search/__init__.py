"""Decide which trial comes next: plan, search space, populations, budget, estimates. Run no trial.

May import: orchestrator.training and what it may import.
Public names: BudgetTracker, Estimate, Generations, Plan, PowerQuestion, STUDIES, SweepSize,
    ThroughputEstimator, TrialSpec, Usage, budget_message, describe_plan, describe_power,
    equal_epochs, estimate_at_launch, flops_ratios, is_used_up, money, power_question, size_sweep,
    trial_from_json, trial_id, trial_to_json, write_studies.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
