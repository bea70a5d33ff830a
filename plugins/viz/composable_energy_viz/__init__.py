"""Pictures: grids of images, densities on the plane, traces of energies, forces of parts, shares of branches, explanations."""

from composable_energy.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
