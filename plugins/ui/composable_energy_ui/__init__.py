"""The playground: type an expression and watch samples appear, in a browser, on this computer.

    composable-energy ui

A small server of the standard library has the page, which loads nothing from other hosts. A process of its own draws, order by order.
"""

from composable_energy.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
