from .jobs import (
    check_command as check_command,
)
from .jobs import (
    connect_jobs as connect_jobs,
)
from .jobs import (
    follow_job as follow_job,
)
from .jobs import (
    job_line as job_line,
)
from .jobs import (
    job_logs as job_logs,
)
from .jobs import (
    list_jobs as list_jobs,
)
from .jobs import (
    stop_job as stop_job,
)
from .jobs import (
    submit_job as submit_job,
)
from .packaging import (
    package_working_dir as package_working_dir,
)
from .packaging import (
    runtime_environment as runtime_environment,
)
from .placement import (
    DRIVER_CPUS as DRIVER_CPUS,
)
from .placement import (
    Placement as Placement,
)
from .placement import (
    cluster_nodes as cluster_nodes,
)
from .placement import (
    data_task_options as data_task_options,
)
from .placement import (
    driver_node_options as driver_node_options,
)
from .placement import (
    idle_gpus as idle_gpus,
)
from .placement import (
    plan_placement as plan_placement,
)
from .placement import (
    planned_nodes as planned_nodes,
)
from .placement import (
    run_on_worker as run_on_worker,
)
from .placement import (
    total_resources as total_resources,
)
from .placement import (
    worker_resources as worker_resources,
)
from .placement_groups import (
    available_resources as available_resources,
)
from .placement_groups import (
    is_pending as is_pending,
)
from .placement_groups import (
    register_placement_group as register_placement_group,
)
from .placement_groups import (
    remove_placement_groups as remove_placement_groups,
)
from .placement_groups import (
    required_resources as required_resources,
)
from .session import (
    hide_credentials_from_tune as hide_credentials_from_tune,
)
from .session import (
    init_ray as init_ray,
)
from .session import (
    quiet_tune as quiet_tune,
)
from .shutdown import (
    SHUTDOWN as SHUTDOWN,
)
from .shutdown import (
    ack_shutdown as ack_shutdown,
)
from .shutdown import (
    request_checkpoints as request_checkpoints,
)
from .shutdown import (
    shutdown_notice as shutdown_notice,
)
