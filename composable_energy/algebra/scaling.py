"""Powers and quotients of densities: `w * A`, `A.sharpened(w)`, `A - B`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from composable_energy.algebra.node import Node, Weight, add, one_space, scale, written
from composable_energy.energy import Energy, WeightedBase
from composable_energy.errors import OptionError

__all__ = ["Difference", "Sharpened", "Weighted"]


class Weighted(Node):
    r"""A power of the density: $w E(x)$. The weight is a number or a 0-d tensor, which may be learnable.

    In a conjunction that shares its base, the base is counted once and the weight acts on the evidence; see `union_of_bases`.
    """

    precedence = 80

    def __init__(self, operand: Energy, weight: Weight) -> None:
        super().__init__(operand)
        _keep_weight(self, weight)
        self._bases = tuple(WeightedBase(base.energy, _product(weight, base.weight)) for base in operand.bases)

    @property
    def grounded(self) -> bool:
        return float(self.weight) > 0 and self.terms[0].grounded

    def forward_evidence(self, x: Tensor, **conditions: Any) -> Tensor:
        return scale(self.weight, self.terms[0].evidence(x, **conditions))

    def extra_repr(self) -> str:
        return f"weight={float(self.weight):g}"

    def __str__(self) -> str:
        return f"{float(self.weight):g} * {written(self.terms[0], self.precedence)}"


class Sharpened(Node):
    r"""$\text{base} + w \cdot \text{evidence}$: a concept with more or less weight than its posterior; guidance in the literature."""

    def __init__(self, operand: Energy, weight: Weight) -> None:
        super().__init__(operand)
        _keep_weight(self, weight)
        self._bases = operand.bases

    @property
    def grounded(self) -> bool:
        return self.terms[0].grounded and (bool(self.bases) or float(self.weight) > 0)

    def forward_evidence(self, x: Tensor, **conditions: Any) -> Tensor:
        return scale(self.weight, self.terms[0].evidence(x, **conditions))

    def extra_repr(self) -> str:
        return f"weight={float(self.weight):g}"

    def __str__(self) -> str:
        return f"{written(self.terms[0], 95)}.sharpened({float(self.weight):g})"


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


def _keep_weight(node: Weighted | Sharpened, weight: Weight) -> None:
    """A parameter is learnt and saved with the energy, another tensor follows its device, a number is exact."""
    if isinstance(weight, Tensor) and weight.ndim != 0:
        raise OptionError(f"A weight is a number or a 0-d tensor, got shape {tuple(weight.shape)}.")
    if isinstance(weight, nn.Parameter):
        node.weight = weight
    elif isinstance(weight, Tensor):
        node.register_buffer("weight", weight)
    else:
        node.weight = float(weight)


def _product(a: Weight, b: Weight) -> Weight:
    return a if not isinstance(b, Tensor) and b == 1 else torch.as_tensor(a * b) if isinstance(a * b, Tensor) else a * b
