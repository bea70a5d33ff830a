"""Energies on a support: `E.on(support)` and `inside(support)`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from composable_energy.algebra.node import Transformed
from composable_energy.algebra.text import Operand
from composable_energy.arithmetic import zeros
from composable_energy.bases import evidence_of
from composable_energy.energy import Energy
from composable_energy.errors import ExpressionError
from composable_energy.supports import Support, check_support, evaluate_inside, format_support, intersect, is_bounded, map_support


class Restricted(Transformed):
    r"""An energy on a support; outside it is $\infty$ with zero gradient, and the operand is not evaluated there.

    Args:
        operand: The energy.
        support: The support, such as `constraints.positive`. If the operand has one too, the density lives on the intersection.

    Raises:
        OptionError: It is no continuous constraint.
    """

    def __init__(self, operand: Energy, support: Support) -> None:
        super().__init__(operand)
        self._within = check_support(support)
        self._bases = operand.bases

    def config(self) -> dict[str, Any]:
        return {"support": self._within}

    def join_supports(self, supports: Sequence[Support]) -> Support:
        return intersect([(self.terms[0], supports[0]), (self, self._within)])

    def support_without_terms(self, error: ExpressionError) -> Support:
        return self._within

    @property
    def grounded(self) -> bool:
        return self.terms[0].grounded or is_bounded(self._within)

    def forward_evidence(self, x: Tensor, **conditions: Any) -> Tensor:
        return evaluate_inside(self._within, x, lambda points: evidence_of(self.terms[0], points, conditions))

    def _apply(self, fn: Any, recurse: bool = True) -> Restricted:
        self._within = map_support(self._within, fn)
        return super()._apply(fn, recurse)

    def extra_repr(self) -> str:
        return format_support(self._within)

    def text(self, operand: Operand) -> str:
        return f"{operand(self.terms[0], 95)}.on({format_support(self._within)})"


class Inside(Energy):
    r"""The energy 0 inside a support and $\infty$ outside: a wall.

    Args:
        support: The support, such as `constraints.interval(0, 1)`.
        event_shape: The shape of one point, if there is only one.

    Raises:
        OptionError: It is no continuous constraint.
    """

    no_complement = "the outside of a wall may have infinite volume; lift a function that is infinite inside."

    def __init__(self, support: Support, event_shape: Sequence[int] | None = None) -> None:
        super().__init__()
        self.support, self.event_shape = support, event_shape

    def config(self) -> dict[str, Any]:
        return {"support": self.support, "event_shape": None if self.event_shape is None else tuple(self.event_shape)}

    @property
    def grounded(self) -> bool:
        return is_bounded(self.support)

    def forward(self, x: Tensor) -> Tensor:
        return evaluate_inside(self.support, x, zeros)

    def __str__(self) -> str:
        return self.name or f"inside({format_support(self.support)})"


def inside(support: Support, event_shape: Sequence[int] | None = None) -> Inside:
    r"""Returns the energy 0 inside a support and $\infty$ outside, so that `E & inside(support)` is E within it.

    Args:
        support: The support, such as `constraints.interval(0, 1)`.
        event_shape: The shape of one point, if there is only one.

    Example:
        >>> import torch, composable_energy as ce
        >>> from torch.distributions import Normal, constraints
        >>> half = ce.as_energy(Normal(torch.zeros(1), 1.0)) & ce.inside(constraints.positive)
        >>> bool((half.sample(100, seed=0) > 0).all())
        True
    """
    return Inside(support, event_shape)
