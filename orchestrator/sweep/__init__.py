"""Run a sweep's trials with Ray Tune: searcher, scheduler, callbacks, ledger, progress, finish.

May import: orchestrator.search and what it may import.
Public names: Sweep, SweepEnd, reproduce_run, run_sweep.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
