"""Training of energies: objectives, a trainer that resumes exactly, recipes."""

from composable_energy.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
