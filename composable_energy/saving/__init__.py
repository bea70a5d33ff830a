"""Saving expressions: `config.json` with the expression as a tree, `model.safetensors` with each tensor once. Nothing is unpickled."""

from composable_energy.saving.api import load, save

__all__ = ["load", "save"]
