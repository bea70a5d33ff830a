"""The registry of plug-ins: energies, samplers, encoders, kernels, commands and kinds of others, found by entry points."""

from composable_energy.registry.command import Command
from composable_energy.registry.contract import API_VERSION
from composable_energy.registry.entries import FIRST_PARTY, PluginRecord
from composable_energy.registry.registry import get, get_factory, names, plugins, register

__all__ = ["API_VERSION", "FIRST_PARTY", "Command", "PluginRecord", "get", "get_factory", "names", "plugins", "register"]
