"""COMET: unsupervised decomposition of pictures into components, each an energy."""

from composable_energy.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
