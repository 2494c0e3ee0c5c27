"""Ray: start it, place workers on it, shut it down, submit jobs to it.

May import: orchestrator.storage and what it may import.
Public names: DRIVER_CPUS, Placement, SHUTDOWN, ack_shutdown, available_resources, check_command,
    cluster_nodes, connect_jobs, data_task_options, driver_node_options, follow_job,
    hide_credentials_from_tune, idle_gpus, init_ray, is_pending, job_line, job_logs, list_jobs,
    package_working_dir, plan_placement, planned_nodes, quiet_tune, register_placement_group,
    remove_placement_groups, request_checkpoints, required_resources, run_on_worker,
    runtime_environment, shutdown_notice, stop_job, submit_job, total_resources, worker_resources.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
