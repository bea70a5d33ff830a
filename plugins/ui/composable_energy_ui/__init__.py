"""The playground: type an expression and watch samples appear, in a browser, on this computer.

    composable-energy ui

The page comes from a small server of the standard library and loads nothing from other hosts. Samples are drawn in a process of their own,
one order after another.
"""

from composable_energy_ui.orders import LIMITS, Limits
from composable_energy_ui.plane import Plane
from composable_energy_ui.server import Playground

__all__ = ["LIMITS", "Limits", "Plane", "Playground"]
