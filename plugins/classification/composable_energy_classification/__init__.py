"""Classification by energies: probabilities, abstention, refinement, attacks, and scores of unusual points."""

from composable_energy.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
