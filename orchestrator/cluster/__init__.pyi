from .jobs import (
    check_command as check_command,
    connect_jobs as connect_jobs,
)
from .packaging import (
    package_working_dir as package_working_dir,
    runtime_environment as runtime_environment,
)
from .placement import (
    Placement as Placement,
    cluster_nodes as cluster_nodes,
    data_task_options as data_task_options,
    driver_node_options as driver_node_options,
    idle_gpus as idle_gpus,
    plan_placement as plan_placement,
    planned_nodes as planned_nodes,
    run_on_worker as run_on_worker,
    total_resources as total_resources,
    worker_resources as worker_resources,
)
from .placement_groups import (
    available_resources as available_resources,
    has_place as has_place,
    is_pending as is_pending,
    progress_of as progress_of,
    put_progress as put_progress,
    register_placement_group as register_placement_group,
    remove_placement_groups as remove_placement_groups,
    required_resources as required_resources,
)
from .ray_compat import (
    add_sigint_handler as add_sigint_handler,
    kill_trial as kill_trial,
)
from .session import (
    configure_tune as configure_tune,
    init_ray as init_ray,
)
from .shared_folder import (
    check_shared_folder as check_shared_folder,
)
from .shutdown import (
    SHUTDOWN as SHUTDOWN,
    ack_shutdown as ack_shutdown,
    request_checkpoints as request_checkpoints,
    shutdown_notice as shutdown_notice,
)
