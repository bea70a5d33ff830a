"""Pipelines of diffusers as energies; needs the extra `diffusers`. `ce.load("diffusers:PATH_OR_ID")` loads one."""

from composable_energy.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
