"""Checks of options: integers, numbers in a range, flags, choices. Each returns the value or raises an `OptionError` with its name."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Real
from operator import index
from typing import Any

from composable_energy.errors import OptionError
from composable_energy.suggestions import nearest

_LARGEST, _LEAST = 1e18, 1e-31  # squares are numbers of float32, and products with them do not vanish in float64


def check_integer(name: str, value: Any, least: int = 1) -> int:
    """Returns an integer of at least `least`; NumPy integers are accepted.

    Raises:
        OptionError: The value is not an integer, or too small.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        number = index(value)
    except TypeError:
        raise OptionError(f"{name} must be a whole number of at least {least}, got {value!r}.", [name]) from None
    if number < least:
        raise OptionError(f"{name} must be a whole number of at least {least}, got {number}.", [name])
    return number


def check_number(name: str, value: Any, *, above: float | None = None, least: float | None = None, below: float = math.inf) -> float:
    """Returns a number in a range, of at most 1e18; a positive one is at least 1e-30.

    Args:
        name: The option, for the message.
        value: Its value.
        above: An open lower bound.
        least: A closed lower bound.
        below: An open upper bound.

    Raises:
        OptionError: The value is not such a number, or out of range.
    """
    try:
        number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    except OverflowError:  # a whole number of hundreds of digits
        number = math.nan
    if abs(number) <= _LARGEST and (above is None or number > (above or _LEAST)) and (least is None or number >= least) and number < below:
        return number
    if below < math.inf:
        wanted = f"between {above:g} and {below:g}" if above is not None else f"from {least:g} to below {below:g}"
        raise OptionError(f"{name} must be a number {wanted}, got {value!r}.", [name])
    wanted = "a positive number" if above == 0 else "a number" if least is None else f"a number of at least {least:g}"
    wanted += f" up to {_LARGEST:g}" if math.isfinite(number) and abs(number) > _LARGEST else ""
    raise OptionError(f"{name} must be {wanted}, got {value!r}.", [name])


def check_flag(name: str, value: Any) -> bool:
    """Returns a value that is True or False; texts such as 'no' are refused.

    Raises:
        OptionError: The value is neither.
    """
    if not isinstance(value, bool):
        raise OptionError(f"{name} must be True or False, got {value!r}.", [name])
    return value


def check_instance(name: str, value: Any, kind: type) -> Any:
    """Returns a value that is None or of a class.

    Raises:
        OptionError: It is neither.
    """
    if value is not None and not isinstance(value, kind):
        raise OptionError(f"{name} must be a {kind.__name__}, got {value!r:.100}.", [name])
    return value


def check_choice(name: str, value: Any, choices: Iterable[str]) -> str:
    """Returns a value that is one of the choices.

    Raises:
        OptionError: It is not.
    """
    choices = tuple(choices)
    if value not in choices:
        raise OptionError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}.{nearest(str(value), choices)}", [name])
    return value
