"""Pipelines of diffusers as energies; needs the extra `diffusers`. `ce.load("diffusers:PATH_OR_ID")` loads one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from composable_energy.lazy import lazy_exports

if TYPE_CHECKING:
    from composable_energy_diffusion.pipelines.energy import PipelineEnergy, load_pipeline

__all__ = ["PipelineEnergy", "load_pipeline"]

__getattr__, __dir__ = lazy_exports(__name__, {"energy": ("PipelineEnergy", "load_pipeline")})
