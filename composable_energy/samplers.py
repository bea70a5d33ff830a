"""The classes of all installed samplers: `composable_energy.samplers.HMC(step_size=0.1)`.

`dir(composable_energy.samplers)` lists them. They come from plug-ins, and a package is imported when one of its samplers is used. In
`sample` the name of a sampler does as well: `sampler="hmc"`.
"""

from __future__ import annotations

from composable_energy.registry.registry import plugin_exports

__getattr__, __dir__ = plugin_exports(__name__, "sampler")
