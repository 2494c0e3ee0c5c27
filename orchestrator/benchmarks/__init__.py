"""Measure data reading, a trial's start and the driver's scale (`python -m orchestrator bench`).

May import: orchestrator.sweep and what it may import.
Public names: measure_data, measure_readers, measure_scale, measure_trial.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
