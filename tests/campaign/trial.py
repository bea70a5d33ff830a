"""What areas of the campaign share: the outcome of a call, and the error of a trial that found a defect."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from composable_energy.errors import ComposableEnergyError

Outcome = str | dict[str, int]
"""What a trial found, in one or two words; or how often each of several things happened."""

Trial = Callable[[random.Random, Path], Outcome]
"""A trial takes its random numbers and an empty folder."""


class Defect(Exception):  # noqa: N818
    """A trial found a defect; the text begins with its kind."""


@dataclass(frozen=True)
class Area:
    """An area of the campaign: `prepare` returns the trial, once in each process; a trial of more than `limit` seconds hangs."""

    name: str
    prepare: Callable[[Path], Trial]
    limit: float = 60.0


def typed(call: Callable[[], Any], allowed: tuple[type[BaseException], ...] = ()) -> tuple[Any, str]:
    """Returns the result of a call and "", or None and the name of its error, which is of the library or one that is allowed."""
    try:
        return call(), ""
    except (ComposableEnergyError, *allowed) as error:
        return None, type(error).__name__
    except Exception as error:
        raise Defect(f"untyped error: {type(error).__name__}: {str(error)[:300]}") from error


def check(condition: bool, kind: str, detail: object = "") -> None:
    """Raises a defect unless a condition holds."""
    if not condition:
        raise Defect(f"{kind}: {detail}")
