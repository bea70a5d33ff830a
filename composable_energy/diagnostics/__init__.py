"""Diagnostics of runs: convergence statistics, warnings, and running moments without a trace."""

from composable_energy.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
