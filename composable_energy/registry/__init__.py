"""The registry of plug-ins: energies, samplers, encoders, kernels, commands and kinds of others, found by entry points."""

from composable_energy.registry.api import (
    get,
    get_factory,
    get_own,
    names,
    own_name,
    plugins,
    refresh,
    register,
)
from composable_energy.registry.command import Command
from composable_energy.registry.records import API_VERSION, PluginRecord

__all__ = [
    "API_VERSION",
    "Command",
    "PluginRecord",
    "get",
    "get_factory",
    "get_own",
    "names",
    "own_name",
    "plugins",
    "refresh",
    "register",
]
