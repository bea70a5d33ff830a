"""Powers and quotients of densities: `w * A`, `A.sharpened(w)`, `A - B`."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from torch import Tensor

from composable_energy.algebra.node import Node, Weight, as_float, dividing_by, set_weight
from composable_energy.algebra.spaces import to_common_space
from composable_energy.algebra.terms import shared_bases
from composable_energy.algebra.text import Operand
from composable_energy.arithmetic import add, scale
from composable_energy.bases import WeightedBase, evidence_of, value_of
from composable_energy.energy import Energy
from composable_energy.events import Formula
from composable_energy.supports import Support, intersect


class Weighted(Node):
    r"""A power of the density: $w E(x)$, or $E(x) / w$.

    In a conjunction over the same base the base is counted once and the weight scales the evidence; see `union_of_bases`. Where $E$ is
    infinite, $0\, E$ is infinite, too, so the support stays.

    Args:
        operand: The energy.
        weight: A number or a 0-d tensor, which may be learnable.
        inverse: Whether to divide by the weight, for a learnable temperature.
    """

    sums = True
    precedence = 80
    weight: Weight

    def __init__(self, operand: Energy, weight: Weight, inverse: bool = False) -> None:
        super().__init__(operand)
        set_weight(self, weight)
        self._unsatisfiable = self._unsatisfiable and as_float(self.weight) >= 0
        self.inverse = inverse
        self._signed |= isinstance(weight, Tensor) or weight < 0

    @property
    def bases(self) -> tuple[WeightedBase, ...]:
        return tuple(WeightedBase(base.energy, (*base.scaled_by, self)) for base in self.terms[0].bases)

    @property
    def factor(self) -> Weight:
        """The current factor of the energy."""
        return 1 / self.weight if self.inverse else self.weight

    def config(self) -> dict[str, Any]:
        return {"weight": self.weight, "inverse": self.inverse}

    @property
    def weight_key(self) -> Hashable:
        """A key that is equal for nodes whose factors stay equal in training."""
        return id(self.weight) if isinstance(self.weight, Tensor) else self.weight, self.inverse

    @property
    def formula(self) -> Formula | None:
        """The formula of an event with the weight 1, in all; none with a tensor, which may change."""
        weight, inner = self.factor, self.terms[0]
        while isinstance(inner, Weighted):
            weight, inner = weight * inner.factor, inner.terms[0]
        return inner.formula if not isinstance(weight, Tensor) and weight == 1 else None

    @property
    def grounded(self) -> bool:
        return as_float(self.weight) > 0 and self.terms[0].grounded

    def forward_evidence(self, x: Tensor, **conditions: Any) -> Tensor:
        with dividing_by(self, self.weight):
            return scale(self.factor, evidence_of(self.terms[0], x, conditions))

    def extra_repr(self) -> str:
        return f"weight={as_float(self.factor):g}"

    def text(self, operand: Operand) -> str:
        inner = operand(self.terms[0], self.precedence)
        return f"{inner} / {_format_weight(self.weight)}" if self.inverse else f"{_format_weight(self.weight)} * {inner}"


class Sharpened(Node):
    r"""An energy with weighted evidence: $\text{base} + w \cdot \text{evidence}$, known as guidance."""

    sums = True
    weight: Weight

    def __init__(self, operand: Energy, weight: Weight) -> None:
        super().__init__(operand)
        set_weight(self, weight)
        self._unsatisfiable = self._unsatisfiable and as_float(self.weight) >= 0
        self._signed |= isinstance(weight, Tensor) or weight < 0
        self._bases = operand.bases

    def config(self) -> dict[str, Any]:
        return {"weight": self.weight}

    @property
    def formula(self) -> Formula | None:
        return self.terms[0].formula if not isinstance(self.weight, Tensor) and self.weight == 1 else None

    @property
    def grounded(self) -> bool:
        weight = as_float(self.weight)
        return self.terms[0].grounded and (weight > 0 or (weight == 0 and bool(self.bases)))

    def forward_evidence(self, x: Tensor, **conditions: Any) -> Tensor:
        with dividing_by(self, self.weight):
            return scale(self.weight, evidence_of(self.terms[0], x, conditions))

    def extra_repr(self) -> str:
        return f"weight={as_float(self.weight):g}"

    def text(self, operand: Operand) -> str:
        return f"{operand(self.terms[0], 95)}.sharpened({as_float(self.weight):g})"


class Difference(Node):
    r"""The quotient of two densities: $E_A(x) - E_B(x)$, a likelihood ratio. It is never grounded by itself.

    Common bases cancel. Where both energies are infinite, the difference is infinite. The support is the intersection, as the ratio has no
    value where $p_B$ is 0.
    """

    sums = True
    precedence = 70

    def __init__(self, left: Energy, right: Energy) -> None:
        super().__init__(*to_common_space([left, right]))
        counts = [len(term.bases) for term in self.terms]
        self._unsatisfiable = left.unsatisfiable
        self._cancels = counts == [len(shared_bases(self.terms))] * 2
        self._signed = True
        self._evidence_has_value = all(term.evidence_has_value if self._cancels else term.has_value for term in self.terms)

    @property
    def grounded(self) -> bool:
        return False

    def join_supports(self, supports: Sequence[Support]) -> Support:
        return intersect(list(zip(self.terms, supports, strict=True)))

    def forward_evidence(self, x: Tensor, **conditions: Any) -> Tensor:
        left, right = self.terms
        of = evidence_of if self._cancels else value_of
        above = of(left, x, conditions)
        with dividing_by(self):
            return add([above, -of(right, x, conditions)], signed=True)

    def text(self, operand: Operand) -> str:
        left, right = self.terms
        return f"{operand(left, self.precedence)} - {operand(right, self.precedence + 1)}"


def _format_weight(weight: Weight) -> str:
    """Returns the text of a weight: exact for a number, short for a tensor."""
    short = f"{as_float(weight):g}"
    return short if isinstance(weight, Tensor) or float(short) == weight else repr(weight)
