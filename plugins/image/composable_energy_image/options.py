"""Checks of options."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from torch import nn

from composable_energy.errors import OptionError

__all__ = ["ACTIVATIONS", "activation_of", "fraction", "multiple", "whole"]

ACTIVATIONS: Mapping[str, type[nn.Module]] = MappingProxyType({"leaky-relu": nn.LeakyReLU, "relu": nn.ReLU, "swish": nn.SiLU})
"""The activations by name; the leaky one has the slope .2 below zero, as all papers here."""


def activation_of(name: str) -> nn.Module:
    """Returns the activation of a name.

    Raises:
        OptionError: There is none.
    """
    if name not in ACTIVATIONS:
        raise OptionError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {name!r}.")
    return nn.LeakyReLU(0.2) if name == "leaky-relu" else ACTIVATIONS[name]()


def whole(name: str, value: object, least: int = 1) -> int:
    """Returns a whole number that is not below the least, or raises `OptionError`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise OptionError(f"{name} must be a whole number of at least {least}, got {value!r}.")
    return value


def multiple(name: str, value: object, of: int, why: str) -> int:
    """Returns a positive multiple of a number, or raises `OptionError` and says which it can be."""
    if isinstance(value, bool) or not isinstance(value, int) or value < of or value % of:
        raise OptionError(f"{name} must be a multiple of {of} ({of}, {2 * of}, {3 * of}, ...), because {why}; got {value!r}.")
    return value


def fraction(name: str, value: object) -> float:
    """Returns a number of [0, 1), or raises `OptionError`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise OptionError(f"{name} must be a number from 0 to below 1, got {value!r}.")
    return float(value)
