"""The contract of plug-ins: what an entry may be, and what it must make."""

from __future__ import annotations

import inspect
import re
import sys
from typing import Any

from composable_energy.errors import PluginLoadError
from composable_energy.registry.command import Command
from composable_energy.registry.family import EnergyFamily
from composable_energy.registry.records import API_VERSION, Entry

__all__ = ["broken", "check_entry", "check_made"]

_NAME = re.compile(r"[a-z0-9_-]+")


def check_entry(kind: str, entry: Entry, obj: Any) -> None:
    """Raises unless an entry's object keeps the contract.

    Args:
        kind: What it is to be.
        entry: The entry, for messages.
        obj: The object: for samplers and commands a subclass of `Sampler` or `Command`, for energies one of `Energy` or `EnergyFamily`
            or a function that makes one, for a kind the class that its entries make, for all others a class or function.

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
    if kind in ("sampler", "command") and not (isinstance(obj, type) and issubclass(obj, _base_class(kind))):
        raise broken(entry, f"a plug-in of this group is a subclass of {_base_class(kind).__name__}, got {_described(obj)}")
    if kind == "energy" and isinstance(obj, type) and not issubclass(obj, (_base_class(kind), EnergyFamily)):
        raise broken(entry, f"a plug-in of this group is a subclass of Energy or EnergyFamily, got {_described(obj)}")
    if kind == "kind" and not isinstance(obj, type):
        raise broken(entry, f"a plug-in of this group is the class that entries of the new kind make, got {_described(obj)}")
    if not callable(obj) or _is_module(obj):
        raise broken(entry, f"a plug-in of this group is a class or a function that makes an object, got {_described(obj)}")
    if inspect.isabstract(obj) and kind != "kind":
        raise broken(entry, f"{_described(obj)} does not write {', '.join(sorted(getattr(obj, '__abstractmethods__', ())))}")


def check_made(entry: Entry, made: Any, required: type | None) -> Any:
    """Returns what an entry made, or raises if it is of the wrong type.

    Args:
        entry: The entry, for messages.
        made: The object.
        required: The class that it should have; None for a kernel, which needs a method `available`.

    Raises:
        PluginLoadError: It has another class.
    """
    if required is None:
        fits, wanted = callable(getattr(made, "available", None)), "an object with a method `available`"
    else:
        name = f"nn.{required.__name__}" if required.__module__.startswith("torch.nn") else required.__name__
        fits, wanted = isinstance(made, required), f"{'an' if name[0] in 'AEIOUn' else 'a'} {name}"
    if not fits:
        raise broken(entry, f"it should make {wanted}, it made {_described(made)}")
    return made


def broken(entry: Entry, reason: str, way_out: str = "") -> PluginLoadError:
    """Returns the error of a plug-in that breaks the contract or does not load."""
    if entry.distribution is None:
        return PluginLoadError(f"{entry} in {entry.group} cannot be used: {reason}.{f' To go on: {way_out}.' if way_out else ''}")
    others = f"upgrade or uninstall {entry.distribution}, or leave it out with COMPOSABLE_ENERGY_PLUGINS"
    way_out = f"{way_out}, {others}" if way_out else others
    return PluginLoadError(f"Plug-in {entry} in {entry.group} cannot be used: {reason}. To go on: {way_out}; all others keep working.")


def _base_class(kind: str) -> type:
    """Returns the class that entries of a kind derive from; the command line, which knows only commands, does not wait for torch."""
    if kind == "command":
        return Command
    if kind == "sampler":
        from composable_energy.sampling import Sampler

        return Sampler
    from composable_energy.energy import Energy

    return Energy


def _is_module(obj: Any) -> bool:
    torch = sys.modules.get("torch")  # an object that is a module has imported it
    return torch is not None and isinstance(obj, torch.nn.Module)


def _described(obj: Any) -> str:
    return f"the class {obj.__qualname__}" if isinstance(obj, type) else f"an object of type {type(obj).__name__}"
