"""Decide which trial comes next: plan, search space, populations, budget, estimates. Run no trial.

May import: orchestrator.training and what it may import.
Public names: BudgetTracker, Generations, Plan, PowerQuestion, ThroughputEstimator, TrialSpec,
    Usage, budget_message, describe_plan, equal_epochs, estimate_at_launch, flops_ratios,
    is_used_up, power_question, trial_from_json, trial_to_json.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
