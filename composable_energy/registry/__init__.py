"""The registry of plug-ins: energies, samplers, encoders, kernels, recipes and worlds, found by entry points."""

from composable_energy.registry.family import EnergyFamily
from composable_energy.registry.lookup import (
    get_encoder,
    get_energy,
    get_family,
    get_kernel,
    get_recipe,
    get_sampler,
    get_world,
    plugins,
    refresh,
    register,
)
from composable_energy.registry.records import API_VERSION, PluginRecord

__all__ = [
    "API_VERSION",
    "EnergyFamily",
    "PluginRecord",
    "get_encoder",
    "get_energy",
    "get_family",
    "get_kernel",
    "get_recipe",
    "get_sampler",
    "get_world",
    "plugins",
    "refresh",
    "register",
]
