"""Kinds of plug-ins: what an entry point and what it builds must be, and how it is built with the options of a caller or a file.

The classes of kinds are given by their paths and imported at first use, so that listing plug-ins does not
wait for torch.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from composable_energy.errors import ComposableEnergyError, OptionError, PluginLoadError, add_note
from composable_energy.options import describe_error, plain_values
from composable_energy.registry.entries import PluginRecord

API_VERSION = 1
"""Number of the contract. A breaking change gets a new number. The class attribute `api_version` of a plug-in is the number
that it was written for, 1 by default; the current number and the previous one are accepted."""

_NAME = re.compile(r"[a-z0-9_-]+")
_LONGEST = 60
_CHOICES = re.compile(r"Literal\[([^]]*)\]")
_TEXTS = frozenset({"str", "None", "Sequence", "list", "tuple", "typing", "Optional", "Union", "collections", "abc"})


class Command(ABC):
    """Abstract command of `composable-energy`; an entry point of the group `composable_energy.commands` names a subclass.

    `composable-energy --help` imports the module of each command: import slow modules, such as torch, in `run`.

    Attributes:
        summary: What the command does, in one line.
        description: The text of `composable-energy NAME --help`; the summary where it is empty.

    Example:
        >>> class Greet(Command):
        ...     summary = "greet somebody"
        ...
        ...     def add_arguments(self, parser):
        ...         parser.add_argument("name")
        ...
        ...     def run(self, arguments):
        ...         print(f"Hello {arguments.name}")
        ...         return 0
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
        "builder",
        ("composable_energy.energies.energy:Energy", "composable_energy.registry.catalog:EnergyFamily"),
        "composable_energy.registry.catalog:build_energy",
    ),
    "sampler": Kind("class", ("composable_energy.sampling:Sampler",)),
    "encoder": Kind("builder", ("torch.nn:Module",), "composable_energy.registry.catalog:build_encoder"),
    "kernel": Kind("builder", ("composable_energy.sampling.kernels:Kernel",)),
    "estimator": Kind("function"),
    "loader": Kind("function"),
    "publisher": Kind("function"),
    "plot": Kind("function"),
    "command": Kind("class", ("composable_energy.registry.build:Command",)),
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


# Building ------------------------------------------------------------------------------------------------------------------------


def build(entry: PluginRecord, builder: Callable[..., Any], options: Mapping[str, Any]) -> Any:
    """Calls a class or function of a plug-in with options, and returns the object.

    Args:
        entry: The entry point, for messages.
        builder: The class or function.
        options: Its arguments.

    Raises:
        OptionError: It does not take an option, or not its value.
        PluginLoadError: It fails without options.
    """
    check_options(entry, builder, options)
    return guarded(entry, options, lambda: builder(**options))


def check_options(entry: PluginRecord, builder: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Raises unless a class or function of a plug-in takes the options.

    Raises:
        OptionError: It does not take an option.
    """
    try:
        signature = inspect.signature(builder)
    except Exception:  # it has none, or third-party code computes it
        return
    try:
        signature.bind(**options)
    except TypeError as error:
        accepted = ", ".join(str(p) for p in signature.parameters.values()) or "no options"
        raise OptionError(f"{entry.name!r} takes ({accepted}), got ({', '.join(options)}): {error}.") from error


def stored_options(builder: Callable[..., Any]) -> dict[str, frozenset[str] | None]:
    """Returns the options of a plug-in that a saved file may give, each with the texts that it may be; None stands for any text.

    A file may come from anybody, so it gives no paths and no addresses. Texts are the choices of an option with the annotation
    `Literal["a", "b"]`, a text that is the default, and any text for the options that the class or function names in its attribute
    `stored_texts`. A path, or an option that takes nothing but other texts, is left out; an entry that needs such an option has none.
    Numbers, truth values, tensors and other energies are data.

    Args:
        builder: The class or function.
    """
    declared, found = set(getattr(builder, "stored_texts", ())), {}
    for option in _parameters(builder).values():
        annotation = "" if option.annotation is option.empty else inspect.formatannotation(option.annotation)
        words = set(re.findall(r"[A-Za-z_]\w*", _CHOICES.sub("Literal", annotation)))
        if option.name in declared:
            found[option.name] = None
        elif not words & {"Path", "PathLike"} and not ("str" in words and words <= _TEXTS):
            texts = (text for choices in _CHOICES.findall(annotation) for text in re.findall(r"['\"]([^'\"]*)['\"]", choices))
            found[("**" if option.kind is option.VAR_KEYWORD else "") + option.name] = frozenset(texts)
        elif option.default is option.empty:
            return {}
    return found


def check_stored(entry: PluginRecord, builder: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Raises unless a saved file may give the options to a plug-in; see `stored_options`.

    Raises:
        OptionError: It may not.
    """
    stored = stored_options(builder)
    others = next((texts for name, texts in stored.items() if name.startswith("**")), frozenset())
    known = {name: option.default for name, option in _parameters(builder).items()}
    for name, value in options.items():
        texts = stored.get(name, frozenset() if name in known else others)
        if value is None or texts is None or (isinstance(value, str) and value == known.get(name)):
            continue
        if (name in stored or name not in known) and texts.issuperset(text for text in plain_values(value) if isinstance(text, str)):
            continue
        raise OptionError(
            f"{name}={value!r:.{_LONGEST}} of {entry.name!r} may be a path or an address, which no saved file may give. Register what it "
            f"makes, as in `composable_energy.register('energy', 'mine', function)`, and build the expression with that name; an author of "
            "a plug-in lists safe texts as `Literal[...]`, or the option in `stored_texts`"
        )


def _parameters(builder: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    for evaluated in (True, False):
        try:
            return inspect.signature(builder, eval_str=evaluated).parameters
        except Exception:  # annotations of the type checker alone; no signature, or one that third-party code computes
            continue
    return {}


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
    except ComposableEnergyError:
        raise
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # such as SystemExit, which would end the program without a word
        if not options or not isinstance(error, Exception):
            raise plugin_error(entry, f"making it raised {describe_error(error)}") from error
        given = describe_options(options)
        if isinstance(error, TypeError | ValueError):
            raise OptionError(f"Plug-in {entry} does not accept {given}: {describe_error(error)}") from error
        add_note(error, f"This happened while plug-in {entry} was built with {given}.")
        raise


def describe_options(options: Mapping[str, Any]) -> str:
    """Returns options as text, `radius=2.0, width='x'`; of long values the names alone."""
    shown = {name: f"={value!r}" for name, value in options.items()}
    return ", ".join(name + (text if len(text) <= _LONGEST and "\n" not in text else "") for name, text in shown.items())
