"""Private interfaces of Ray that this project uses, in one place.

They may change in any release. `CHECKED_WITH` names the version with which they were checked, and a
test says that they still exist. Each is used because Ray offers no public way:

- the internal key-value store passes short messages between processes of one job that outlive the
  process that wrote them, without an actor of their own;
- the draining nodes are known to the public API only inside a Ray Train worker;
- a `PlacementGroup` can be rebuilt in another process only from its id;
- Ray's processes join the process group of the command that starts them;
- Tune copies AWS keys into the runtime environment of its trials;
- the log folder of a start that failed is not returned by it;
- Tune has no call that ends one trial whose process hangs;
- Ray Train's own handler of an interruption cannot be replaced.

docs/ray_checkpoints.md says what would have to change in Ray for each.
"""

import contextlib
import logging
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer
    from ray.tune.experiment import Trial
    from ray.util.placement_group import PlacementGroup

CHECKED_WITH = "2.60.0"

PRIVATE = (
    "ray._common.utils:get_default_ray_temp_dir",
    "ray._private.services:ConsolePopen",
    "ray._private.state:state.get_draining_nodes",
    "ray._raylet:PlacementGroupID",
    "ray.experimental.internal_kv:_internal_kv_del",
    "ray.experimental.internal_kv:_internal_kv_exists",
    "ray.experimental.internal_kv:_internal_kv_get",
    "ray.experimental.internal_kv:_internal_kv_list",
    "ray.experimental.internal_kv:_internal_kv_put",
    "ray.train.v2.api.data_parallel_trainer:DataParallelTrainer._register_sigint_handler",
    "ray.tune.execution.class_cache:ENV_VARS_TO_PROPAGATE",
    "ray.tune.experiment.trial:_TemporaryTrialState",
)
"""`module:attribute` of every private interface that this module uses."""

START_LOGGERS = {
    # They report what is as it should be.
    "ray._private.authentication.authentication_token_setup": logging.ERROR,
    "ray.data._internal.progress": logging.ERROR,
}
"""{logger that Ray uses while it starts: the lowest level that is shown}"""

DATA_LOGGERS = {
    "ray.data": logging.WARNING,
    # They log tracebacks of errors that are raised and reported anyway.
    "ray.data._internal.execution.streaming_executor_state": logging.CRITICAL,
    "ray.data.exceptions": logging.CRITICAL,
}
"""{logger of Ray Data: the lowest level that is shown}; to be set after its import."""

TUNE_LOGGERS = {
    # They look for files of Tune's own loggers, which are off, and explain Tune's own way to
    # resume, whereas the ledger has the results and resumes.
    "ray.tune.analysis.experiment_analysis": logging.ERROR,
    "ray.tune.tune": logging.ERROR,
    "ray.tune.search.searcher": logging.ERROR,
    # It reports settings that it skips since they were tried; others are drawn in their place.
    "ray.tune.search.bayesopt.bayesopt_search": logging.ERROR,
    # They report that Tune's snapshot, which nobody reads, does not fit on a full disk.
    "ray.tune.execution.experiment_state": logging.CRITICAL,
    "ray.train._internal.syncer": logging.CRITICAL,
}
"""{logger of Tune: the lowest level that is shown}"""


def set_levels(levels: dict[str, int]) -> None:
    """Set the levels of loggers, given as {name: level}."""
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def kv_exists(key: bytes) -> bool:
    """Return whether the cluster's key-value store has a key."""
    from ray.experimental import internal_kv

    return internal_kv._internal_kv_exists(key)


def kv_get(key: bytes) -> bytes | None:
    """Return the value of a key; None where the store has none."""
    from ray.experimental import internal_kv

    return internal_kv._internal_kv_get(key)


def kv_put(key: bytes, value: bytes = b"") -> None:
    """Store a value under a key, in place of an earlier one."""
    from ray.experimental import internal_kv

    internal_kv._internal_kv_put(key, value)


def kv_delete_prefix(prefix: bytes) -> None:
    """Delete all keys that start with some bytes."""
    from ray.experimental import internal_kv

    for key in internal_kv._internal_kv_list(prefix):
        internal_kv._internal_kv_del(key)


def is_draining(node_id: str) -> bool:
    """Return whether Ray is draining a node, as after the notice of a spot machine."""
    from ray._private.state import state

    return node_id in state.get_draining_nodes()


def placement_group(group_id: bytes) -> "PlacementGroup":
    """Return the placement group that another process created, given the bytes of its id."""
    from ray._raylet import PlacementGroupID
    from ray.util.placement_group import PlacementGroup

    return PlacementGroup(PlacementGroupID(group_id))


def ray_temp_folder() -> Path:
    """Return the folder that holds a `session_...` folder for each Ray started here."""
    from ray._common.utils import get_default_ray_temp_dir

    return Path(get_default_ray_temp_dir())


def keep_credentials_from_trials() -> None:
    """Stop Tune from copying AWS keys into the runtime environment of trials.

    Ray writes that environment to its log. Each node has keys of its own instead.
    """
    from ray.tune.execution import class_cache

    class_cache.ENV_VARS_TO_PROPAGATE -= {
        name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")
    }


@contextlib.contextmanager
def own_process_groups() -> Iterator[list[subprocess.Popen]]:
    """Give each process that Ray starts in a `with` block a process group of its own.

    Whoever ends a command often signals all processes of its group (`timeout`, a batch system). Ray
    is still needed then, to save what is under way, and ends with the command.

    Yields:
        A list that receives the processes as they are started.
    """
    from ray._private import services as ray_services

    services: Any = ray_services
    console_popen = services.ConsolePopen
    started: list[subprocess.Popen] = []

    def popen(*arguments: Any, **options: Any) -> subprocess.Popen:
        process = console_popen(*arguments, process_group=0, **options)
        started.append(process)
        return process

    services.ConsolePopen = popen
    try:
        yield started
    finally:
        services.ConsolePopen = console_popen


def kill_trial(trial: "Trial") -> None:
    """Kill the process of a running trial of Tune, which then counts as failed for good.

    Its actor is known to the trial's `_TemporaryTrialState` alone.
    """
    import ray

    trial.max_failures = 0  # no restart
    if actor := trial.temporary_state.ray_actor:
        ray.kill(actor)


def add_sigint_handler(trainer: "TorchTrainer", register: Callable[[], None]) -> None:
    """Set a handler of SIGINT in front of Ray Train's, which aborts.

    Args:
        trainer: The trainer, before `fit()`.
        register: Sets the handler; `fit()` calls it after it has set its own.
    """
    # The types that mypy sees are of Ray Train's older trainer.
    register_of_ray = trainer._register_sigint_handler  # type: ignore[attr-defined]

    def register_both(controller: object) -> None:
        register_of_ray(controller)
        register()

    trainer._register_sigint_handler = register_both  # type: ignore[attr-defined]
