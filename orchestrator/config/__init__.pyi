from .arms import (
    ARMS as ARMS,
    AT_COMPUTE as AT_COMPUTE,
    active_params as active_params,
    base_arm as base_arm,
    masking_arm as masking_arm,
    own_settings as own_settings,
    unbundle as unbundle,
)
from .explain import (
    defaults_of as defaults_of,
    explain_settings as explain_settings,
    json_schema as json_schema,
    settings_reference as settings_reference,
    show_settings as show_settings,
)
from .loader import (
    from_dict as from_dict,
    from_stored as from_stored,
    from_text as from_text,
    load as load,
    stored_settings as stored_settings,
)
from .matrix import (
    Cell as Cell,
    Matrix as Matrix,
    MatrixConfig as MatrixConfig,
    load_matrix as load_matrix,
)
from .methods import (
    METHODS as METHODS,
    PACKAGES as PACKAGES,
    SCHEDULERS as SCHEDULERS,
    AshaScheduler as AshaScheduler,
    NoScheduler as NoScheduler,
    OptunaMethod as OptunaMethod,
    PbtScheduler as PbtScheduler,
    TpeMethod as TpeMethod,
)
from .old_spellings import upgrade_overrides as upgrade_overrides
from .resources import (
    ResourcesConfig as ResourcesConfig,
    StorageConfig as StorageConfig,
    TrackingConfig as TrackingConfig,
)
from .schema import (
    DataConfig as DataConfig,
    Experiment as Experiment,
    SynthConfig as SynthConfig,
    code_version as code_version,
)
from .search import (
    BudgetConfig as BudgetConfig,
    Objective as Objective,
    SearchConfig as SearchConfig,
    SeedsConfig as SeedsConfig,
)
from .validation import (
    CHANGEABLE as CHANGEABLE,
    check_budget as check_budget,
    check_run as check_run,
    check_sweep as check_sweep,
    hourly_price as hourly_price,
    setting_warnings as setting_warnings,
)
