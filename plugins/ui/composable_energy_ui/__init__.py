"""The playground: type an expression and watch samples appear, in a browser, on this computer.

    composable-energy ui

The page comes from a small server of the standard library and loads nothing from other hosts. Samples are drawn in a process of their own,
one order after another.
"""

from composable_energy.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
