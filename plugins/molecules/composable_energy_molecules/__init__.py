"""Side chains of proteins on the torus: generated rotamer statistics, a conditional energy, clashes, events, files."""

from composable_energy.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
