"""What a notebook works with: experiments, runs and comparisons as objects that show themselves.

`from orchestrator import load, sweep, compare, runs, report, evaluate`; `sweep` is the package
orchestrator.sweep, which can be called.

May import: orchestrator.reporting and what it may import.
Public names: Evaluation, RunResult, Table, compare, evaluate, load, report, run_result, runs,
    said_in_a_notebook.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
