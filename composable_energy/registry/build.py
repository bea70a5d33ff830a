"""Building of objects: calls what an entry point names with the options of the caller."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from composable_energy.errors import ComposableEnergyError, OptionError
from composable_energy.notes import add_note
from composable_energy.printable import describe_error
from composable_energy.registry.contract import plugin_error
from composable_energy.registry.records import Entry

__all__ = ["build", "check_options", "describe_options", "guarded"]

_LONGEST = 60


def build(entry: Entry, builder: Callable[..., Any], options: Mapping[str, Any]) -> Any:
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


def check_options(entry: Entry, builder: Callable[..., Any], options: Mapping[str, Any]) -> None:
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


def guarded(entry: Entry, options: Mapping[str, Any], function: Callable[[], Any]) -> Any:
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
