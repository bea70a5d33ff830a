"""Checks of the options of samplers."""

from __future__ import annotations

import math
from numbers import Real
from operator import index

from composable_energy.errors import OptionError

__all__ = ["at_least", "fraction", "positive", "whole"]


def positive(name: str, value: object) -> None:
    """Raises unless a value is a positive, finite number."""
    if not _is_number(value) or not value > 0:  # pyright: ignore[reportOperatorIssue]
        raise OptionError(f"{name} must be a positive number, got {value!r}.")


def at_least(name: str, value: object, least: float) -> None:
    """Raises unless a value is a finite number and at least a minimum."""
    if not _is_number(value) or value < least:  # pyright: ignore[reportOperatorIssue]
        raise OptionError(f"{name} must be a number of at least {least}, got {value!r}.")


def fraction(name: str, value: object) -> None:
    """Raises unless a value is a number between 0 and 1."""
    if not _is_number(value) or not 0 < value < 1:  # pyright: ignore[reportOperatorIssue]
        raise OptionError(f"{name} must be a number between 0 and 1, got {value!r}.")


def whole(name: str, value: object, least: int = 1) -> None:
    """Raises unless a value is a whole number and at least a minimum."""
    try:
        if isinstance(value, bool) or index(value) < least:  # pyright: ignore[reportArgumentType]
            raise TypeError
    except TypeError:
        raise OptionError(f"{name} must be a whole number of at least {least}, got {value!r}.") from None


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
