"""The registry of plug-ins: energies, samplers, encoders, kernels, commands and kinds of others, found by entry points."""

from composable_energy.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
