"""Generators controlled by attributes in their latent space (LACE): attributes, a flow, sequential edits, files."""

from composable_energy.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
