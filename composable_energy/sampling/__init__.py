"""Sampling: the driver `sample`, and the classes and functions for authors of samplers."""

from composable_energy.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
