"""Discrete points: Gibbs and gradient-informed samplers, mixed models, Ising and Potts lattices, Boltzmann machines."""

from composable_energy.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
