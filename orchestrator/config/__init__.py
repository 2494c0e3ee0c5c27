"""Settings: what may be set, how it is read, checked and explained.

An experiment is a YAML file, perhaps built on another, and key=value overrides. `load` makes an
`Experiment` of them or raises a `UserError` of one sentence. `schema`, `search`, `methods` and
`resources` have the settings; `yaml_text`, `loader` and `matrix` read them; `space` and
`validation` check them against each other; `arms` knows the arms; `explain` shows settings to
people and editors.

This package starts in a fraction of a second: it imports no torch, Ray or MLflow.

May import: orchestrator.utils and torch-free modules of aml.
Public names: ARMS, AT_COMPUTE, AshaScheduler, BudgetConfig, CHANGEABLE, Cell, DataConfig,
    Experiment, METHODS, Matrix, MatrixConfig, NoScheduler, Objective, OptunaMethod, PACKAGES,
    PbtScheduler, ResourcesConfig, SCHEDULERS, SearchConfig, SeedsConfig, StorageConfig,
    SynthConfig, TpeMethod, TrackingConfig, active_params, base_arm, check_budget, check_run,
    check_sweep, code_version, defaults_of, explain_settings, from_dict, from_stored, from_text,
    hourly_price, json_schema, load, load_matrix, masking_arm, own_settings, setting_warnings,
    settings_reference, show_settings, stored_settings, unbundle, upgrade_overrides.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
