"""Methods of `Energy` for binary operators, and for operators that energies do not have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from composable_energy.errors import OperatorError


def operator_pair(algebra: Callable[[], Any], build: str) -> tuple[Callable[[Any, object], Any], Callable[[Any, object], Any]]:
    """Returns the methods of a binary operator, for an energy on the left and on the right.

    Args:
        algebra: A function that returns the package `algebra`, which is imported when an operator is used.
        build: The name of its function or class that builds the node.
    """

    def left(self: Any, other: object) -> Any:
        return algebra().apply_operator(getattr(algebra(), build), self, other)

    def right(self: Any, other: object) -> Any:
        return algebra().apply_operator(getattr(algebra(), build), other, self)

    return left, right


def refuse_arithmetic(self: Any, other: object = None) -> NoReturn:
    """Raises for `+`, unary `-` and `**`, which mean something else for energies than for densities.

    Raises:
        OperatorError: Always.
    """
    raise OperatorError(
        f"{self} takes no `+`, unary `-` or `**`. Adding energies is `A & B`, or `composable_energy.all_of(*terms)` for `sum(terms)`; "
        "subtracting is `A - B`; the opposite is `~A`; a power of the density is `2 * A`. A constant changes no density: leave it out."
    )


def refuse_truth(self: Any) -> NoReturn:
    """Raises for `and`, `or` and `not`, which Python cannot overload.

    Raises:
        OperatorError: Always.
    """
    raise OperatorError("An energy has no truth value: write `A & B`, `A | B` and `~A`, not `A and B`, `A or B` and `not A`.")
