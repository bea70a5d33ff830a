"""Pictures of images, densities, chains and explanations: `composable_energy.viz.grid(images)`.

`dir(composable_energy.viz)` lists the functions. They come from plug-ins of the kind `plot`, as `composable_energy_viz` of this library,
which is imported at the first use.
"""

from __future__ import annotations

from composable_energy.registry.registry import plugin_exports

__getattr__, __dir__ = plugin_exports(__name__, "plot")
