"""Measure what `python -m orchestrator bench` offers.

Data reading, a trial's start, the driver's scale, and how soon a search finds a good setting.

May import: orchestrator.sweep and what it may import.
Public names: measure_data, measure_readers, measure_scale, measure_search,
measure_trial.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
