"""The registry of plug-ins: energies, samplers, encoders, kernels, commands and kinds of others, found by entry points."""

from composable_energy.registry.command import Command
from composable_energy.registry.family import EnergyFamily
from composable_energy.registry.lookup import (
    get,
    get_encoder,
    get_energy,
    get_factory,
    get_family,
    get_kernel,
    get_recipe,
    get_sampler,
    get_world,
    names,
    plugins,
    refresh,
    register,
)
from composable_energy.registry.records import API_VERSION, PluginRecord

__all__ = [
    "API_VERSION",
    "Command",
    "EnergyFamily",
    "PluginRecord",
    "get",
    "get_encoder",
    "get_energy",
    "get_factory",
    "get_family",
    "get_kernel",
    "get_recipe",
    "get_sampler",
    "get_world",
    "names",
    "plugins",
    "refresh",
    "register",
]
