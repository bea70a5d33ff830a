"""Checks that the object of an entry point, and the object that it builds, keep the contract of plug-ins."""

from __future__ import annotations

import inspect
import re
import sys
from typing import Any

from composable_energy.errors import PluginLoadError
from composable_energy.registry.kinds import Kind
from composable_energy.registry.records import API_VERSION, Entry

_NAME = re.compile(r"[a-z0-9_-]+")


def check_entry(kind: Kind, entry: Entry, obj: Any) -> None:
    """Raises unless the object of an entry point keeps the contract of its kind.

    Args:
        kind: The kind.
        entry: The entry, for messages.
        obj: The object.

    Raises:
        PluginLoadError: It is of the wrong type, was written for another version of the contract, or lacks methods.
    """
    if not _NAME.fullmatch(entry.name):
        raise plugin_error(entry, "its name has characters other than a-z, 0-9, - and _")
    _check_version(entry, obj)
    is_class = isinstance(obj, type)
    if kind.entry == "function" and is_class:
        raise plugin_error(entry, f"a plug-in of this group is a function, got {_described(obj)}")
    if kind.entry == "class" and not (is_class and issubclass(obj, kind.load_classes())):
        raise plugin_error(entry, f"a plug-in of this group is {_subclass_of(kind)}, got {_described(obj)}")
    if is_class and not issubclass(obj, kind.load_classes()):
        raise plugin_error(entry, f"a plug-in of this group is {_subclass_of(kind)}, got {_described(obj)}")
    if not callable(obj) or _is_module(obj):
        raise plugin_error(entry, f"a plug-in of this group is a class or a function that makes an object, got {_described(obj)}")
    if inspect.isabstract(obj) and kind.classes != ("builtins:object",):
        raise plugin_error(entry, f"{_described(obj)} does not implement {', '.join(sorted(getattr(obj, '__abstractmethods__', ())))}")


def check_built(kind: Kind, entry: Entry, built: Any) -> Any:
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


def plugin_error(entry: Entry, reason: str, way_out: str = "") -> PluginLoadError:
    """Returns the error of a plug-in that breaks the contract or does not load."""
    if entry.distribution is None:
        return PluginLoadError(f"{entry} in {entry.group} cannot be used: {reason}.{f' To continue: {way_out}.' if way_out else ''}")
    others = f"upgrade or uninstall {entry.distribution}, or leave it out with COMPOSABLE_ENERGY_PLUGINS"
    way_out = f"{way_out}, {others}" if way_out else others
    return PluginLoadError(f"Plug-in {entry} in {entry.group} cannot be used: {reason}. To continue: {way_out}; all others keep working.")


def _check_version(entry: Entry, obj: Any) -> None:
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


def _is_module(obj: Any) -> bool:
    torch = sys.modules.get("torch")  # without torch there is no module
    return torch is not None and isinstance(obj, torch.nn.Module)


def _described(obj: Any) -> str:
    return f"the class {obj.__qualname__}" if isinstance(obj, type) else f"an object of type {type(obj).__name__}"
