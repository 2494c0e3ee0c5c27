"""The command line: `python -m orchestrator COMMAND`.

May import: every other package.
Public names: main.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
