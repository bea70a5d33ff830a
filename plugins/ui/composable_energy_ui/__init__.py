"""The playground: type an expression and watch samples appear, in a browser, on this computer.

    composable-energy ui

The page comes from a small server of the standard library and loads nothing from other hosts. Samples are drawn in a process of their own,
one order after another.
"""

from typing import TYPE_CHECKING

from composable_energy.lazy import lazy_exports

if TYPE_CHECKING:
    from composable_energy_ui.orders import Limits
    from composable_energy_ui.plane import Plane
    from composable_energy_ui.server import Playground

__all__ = ["Limits", "Plane", "Playground"]

__getattr__, __dir__ = lazy_exports(__name__, {"orders": ["Limits"], "plane": ["Plane"], "server": ["Playground"]})
