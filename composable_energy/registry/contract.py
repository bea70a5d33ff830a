"""Kinds of plug-ins, and the checks that an entry point and what it builds keep the contract of its kind.

The classes of kinds are given by their paths and imported at first use: the registry lies below energies and samplers, and listing
plug-ins does not wait for torch.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from composable_energy.errors import PluginLoadError
from composable_energy.registry.entries import PluginRecord

API_VERSION = 1
"""Number of the contract. A breaking change gets a new number. The class attribute `api_version` of a plug-in is the number
that it was written for, 1 by default; the current number and the previous one are accepted."""

_NAME = re.compile(r"[a-z0-9_-]+")


@dataclass(frozen=True)
class Kind:
    """A kind of plug-in.

    Args:
        entry: What an entry point names: a `class` or a `function` that is handed out as it is, or a `builder`, a class or function that
            is called with options.
        classes: The classes, or their paths `module:name`, from which a class derives; what a builder returns is an instance of the first.
        get: The path of the function that returns a plug-in of this kind by name; empty for the general rule.
    """

    entry: Literal["class", "function", "builder"]
    classes: tuple[str | type, ...] = ()
    get: str = ""

    def load_classes(self) -> tuple[type, ...]:
        """Imports and returns the classes."""
        return tuple(import_object(path) if isinstance(path, str) else path for path in self.classes)


KINDS: Mapping[str, Kind] = {
    "energy": Kind(
        "builder", ("composable_energy.energy:Energy", "composable_energy.catalog:EnergyFamily"), "composable_energy.catalog:build_energy"
    ),
    "sampler": Kind("class", ("composable_energy.sampling:Sampler",)),
    "encoder": Kind("builder", ("torch.nn:Module",), "composable_energy.catalog:build_encoder"),
    "kernel": Kind("builder", ("composable_energy.sampling.kernels:Kernel",)),
    "estimator": Kind("function"),
    "loader": Kind("function"),
    "publisher": Kind("function"),
    "plot": Kind("function"),
    "command": Kind("class", ("composable_energy.registry.command:Command",)),
    "kind": Kind("class", ("builtins:object",)),
}
"""The library's own kinds. A package declares more by entry points of the kind `kind`: the name is the kind, the object the class of
which its entries build instances."""


def group_of(kind: str) -> str:
    """Returns the entry-point group of a kind: `composable_energy.samplers` for `sampler`."""
    return "composable_energy.energies" if kind == "energy" else f"composable_energy.{kind}s"


def import_object(path: str) -> Any:
    """Returns the object at a path `module:name`; the module itself for a path without a name."""
    module, _, attributes = path.partition(":")
    found: Any = importlib.import_module(module)
    for attribute in filter(None, attributes.split(".")):
        found = getattr(found, attribute)
    return found


def check_entry(kind: Kind, entry: PluginRecord, obj: Any) -> None:
    """Raises unless the object of an entry point keeps the contract of its kind.

    Raises:
        PluginLoadError: It is of the wrong type, was written for another version of the contract, or lacks methods.
    """
    if not _NAME.fullmatch(entry.name):
        raise plugin_error(entry, "its name has characters other than a-z, 0-9, - and _")
    _check_version(entry, obj)
    is_class = isinstance(obj, type)
    if kind.entry == "function" and is_class:
        raise plugin_error(entry, f"a plug-in of this group is a function, got {_described(obj)}")
    if not issubclass(obj, kind.load_classes()) if is_class else kind.entry == "class":
        raise plugin_error(entry, f"a plug-in of this group is {_subclass_of(kind)}, got {_described(obj)}")
    torch = sys.modules.get("torch")  # without torch there is no module
    if not callable(obj) or (torch is not None and isinstance(obj, torch.nn.Module)):
        raise plugin_error(entry, f"a plug-in of this group is a class or a function that makes an object, got {_described(obj)}")
    if inspect.isabstract(obj) and kind.classes != ("builtins:object",):
        raise plugin_error(entry, f"{_described(obj)} does not implement {', '.join(sorted(getattr(obj, '__abstractmethods__', ())))}")


def check_built(kind: Kind, entry: PluginRecord, built: Any) -> Any:
    """Returns what an entry built.

    Raises:
        PluginLoadError: It is no instance of the class of its kind.
    """
    required = kind.load_classes()[0]
    if not issubclass(type(built), required):
        name = f"nn.{required.__name__}" if required.__module__.startswith("torch.nn") else required.__name__
        article = "an" if name[0] in "AEIOUn" else "a"
        raise plugin_error(entry, f"it should return {article} {name}, but returned {_described(built)}")
    return built


def plugin_error(entry: PluginRecord, reason: str, way_out: str = "") -> PluginLoadError:
    """Returns the error of a plug-in that breaks the contract or does not load."""
    if entry.distribution is not None:
        leave = f"upgrade or uninstall {entry.distribution}, or leave it out with COMPOSABLE_ENERGY_PLUGINS"
        way_out = f"{way_out}, {leave}" if way_out else leave
    advice = f" To continue: {way_out}; all others keep working." if way_out else ""
    return PluginLoadError(f"Plug-in {entry} in {entry.group} cannot be used: {reason}.{advice}")


def _check_version(entry: PluginRecord, obj: Any) -> None:
    version = getattr(obj, "api_version", 1)
    oldest = max(API_VERSION - 1, 1)
    if isinstance(version, bool) or not isinstance(version, int) or not oldest <= version <= API_VERSION:
        supported = f"{oldest} to {API_VERSION}" if oldest < API_VERSION else f"{API_VERSION}"
        newer = isinstance(version, int) and version > API_VERSION
        way_out = "upgrade composable-energy" if newer else "upgrade the plug-in"
        raise plugin_error(entry, f"it needs plug-in contract {version!r}, this composable-energy supports {supported}", way_out)


def _subclass_of(kind: Kind) -> str:
    if kind.classes == ("builtins:object",):
        return "the class that entries of the new kind make"
    return f"a subclass of {' or '.join(cls.__name__ for cls in kind.load_classes())}"


def _described(obj: Any) -> str:
    return f"the class {obj.__qualname__}" if isinstance(obj, type) else f"an object of type {type(obj).__name__}"
