"""Checks of options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from composable_energy.errors import OptionError

__all__ = ["one_of", "picture_size", "positive", "whole"]


def whole(name: str, value: Any, least: int = 1) -> int:
    """Returns a whole number that is not below the least, or raises `OptionError`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise OptionError(f"{name} must be a whole number of at least {least}, got {value!r}.")
    return value


def positive(name: str, value: Any) -> float:
    """Returns a positive number, or raises `OptionError`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise OptionError(f"{name} must be a positive number, got {value!r}.")
    return float(value)


def one_of(name: str, value: Any, choices: Sequence[str]) -> str:
    """Returns one of some names, or raises `OptionError`."""
    if value not in choices:
        raise OptionError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}.")
    return value


def picture_size(value: Any) -> int:
    """Returns the height and width of pictures, 16, 32, ..., or raises `OptionError`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 16 or value & (value - 1):
        raise OptionError(f"size must be 16, 32, 64 or another power of two, as networks halve pictures; got {value!r}.")
    return value
