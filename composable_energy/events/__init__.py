"""Events: labels of classifiers and intervals of continuous heads, whose Boolean formulas have exact probabilities."""

from composable_energy.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
