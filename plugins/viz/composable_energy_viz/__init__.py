"""Pictures: grids of images, densities on the plane, traces of energies, forces of parts, shares of branches, explanations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from composable_energy.lazy import lazy_exports

if TYPE_CHECKING:
    from composable_energy_viz.chains import trace
    from composable_energy_viz.density import show
    from composable_energy_viz.gradients import forces
    from composable_energy_viz.image_grid import PictureWarning, grid
    from composable_energy_viz.terms import explanation, shares

__all__ = ["PictureWarning", "explanation", "forces", "grid", "shares", "show", "trace"]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "chains": ("trace",),
        "density": ("show",),
        "gradients": ("forces",),
        "image_grid": ("PictureWarning", "grid"),
        "terms": ("explanation", "shares"),
    },
)
