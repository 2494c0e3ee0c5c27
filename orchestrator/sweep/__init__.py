"""Run a sweep's trials with Ray Tune: searcher, scheduler, callbacks, ledger, progress, finish.

In a notebook the package itself is called, `from orchestrator import sweep; sweep("x.yaml")`:
its name is that of the command, see `sweep_in_notebook`.

May import: orchestrator.search and what it may import.
Public names: ArmSchedulers, PAUSE, STOP, Sweep, SweepEnd, reproduce_run, run_sweep,
sweep_in_notebook.
"""

import sys
from types import ModuleType
from typing import Any

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


class _CallablePackage(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run a sweep, see `sweep_in_notebook`."""
        return self.sweep_in_notebook(*args, **kwargs)


sys.modules[__name__].__class__ = _CallablePackage
