"""Supports: the sets where densities live, as constraints of `torch.distributions`, and coordinates of their points."""

from composable_energy.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
