"""Argument checks, and activations by name. Each check returns the value or raises an `OptionError`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from operator import index
from types import MappingProxyType

from torch import nn

from composable_energy.errors import OptionError

__all__ = ["ACTIVATIONS", "activation_of", "check_choice", "check_fraction", "check_integer", "check_multiple", "check_positive"]

ACTIVATIONS: Mapping[str, type[nn.Module]] = MappingProxyType({"leaky-relu": nn.LeakyReLU, "relu": nn.ReLU, "swish": nn.SiLU})
"""Activations by name. The leaky ReLU has slope 0.2 below zero, as in the papers."""


def activation_of(name: str) -> nn.Module:
    """Returns a new activation layer.

    Raises:
        OptionError: The name is unknown.
    """
    check_choice("activation", name, ACTIVATIONS)
    return nn.LeakyReLU(0.2) if name == "leaky-relu" else ACTIVATIONS[name]()


def check_integer(name: str, value: object, least: int = 1) -> int:
    """Returns an integer of at least `least`; NumPy's integers count, booleans do not."""
    try:
        number = None if isinstance(value, bool) else index(value)  # pyright: ignore[reportArgumentType]
    except TypeError:
        number = None
    if number is None or number < least:
        raise OptionError(f"{name} must be a whole number of at least {least}, got {value!r}.")
    return number


def check_multiple(name: str, value: object, of: int, why: str) -> int:
    """Returns a positive multiple of an integer.

    Args:
        name: The argument.
        value: Its value.
        of: The divisor.
        why: The reason, for the error message.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < of or value % of:
        raise OptionError(f"{name} must be a multiple of {of} ({of}, {2 * of}, {3 * of}, ...), because {why}; got {value!r}.")
    return value


def check_positive(name: str, value: object) -> float:
    """Returns a finite positive number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise OptionError(f"{name} must be a positive number, got {value!r}.")
    return float(value)


def check_fraction(name: str, value: object) -> float:
    """Returns a number in [0, 1)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise OptionError(f"{name} must be a number from 0 to below 1, got {value!r}.")
    return float(value)


def check_choice(name: str, value: object, choices: Iterable[str]) -> str:
    """Returns one of several names."""
    if not isinstance(value, str) or value not in choices:
        raise OptionError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}.")
    return value
