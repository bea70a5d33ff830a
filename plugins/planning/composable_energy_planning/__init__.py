"""Trajectories as points of an energy: `dynamics & start(s0) & goal(g) & ~obstacle`, and planners that draw them."""

from composable_energy.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
