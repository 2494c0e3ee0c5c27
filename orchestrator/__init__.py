"""Run experiments on a cluster: shards, Ray Train, Ray Tune, MLflow, evaluation, reports, commands.

Its packages import each other in one direction; pyproject.toml has their order.
Notebooks use: from orchestrator import load, sweep, compare, runs, report, evaluate; `sweep` is the
package orchestrator.sweep, which can be called.
"""

import sys

try:
    import lazy_loader
except ModuleNotFoundError as error:
    missing = (
        f"{sys.executable} does not have the packages that amlris needs; in the checkout, run "
        "`source .venv/bin/activate` first (`make env` makes .venv), else install amlris there"
    )
    if sys.argv[:1] == ["-m"]:  # python -m orchestrator
        print(f"error: {missing}", file=sys.stderr)
        sys.exit(2)
    raise ModuleNotFoundError(missing, name=error.name) from None

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
