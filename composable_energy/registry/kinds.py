"""Kinds of plug-ins: what an entry point must be, and how it is built with options.

The classes of kinds are given by their paths and imported at first use, so that listing plug-ins does not wait for torch.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pkgutil import resolve_name
from typing import Any, Literal, NamedTuple

from composable_energy.errors import ComposableEnergyError, OptionError, PluginLoadError, add_note
from composable_energy.options import describe_error
from composable_energy.registry.entries import PluginRecord

API_VERSION = 1
"""Number of the contract. A breaking change gets a new number. The class attribute `api_version` of a plug-in is the number
that it was written for, 1 by default; the current number and the previous one are accepted."""

_NAME = re.compile(r"[a-z0-9_-]+")
_LONGEST = 60  # characters of an option in a message


class Command(ABC):
    """Abstract command of `composable-energy`; an entry point of the group `composable_energy.commands` names a subclass.

    `composable-energy --help` imports the module of each command: import slow modules, such as torch, in `run`.

    Attributes:
        summary: What the command does, in one line.
        description: The text of `composable-energy NAME --help`; the summary where it is empty.
    """

    summary: str
    description: str = ""

    @abstractmethod
    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds the arguments of the command to its parser."""

    @abstractmethod
    def run(self, arguments: argparse.Namespace) -> int:
        """Runs the command and returns the exit code: 0 for success, 2 for bad input.

        A `ComposableEnergyError` or an `OSError` is printed as one line, with exit code 2.
        """


class Kind(NamedTuple):
    """What an entry point names: a class or a function that is handed out, or a builder, one that is called with options.

    A class derives from one of the classes, and what a builder returns is an instance of the first.
    """

    entry: Literal["class", "function", "builder"]
    classes: tuple[str | type, ...] = ()

    def load_classes(self) -> tuple[type, ...]:
        """Imports and returns the classes."""
        return tuple(resolve_name(path) if isinstance(path, str) else path for path in self.classes)


KINDS: Mapping[str, Kind] = {
    "energy": Kind("builder", ("composable_energy.energies.energy:Energy", "composable_energy.registry.catalog:EnergyFamily")),
    "sampler": Kind("class", ("composable_energy.sampling:Sampler",)),
    "encoder": Kind("builder", ("torch.nn:Module",)),
    "kernel": Kind("builder", ("composable_energy.sampling.kernels:Kernel",)),
    "estimator": Kind("function"),
    "loader": Kind("function"),
    "publisher": Kind("function"),
    "plot": Kind("function"),
    "command": Kind("class", (Command,)),
    "kind": Kind("class"),
}
"""The library's own kinds. A package declares more by entry points of the kind `kind`: the name is the kind, the object the class of
which its entries build instances."""


def group_of(kind: str) -> str:
    """Returns the entry-point group of a kind: `composable_energy.samplers` for `sampler`."""
    return "composable_energy.energies" if kind == "energy" else f"composable_energy.{kind}s"


def plugin_error(entry: PluginRecord, reason: str) -> PluginLoadError:
    """Returns the error of a plug-in that breaks the contract or does not load."""
    leave = f"upgrade or uninstall {entry.distribution}, or leave it out with COMPOSABLE_ENERGY_PLUGINS; all others keep working"
    advice = "" if entry.distribution is None else f" To continue: {leave}."
    return PluginLoadError(f"Plug-in {entry} in {entry.group} cannot be used: {reason}.{advice}")


def check_entry(kind: Kind, entry: PluginRecord, obj: Any) -> None:
    """Raises `PluginLoadError` unless the object of an entry point keeps the contract of its kind."""
    classes, version, oldest = kind.load_classes(), getattr(obj, "api_version", 1), max(API_VERSION - 1, 1)
    module: Any = getattr(sys.modules.get("torch.nn"), "Module", ())  # without torch there is no module
    is_class, wanted = isinstance(obj, type), ""
    if kind.entry == "function" and is_class:
        wanted = "a function"
    elif not issubclass(obj, classes or object) if is_class else kind.entry == "class":
        wanted = f"a subclass of {' or '.join(cls.__name__ for cls in classes)}" if classes else "a class"
    elif not callable(obj) or isinstance(obj, module):
        wanted = "a class or a function that makes an object"
    if not _NAME.fullmatch(entry.name):
        raise plugin_error(entry, "its name has characters other than a-z, 0-9, - and _")
    if type(version) is not int or not oldest <= version <= API_VERSION:
        raise plugin_error(entry, f"it needs plug-in contract {version!r}, this composable-energy supports {oldest} to {API_VERSION}")
    if wanted:
        raise plugin_error(entry, f"a plug-in of this group is {wanted}, got {_described(obj)}")
    if classes and inspect.isabstract(obj):
        raise plugin_error(entry, f"{_described(obj)} does not implement {', '.join(sorted(getattr(obj, '__abstractmethods__', ())))}")


def check_options(entry: PluginRecord, builder: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Raises `OptionError` unless a class or function of a plug-in takes the options."""
    try:
        signature = inspect.signature(builder)
    except Exception:  # it has none, or third-party code computes it
        return
    try:
        signature.bind(**options)
    except TypeError as error:
        accepted = ", ".join(map(str, signature.parameters.values())) or "no options"
        raise OptionError(f"{entry.name!r} takes ({accepted}), got ({', '.join(options)}): {error}.") from error


def guarded(entry: PluginRecord, options: Mapping[str, Any], function: Callable[[], Any]) -> Any:
    """Calls a function of a plug-in. With options, a `TypeError` or `ValueError` is taken for a mistake in one of them.

    Raises:
        OptionError: It does not accept the options; the message names the plug-in. Other errors with options get a note that does.
        PluginLoadError: It fails without options.
    """
    import torch

    try:
        with torch.inference_mode(False):  # tensors created in inference mode can never require gradients
            return function()
    except (ComposableEnergyError, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # such as SystemExit, which would end the program without a word
        if not options or not isinstance(error, Exception):
            raise plugin_error(entry, f"making it raised {describe_error(error)}") from error
        shown = {name: f"={value!r}" for name, value in options.items()}
        given = ", ".join(name + (text if len(text) <= _LONGEST and "\n" not in text else "") for name, text in shown.items())
        if isinstance(error, TypeError | ValueError):
            raise OptionError(f"Plug-in {entry} does not accept {given}: {describe_error(error)}") from error
        add_note(error, f"This happened while plug-in {entry} was built with {given}.")
        raise


def build(kind: Kind, entry: PluginRecord, builder: Callable[..., Any], options: Mapping[str, Any]) -> Any:
    """Calls the class or function of an entry with options, and returns the object, an instance of the first class of the kind."""
    check_options(entry, builder, options)
    return check_built(kind, entry, guarded(entry, options, lambda: builder(**options)))


def check_built(kind: Kind, entry: PluginRecord, built: Any) -> Any:
    """Returns what an entry built, or raises `PluginLoadError` if it is no instance of the first class of its kind."""
    required = kind.load_classes()[0]
    if not issubclass(type(built), required):
        article = "an" if required.__name__[0] in "AEIOU" else "a"
        raise plugin_error(entry, f"it should return {article} {required.__name__}, but returned {_described(built)}")
    return built


def _described(obj: Any) -> str:
    return f"the class {obj.__qualname__}" if isinstance(obj, type) else f"an object of type {type(obj).__name__}"
