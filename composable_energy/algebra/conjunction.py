"""Conjunctions `A & B`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from composable_energy.algebra.node import Node
from composable_energy.algebra.spaces import to_common_space
from composable_energy.algebra.terms import contains, distinct, flatten, join_events, union_of_bases
from composable_energy.algebra.text import Operand, join_operands
from composable_energy.arithmetic import add, scale
from composable_energy.bases import evidence_of
from composable_energy.energy import Energy
from composable_energy.errors import ExpressionError
from composable_energy.events import Formula, conjoin
from composable_energy.supports import Support, intersect


class Conjunction(Node):
    r"""The conjunction of energies: each distinct base once, plus the sum of evidences; for absolute energies $\sum_k E_k$ (Hinton, 1999).

    Events over one base become one formula with evidence $-\log P(\text{formula} \mid x)$. A term that is the base of another is counted
    once. Nested conjunctions are flattened. A conjunction is unsatisfiable if a term is, or if events exclude each other.

    Args:
        *terms: One or more energies.

    Attributes:
        concepts: The terms that are not the base of another.

    Raises:
        ExpressionError: There are no terms, or they have different decoders.
        ShapeError: The terms take points of different shapes.

    Example:
        >>> import torch, composable_energy as ce
        >>> bowl = ce.as_energy(lambda x: x.square().sum(1) / 2)
        >>> (bowl & bowl)(torch.ones(3, 2))
        tensor([2., 2., 2.])
    """

    sums = True
    precedence = 60

    def __init__(self, *terms: Energy) -> None:
        if not terms:
            raise ExpressionError("A conjunction needs at least one term.")
        super().__init__(*to_common_space(flatten(terms, lambda term: term.terms if isinstance(term, Conjunction) else None)))
        self._bases = union_of_bases(self.terms)
        self.concepts = tuple(term for term in self.terms if not contains(self._bases, term)) or self.terms
        self._formulas, others = join_events([term for term in self.terms if not contains(self._bases, term)], conjoin)
        self._others = distinct(others)
        self._unsatisfiable |= any(formula.constant is False for formula in self._formulas)
        self._evidence_has_value = all(term.evidence_has_value for term in self._others)

    @property
    def formula(self) -> Formula | None:
        return self._formulas[0] if len(self._formulas) == 1 and not self._others else None

    @property
    def grounded(self) -> bool:
        return any(term.grounded for term in distinct(self.terms))

    def join_supports(self, supports: Sequence[Support]) -> Support:
        bases = [(base.energy, base.energy.support) for base in self._bases]
        return intersect([*zip(self.terms, supports, strict=True), *bases])

    def forward_evidence(self, x: Tensor, **conditions: Any) -> Tensor:
        parts = [formula.energy(x, **conditions) for formula in self._formulas] if self._formulas else []
        for term, count in self._others.items():
            evidence = evidence_of(term, x, conditions)
            parts.append(evidence if count == 1 else scale(count, evidence))
        return add(parts, signed=self._signed)

    def text(self, operand: Operand) -> str:
        return join_operands(operand, self.terms, " & ", self.precedence)
