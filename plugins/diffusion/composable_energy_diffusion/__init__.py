"""Diffusion models as energies: schedules, parametrisations, samplers along noise levels, and the likelihood of the probability flow."""

from composable_energy.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
