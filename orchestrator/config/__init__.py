"""Settings of an experiment: schema, YAML, overrides, checks.

May import: orchestrator.utils and torch-free modules of aml.
Public names: AT_COMPUTE, BudgetConfig, DataConfig, Experiment, METHODS, TrackingConfig, base_arm,
    code_version, from_dict, from_text, load.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
