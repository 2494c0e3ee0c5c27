"""Ray: start it, place workers on it, shut it down, submit jobs to it.

May import: orchestrator.storage and what it may import.
Public names: Placement, SHUTDOWN, ack_shutdown, add_sigint_handler, available_resources,
    check_command, check_shared_folder, cluster_nodes, configure_tune, connect_jobs,
    data_task_options, driver_node_options, has_place, idle_gpus, init_ray, is_pending, kill_trial,
    package_working_dir, plan_placement, planned_nodes, progress_of, put_progress,
    register_placement_group, remove_placement_groups, request_checkpoints, required_resources,
    run_on_worker, runtime_environment, shutdown_notice, total_resources, worker_resources.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
