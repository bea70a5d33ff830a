"""Images: the papers' networks by name, labelled pictures, rendered worlds, training recipes."""

from composable_energy.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
