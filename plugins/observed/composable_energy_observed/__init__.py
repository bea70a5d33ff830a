"""Observations and rewards as terms of expressions: `base & ce.observed(y, operator, noise)`, `base & ce.reward(r, beta)`."""

from composable_energy.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
