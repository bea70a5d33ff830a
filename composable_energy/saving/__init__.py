"""Saving and loading of expressions: one record with the tree, and with each tensor once. Nothing is unpickled."""

from composable_energy.saving.api import VERSION, load, push, save

__all__ = ["VERSION", "load", "push", "save"]
