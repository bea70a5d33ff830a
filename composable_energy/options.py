"""Checks of options: integers, numbers in a range, flags, choices. Each returns the value or raises an `OptionError` with its name."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Real
from operator import index
from typing import Any

from composable_energy.errors import OptionError
from composable_energy.suggestions import nearest

__all__ = ["check_choice", "check_flag", "check_integer", "check_number"]


def check_integer(name: str, value: Any, least: int = 1) -> int:
    """Returns an integer that is not below the least; NumPy's integers count.

    Raises:
        OptionError: It is no integer, or below the least.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        number = index(value)
    except TypeError:
        raise OptionError(f"{name} must be a whole number of at least {least}, got {value!r}.") from None
    if number < least:
        raise OptionError(f"{name} must be a whole number of at least {least}, got {number}.")
    return number


def check_number(name: str, value: Any, *, above: float | None = None, least: float | None = None, below: float = math.inf) -> float:
    """Returns a finite number in a range.

    Args:
        name: The option, for the message.
        value: Its value.
        above: An open lower end.
        least: A closed lower end.
        below: An open upper end.

    Raises:
        OptionError: It is no finite number, or outside of the range.
    """
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if math.isfinite(number) and (above is None or number > above) and (least is None or number >= least) and number < below:
        return number
    if below < math.inf:
        wanted = f"between {above:g} and {below:g}" if above is not None else f"from {least:g} to below {below:g}"
        raise OptionError(f"{name} must be a number {wanted}, got {value!r}.")
    wanted = "a positive number" if above == 0 else "a number" if least is None else f"a number of at least {least:g}"
    raise OptionError(f"{name} must be {wanted}, got {value!r}.")


def check_flag(name: str, value: Any) -> bool:
    """Returns True or False; a text such as 'no' would count as True.

    Raises:
        OptionError: It is neither.
    """
    if not isinstance(value, bool):
        raise OptionError(f"{name} must be True or False, got {value!r}.")
    return value


def check_choice(name: str, value: Any, choices: Iterable[str]) -> str:
    """Returns one of some names.

    Raises:
        OptionError: It is none of them.
    """
    choices = tuple(choices)
    if value not in choices:
        raise OptionError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}.{nearest(str(value), choices)}")
    return value
