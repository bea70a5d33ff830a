"""Arguments of networks: activations by name, and sizes that are multiples."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from torch import nn

from composable_energy.errors import OptionError
from composable_energy.options import check_choice

Activation = Literal["leaky-relu", "relu", "swish"]
"""The names of `ACTIVATIONS`."""

ACTIVATIONS: Mapping[str, type[nn.Module]] = MappingProxyType({"leaky-relu": nn.LeakyReLU, "relu": nn.ReLU, "swish": nn.SiLU})
"""Activations by name. The leaky ReLU has slope 0.2 below zero, as in the papers."""


def activation_of(name: str) -> nn.Module:
    """Returns a new activation layer.

    Raises:
        OptionError: The name is unknown.
    """
    check_choice("activation", name, ACTIVATIONS)
    return nn.LeakyReLU(0.2) if name == "leaky-relu" else ACTIVATIONS[name]()


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
