"""What an energy is: its class, evaluation, identity, conditions, bases, and what is lifted to it."""

from composable_energy.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
