"""Run experiments on a cluster: shards, Ray Train, Ray Tune, MLflow, evaluation, reports, commands.

Its packages import each other in one direction; pyproject.toml has their order.
Notebooks use: from orchestrator import load, sweep, compare, runs, report, evaluate; `sweep` is the
package orchestrator.sweep, which can be called.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
