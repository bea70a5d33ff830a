"""The algebra of energies: the nodes of expressions, and the rules of operators."""

from composable_energy.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
