"""Rendered worlds with labels and masks, and trained energies of their contents."""

from composable_energy.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
