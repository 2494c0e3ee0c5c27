"""Propose an experiment for a person's data and this machine: what `init` writes.

May import: orchestrator.data and what it may import.
Public names: DataSource, Machine, PHOTO_ENCODERS, Proposal, find_sources, measure_machine,
    propose, write_experiment.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
