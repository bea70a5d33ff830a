"""Saving and loading of expressions: `config.json` with the tree, `model.safetensors` with each tensor once. Nothing is unpickled."""

from composable_energy.saving.api import load, push, save

__all__ = ["load", "push", "save"]
