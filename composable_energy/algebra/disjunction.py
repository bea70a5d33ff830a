"""Disjunctions `A | B`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from composable_energy.algebra.node import Node, Weight, as_float
from composable_energy.algebra.shares import Shares, mixture_normalizer, shares_of
from composable_energy.algebra.spaces import to_common_space
from composable_energy.algebra.terms import contains, distinct, flatten, join_events, shared_bases
from composable_energy.algebra.text import join_operands
from composable_energy.arithmetic import add, mixture
from composable_energy.bases import WeightedBase, evidence_of
from composable_energy.energy import Energy
from composable_energy.errors import ContradictionError, ExpressionError, OptionError
from composable_energy.estimate import Estimate
from composable_energy.events import Formula, disjoin
from composable_energy.support_sets import unite
from composable_energy.supports import Support

__all__ = ["Disjunction"]

_Branch = tuple[Formula | Energy, tuple[WeightedBase, ...]]  # a term, and its bases that are not shared by all branches


class Disjunction(Node):
    r"""The disjunction of energies, a mixture of densities: $-\log \sum_k w_k e^{-E_k - \log Z_k}$.

    Bases shared by all terms are factored out. Without weights, events over one base become one formula with evidence
    $-\log P(\text{formula} \mid x)$, and nested disjunctions are flattened. Unsatisfiable terms have share 0.

    Attributes:
        satisfiable_terms: The terms that are satisfiable; all terms if the disjunction itself is unsatisfiable.

    Args:
        *terms: One or more energies.
        weights: Numbers $w_k > 0$, one for each term; 1 each if None. With weights, events are treated as densities.
        log_z: Estimates of $\log Z_k$, the logarithms of $\int e^{-E_k}$; 0 each if None.
        log_z_errors: The standard errors of the estimates; None if they are not known.

    Raises:
        OptionError: Weights are not positive and finite, or not one for each term.
        ExpressionError: There are no terms, they have different decoders, or one has no value.
        ShapeError: The terms take points of different shapes.

    Example:
        >>> import torch, composable_energy as ce
        >>> left, right = (ce.as_energy(lambda x, c=c: (x - c).square().sum(1) / 2) for c in (-2.0, 2.0))
        >>> (left | right)(torch.tensor([[-2.0], [2.0]]))
        tensor([-0.0003, -0.0003])
    """

    precedence = 50

    def __init__(
        self,
        *terms: Energy,
        weights: Sequence[Weight] | None = None,
        log_z: Sequence[float] | None = None,
        log_z_errors: Sequence[float] | None = None,
    ) -> None:
        if not terms:
            raise ExpressionError("A disjunction needs at least one term.")
        weighted = weights is not None or log_z is not None
        super().__init__(*to_common_space(terms if weighted else flatten(terms, _nested_terms)))
        self.weighted = weighted
        self.weights = None if weights is None else _as_floats(weights, "weights", len(terms))
        self.log_z = None if log_z is None else _as_floats(log_z, "log_z", len(terms))
        self.log_z_errors = None if log_z_errors is None else _as_floats(log_z_errors, "log_z_errors", len(terms))
        if not all(0 < weight < math.inf for weight in self.weights or ()):
            raise OptionError(f"The weights of a disjunction must be positive and finite, got {list(self.weights or ())}.")
        self.satisfiable_terms = tuple(term for term in self.terms if not term.unsatisfiable) or self.terms
        self._bases = shared_bases(self.satisfiable_terms)
        self._formulas, self._others = ((), self.terms) if self.weighted else join_events(self.satisfiable_terms, disjoin)
        counts = distinct(() if self.weighted else self._others)
        self._branches = tuple(map(self._branch, (*self._formulas, *(counts or self._others))))
        self._counts = (*[1] * len(self._formulas), *counts.values())  # for a mixture without weights
        self._unsatisfiable = all(term.unsatisfiable for term in distinct(self.terms))
        for term in distinct(self.satisfiable_terms):
            self.need_values("A mixture", [term, *(base.energy for base in self._branch(term)[1])])

    def config(self) -> dict[str, Any]:
        errors = {} if self.log_z_errors is None else {"log_z_errors": self.log_z_errors}
        return {"weights": self.weights, "log_z": self.log_z, **errors}

    @property
    def shares(self) -> Shares:
        """What the shares of the branches are: `exact`, `calibrated`, `chosen`, `known` or `unknown`; see `shares_of`."""
        return shares_of(self)

    @property
    def log_normalizer(self) -> Estimate | None:
        return mixture_normalizer(self)

    @property
    def formula(self) -> Formula | None:
        return self._formulas[0] if len(self._formulas) == 1 and not self._others else None

    @property
    def grounded(self) -> bool:
        return all(term.grounded for term in distinct(self.satisfiable_terms))

    def join_supports(self, supports: Sequence[Support]) -> Support:
        pairs = [(term, support) for term, support in zip(self.terms, supports, strict=True) if term in self.satisfiable_terms]
        return unite(pairs, one_number=self.event_shape is not None and self.event_shape.numel() == 1)

    def branches(self, x: Tensor, **conditions: Any) -> Tensor:
        r"""Returns the energies $E_k + \log Z_k - \log w_k$ of all terms minus the shared bases, with shape $(K, B)$.

        Energies of unsatisfiable terms are $\infty$.

        Raises:
            ContradictionError: All terms are unsatisfiable.
        """
        self.check_values("A mixture")
        branches = self._energies([self._branch(term) for term in self.terms], x, conditions)
        like = next(energies for energies in branches if energies is not None)
        return torch.stack([torch.full_like(like, math.inf) if energies is None else energies for energies in branches])

    def forward_evidence(self, x: Tensor, **conditions: Any) -> Tensor:
        self.check_values("A mixture")
        counts = () if self.weighted else self._counts
        branches = [energies for energies in self._energies(self._branches, x, conditions, counts) if energies is not None]
        return branches[0] if len(branches) == 1 else mixture(torch.stack(branches))

    def _energies(
        self, branches: Sequence[_Branch], x: Tensor, conditions: dict[str, Any], counts: Sequence[int] = ()
    ) -> list[Tensor | None]:
        """Returns the energies of branches, each counted `counts` times; None for unsatisfiable branches."""
        found = [_branch_energies(branch, x, conditions) for branch in branches]
        if all(energies is None for energies in found):
            raise ContradictionError(f"No point fulfils {self}: each branch has probability 0 for any output of the networks.")
        shifts = [-math.log(count) for count in counts] or [0.0] * len(found)
        if self.weighted:
            weights, log_z = self.weights or [1.0] * len(found), self.log_z or [0.0] * len(found)
            shifts = [z - math.log(weight) for weight, z in zip(weights, log_z, strict=True)]
        return [e if e is None or shift == 0 else e + shift for e, shift in zip(found, shifts, strict=True)]

    def _branch(self, part: Formula | Energy) -> _Branch:
        bases = part.bases if isinstance(part, Energy) else () if part.base is None else (WeightedBase(part.base),)
        return part, tuple(base for base in bases if not contains(self._bases, base.energy))

    def __str__(self) -> str:
        if not self.weighted:
            return join_operands(self.terms, " | ", self.precedence)
        weights = ", ".join(f"{weight:g}" for weight in self.weights or [1.0] * len(self.terms))
        return f"any_of({', '.join(map(str, self.terms))}, weights=[{weights}])"


def _branch_energies(branch: _Branch, x: Tensor, conditions: dict[str, Any]) -> Tensor | None:
    """Returns the energies of a branch; None if it is unsatisfiable."""
    part, bases = branch
    if isinstance(part, Energy) and part.unsatisfiable:
        return None
    try:
        evidence = part.energy(x, **conditions) if isinstance(part, Formula) else evidence_of(part, x, conditions)
        return add([evidence, *(base(x, **conditions) for base in bases)], signed=isinstance(part, Energy) and part._signed)
    except ContradictionError:  # the number of labels is known only after evaluation
        return None


def _nested_terms(term: Energy) -> Sequence[Energy] | None:
    return term.terms if isinstance(term, Disjunction) and not term.weighted else None


def _as_floats(values: Sequence[Weight], name: str, count: int) -> tuple[float, ...]:
    if len(values) != count:
        raise OptionError(f"A disjunction of {count} terms takes {count} {name}, got {len(values)}.")
    if any(isinstance(value, Tensor) and value.requires_grad for value in values):
        raise OptionError(f"The {name} of a disjunction must be fixed numbers; for a learnable weight write `w * A` for a term.")
    return tuple(map(as_float, values))
