"""The contract of plug-ins: what an entry may be, and what it must make."""

from __future__ import annotations

import inspect
import re
from typing import Any

from torch import nn

from composable_energy.energy import Energy
from composable_energy.errors import PluginLoadError
from composable_energy.registry.family import EnergyFamily
from composable_energy.registry.records import API_VERSION, Entry, Kind

__all__ = ["broken", "check_entry", "check_made"]

_NAME = re.compile(r"[a-z0-9_-]+")


def check_entry(kind: Kind, entry: Entry, obj: Any) -> None:
    """Raises unless an entry's object keeps the contract.

    Args:
        kind: What it is to be.
        entry: The entry, for messages.
        obj: The object: for samplers a subclass of `Sampler`, for energies one of `Energy` or `EnergyFamily` or a function that makes
            one, for encoders, kernels, recipes and worlds a class or function.

    Raises:
        PluginLoadError: It is something else, was written for another contract, or lacks methods.
    """
    if not _NAME.fullmatch(entry.name):
        raise broken(entry, "its name has other characters than a-z, 0-9, - and _")
    version = getattr(obj, "api_version", 1)
    oldest = max(API_VERSION - 1, 1)
    if isinstance(version, bool) or not isinstance(version, int) or not oldest <= version <= API_VERSION:
        supported = f"{oldest} to {API_VERSION}" if oldest < API_VERSION else f"{API_VERSION}"
        newer = isinstance(version, int) and version > API_VERSION
        way = "upgrade composable-energy" if newer else "upgrade the plug-in"
        raise broken(entry, f"it needs plug-in contract {version!r}, this composable-energy supports {supported}", way)
    if kind == "sampler" and not (isinstance(obj, type) and issubclass(obj, _sampler())):
        raise broken(entry, f"a plug-in of this group is a subclass of Sampler, got {_described(obj)}")
    if kind == "energy" and isinstance(obj, type) and not issubclass(obj, Energy | EnergyFamily):
        raise broken(entry, f"a plug-in of this group is a subclass of Energy or EnergyFamily, got {_described(obj)}")
    if not callable(obj) or isinstance(obj, nn.Module):
        raise broken(entry, f"a plug-in of this group is a class or a function that makes an object, got {_described(obj)}")
    if inspect.isabstract(obj):
        raise broken(entry, f"{_described(obj)} does not write {', '.join(sorted(getattr(obj, '__abstractmethods__', ())))}")


def check_made(kind: Kind, entry: Entry, made: Any) -> Any:
    """Returns what an entry made, or raises if it is of the wrong type.

    Raises:
        PluginLoadError: An energy entry made no energy, an encoder entry no module, a kernel entry nothing with `available()`, a
            recipe entry nothing with `run()`, a world entry no World.
    """
    from composable_energy.data import World

    fits, what = {
        "energy": (isinstance(made, Energy), "an Energy"),
        "encoder": (isinstance(made, nn.Module), "an nn.Module"),
        "kernel": (callable(getattr(made, "available", None)), "an object with a method `available`"),
        "recipe": (callable(getattr(made, "run", None)), "a Recipe"),
        "world": (isinstance(made, World), "a World"),
    }[kind]
    if not fits:
        raise broken(entry, f"it should make {what}, it made {_described(made)}")
    return made


def broken(entry: Entry, reason: str, way_out: str = "") -> PluginLoadError:
    """Returns the error of a plug-in that breaks the contract or does not load."""
    if entry.distribution is None:
        return PluginLoadError(f"{entry} in {entry.group} cannot be used: {reason}.{f' To go on: {way_out}.' if way_out else ''}")
    others = f"upgrade or uninstall {entry.distribution}, or leave it out with COMPOSABLE_ENERGY_PLUGINS"
    way_out = f"{way_out}, {others}" if way_out else others
    return PluginLoadError(f"Plug-in {entry} in {entry.group} cannot be used: {reason}. To go on: {way_out}; all others keep working.")


def _sampler() -> type:
    from composable_energy.sampling import Sampler

    return Sampler


def _described(obj: Any) -> str:
    return f"the class {obj.__qualname__}" if isinstance(obj, type) else f"an object of type {type(obj).__name__}"
