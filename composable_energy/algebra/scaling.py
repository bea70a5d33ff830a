"""Powers and quotients of densities: `w * A`, `A.sharpened(w)`, `A - B`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from composable_energy.algebra.node import Node, Weight, keep_weight, number, one_space, scale, written
from composable_energy.energy import Energy, WeightedBase

__all__ = ["Difference", "Sharpened", "Weighted"]


class Weighted(Node):
    r"""A power of the density: $w E(x)$. The weight is a number or a 0-d tensor, which may be learnable.

    In a conjunction that shares its base, the base is counted once and the weight acts on the evidence; see `union_of_bases`.
    """

    precedence = 80
    weight: Weight

    def __init__(self, operand: Energy, weight: Weight) -> None:
        super().__init__(operand)
        keep_weight(self, weight)
        self._bases = tuple(WeightedBase(base.energy, _product(weight, base.weight)) for base in operand.bases)

    @property
    def grounded(self) -> bool:
        return number(self.weight) > 0 and self.terms[0].grounded

    def forward_evidence(self, x: Tensor, **conditions: Any) -> Tensor:
        return scale(self.weight, self.terms[0].evidence(x, **conditions))

    def extra_repr(self) -> str:
        return f"weight={number(self.weight):g}"

    def __str__(self) -> str:
        return f"{_digits(self.weight)} * {written(self.terms[0], self.precedence)}"


class Sharpened(Node):
    r"""$\text{base} + w \cdot \text{evidence}$: a concept with more or less weight than its posterior; guidance in the literature."""

    weight: Weight

    def __init__(self, operand: Energy, weight: Weight) -> None:
        super().__init__(operand)
        keep_weight(self, weight)
        self._bases = operand.bases

    @property
    def grounded(self) -> bool:
        return self.terms[0].grounded and (bool(self.bases) or number(self.weight) > 0)

    def forward_evidence(self, x: Tensor, **conditions: Any) -> Tensor:
        return scale(self.weight, self.terms[0].evidence(x, **conditions))

    def extra_repr(self) -> str:
        return f"weight={number(self.weight):g}"

    def __str__(self) -> str:
        return f"{written(self.terms[0], 95)}.sharpened({number(self.weight):g})"


class Difference(Node):
    r"""The raw quotient of two densities: $E_A(x) - E_B(x)$, a likelihood ratio. It is never grounded by itself.

    Bases that both have cancel.
    """

    precedence = 70

    def __init__(self, left: Energy, right: Energy) -> None:
        super().__init__(*one_space([left, right]))

    @property
    def grounded(self) -> bool:
        return False

    def forward_evidence(self, x: Tensor, **conditions: Any) -> Tensor:
        left, right = self.terms
        same = {base.energy.key: base.weight for base in left.bases}
        if same and same == {base.energy.key: base.weight for base in right.bases}:
            return left.evidence(x, **conditions) - right.evidence(x, **conditions)
        return left(x, **conditions) - right(x, **conditions)

    def __str__(self) -> str:
        left, right = self.terms
        return f"{written(left, self.precedence)} - {written(right, self.precedence + 1)}"


def _digits(weight: Weight) -> str:
    """A number is written so that it reads back as itself, a tensor shortly."""
    short = f"{number(weight):g}"
    return short if isinstance(weight, Tensor) or float(short) == weight else repr(weight)


def _product(a: Weight, b: Weight) -> Weight:
    return a if not isinstance(b, Tensor) and b == 1 else torch.as_tensor(a * b) if isinstance(a * b, Tensor) else a * b
