"""Files: expressions and other records, atomic writing, locks and paths. Nothing in a file is executed."""

from composable_energy.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
