"""Combine energy-based models with logic: `(E_male & ~E_smile).sample(shape)`."""

from composable_energy.lazy import attach_stub

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
