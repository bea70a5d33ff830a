"""Samplers: Langevin, Hamiltonian Monte Carlo, annealing, replica exchange, sequential Monte Carlo, and descent to modes."""

from composable_energy.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
