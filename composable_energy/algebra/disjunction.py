"""`A | B`: at least one term holds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from composable_energy.algebra.node import Node, Weight, add, joined_events, mixture, number, one_space, shared_bases, written
from composable_energy.checks import check_value
from composable_energy.energy import Energy, WeightedBase
from composable_energy.errors import ExpressionError, OptionError
from composable_energy.events import Formula, disjoin

__all__ = ["Disjunction"]

_Branch = tuple[Formula | Energy, tuple[WeightedBase, ...]]  # the second: its bases that other branches do not share


class Disjunction(Node):
    r"""At least one term holds: $-\log \sum_k w_k e^{-E_k - \log Z_k}$, a mixture of densities.

    Bases that all terms share stand outside. Without weights, events over one base are joined to a formula, whose evidence is
    $-\log P(\text{formula} \mid x)$, and disjunctions are flat: a term that is one gives its terms.

    Args:
        *terms: The energies, at least one.
        weights: Numbers $w_k > 0$, one for each term; 1 each if None. With weights every term is a density, events too.
        log_z: Estimates of $\log Z_k$, the logarithms of $\int e^{-E_k}$; 0 each if None.

    Raises:
        OptionError: Weights are not positive and finite, or not one for each term.
        ExpressionError: There are no terms, or they belong to two decoders, or one has no value.
        ShapeError: The terms take points of different shapes.

    Example:
        >>> import torch, composable_energy as ce
        >>> left, right = (ce.as_energy(lambda x, c=c: (x - c).square().sum(1) / 2) for c in (-2.0, 2.0))
        >>> (left | right)(torch.tensor([[-2.0], [2.0]]))
        tensor([-0.0003, -0.0003])
    """

    precedence = 50

    def __init__(self, *terms: Energy, weights: Sequence[Weight] | None = None, log_z: Sequence[float] | None = None) -> None:
        if not terms:
            raise ExpressionError("A disjunction has at least one term.")
        weighted = weights is not None or log_z is not None
        super().__init__(*one_space(terms if weighted else [inner for term in terms for inner in _flat(term)]))
        self.weighted = weighted
        self.weights = None if weights is None else _numbers(weights, "weights", len(terms))
        self.log_z = None if log_z is None else _numbers(log_z, "log_z", len(terms))
        if not all(0 < weight < math.inf for weight in self.weights or ()):
            raise OptionError(f"The weights of a disjunction are positive and finite, got {list(self.weights or ())}.")
        self._bases = shared_bases(self.terms)
        self._formulas, self._others = ((), self.terms) if self.weighted else joined_events(self.terms, disjoin)
        self._branches = tuple(map(self._branch, (*self._formulas, *self._others)))
        for term in self.terms:
            check_value(term, "A mixture", evidence=True)
            for base in self._branch(term)[1]:
                check_value(base.energy, "A mixture")

    @property
    def formula(self) -> Formula | None:
        return self._formulas[0] if len(self._formulas) == 1 and not self._others else None

    @property
    def grounded(self) -> bool:
        return all(term.grounded for term in self.terms)

    def branches(self, x: Tensor, **conditions: Any) -> Tensor:
        r"""Returns the energies $E_k + \log Z_k - \log w_k$ of each term less the shared bases, with shape $(K, B)$."""
        parts = self._branches if self.weighted else map(self._branch, self.terms)
        branches = torch.stack([_energies(part, x, conditions) for part in parts])
        if self.weights is not None:
            branches = branches - branches.new_tensor([math.log(weight) for weight in self.weights])[:, None]
        return branches if self.log_z is None else branches + branches.new_tensor(self.log_z)[:, None]

    def forward_evidence(self, x: Tensor, **conditions: Any) -> Tensor:
        if self.weighted:
            return mixture(self.branches(x, **conditions))
        branches = [_energies(branch, x, conditions) for branch in self._branches]
        return branches[0] if len(branches) == 1 else mixture(torch.stack(branches))

    def _branch(self, part: Formula | Energy) -> _Branch:
        bases = part.bases if isinstance(part, Energy) else () if part.base is None else (WeightedBase(part.base),)
        shared = {base.energy.key for base in self._bases}
        return part, tuple(base for base in bases if base.energy.key not in shared)

    def __str__(self) -> str:
        if not self.weighted:
            return " | ".join(written(term, self.precedence) for term in self.terms)
        weights = ", ".join(f"{weight:g}" for weight in self.weights or [1.0] * len(self.terms))
        return f"any_of({', '.join(map(str, self.terms))}, weights=[{weights}])"


def _energies(branch: _Branch, x: Tensor, conditions: dict[str, Any]) -> Tensor:
    part, bases = branch
    evidence = part.energy(x, **conditions) if isinstance(part, Formula) else part.evidence(x, **conditions)
    return add([evidence, *(base(x, **conditions) for base in bases)], signed=isinstance(part, Energy) and part._signed)


def _flat(term: Energy) -> Sequence[Energy]:
    return term.terms if isinstance(term, Disjunction) and not term.weighted else (term,)


def _numbers(values: Sequence[Weight], name: str, count: int) -> tuple[float, ...]:
    if len(values) != count:
        raise OptionError(f"A disjunction of {count} terms takes {count} {name}, got {len(values)}.")
    if any(isinstance(value, Tensor) and value.requires_grad for value in values):
        raise OptionError(f"The {name} of a disjunction are fixed numbers; a weight that is learnt stands at a term, as in `w * A`.")
    return tuple(map(number, values))
