"""Negations `~A`, in three modes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor
from torch.nn import functional as F

from composable_energy.algebra.node import Node, Weight, as_float, dividing_by, set_weight
from composable_energy.algebra.text import format_operand
from composable_energy.arithmetic import scale, zeros
from composable_energy.bases import evidence_of
from composable_energy.checks import check_value
from composable_energy.energy import Energy
from composable_energy.errors import ContradictionError, ExpressionError, OptionError
from composable_energy.events import Formula, complement
from composable_energy.options import check_choice
from composable_energy.support_sets import intersect, is_full
from composable_energy.supports import Support

__all__ = ["Mode", "Negation"]

Mode = Literal["complement", "contrast", "power"]
_DEFAULT_WEIGHT = {"complement": 1.0, "contrast": 1.0, "power": 0.01}


class Negation(Node):
    r"""The complement of an energy with evidence $e$, over the same bases.

    | mode | evidence of `~A` | default for |
    |---|---|---|
    | `complement` | $-w \log(1 - P(c \mid x))$, exact | events |
    | `contrast` | $w\, \mathrm{softplus}(b - e)$: $x$ came from the base and not from A; bounded below | other relative energies |
    | `power` | $-w\, e$, the rule of Du et al. (2020, section 3.3), $w = .01$; unbounded | absolute energies |

    The complement of an unsatisfiable operand has evidence 0; with the mode `power` evaluating it is an error.

    Args:
        operand: The energy A.
        mode: The mode; None for the default.
        weight: $w > 0$; None for 1, or .01 for `power`.
        offset: $b$, for `contrast`: the evidence at which A and the base are equally likely.

    Raises:
        OptionError: The mode is unknown or the weight not positive.
        ExpressionError: The mode is `complement` and A is not an event, the mode is `contrast` and A has no value, or A has no
            complement.
    """

    precedence = 90
    weight: Weight

    def __init__(self, operand: Energy, mode: Mode | None = None, weight: Weight | None = None, offset: float = 0.0) -> None:
        super().__init__(operand)
        event = operand.formula
        self.mode: Mode = mode or ("complement" if event is not None else "contrast" if operand.bases else "power")
        check_choice("mode", self.mode, _DEFAULT_WEIGHT)
        if mode is None and operand.no_complement is not None:
            raise ExpressionError(f"~ of {operand}: {operand.no_complement}")
        if self.mode == "complement" and event is None:
            raise ExpressionError(f"{operand} is not an event, so 1 - p(c | x) is unknown; use mode 'contrast' or 'power'.")
        set_weight(self, _DEFAULT_WEIGHT[self.mode] if weight is None else weight)
        if not as_float(self.weight) > 0:
            raise OptionError(f"The weight of a negation must be positive, got {as_float(self.weight)}.")
        self.offset = offset
        if self.mode == "contrast":
            check_value(operand, "A contrast", evidence=True)
        self._evidence_has_value = self.mode == "complement" or operand.evidence_has_value
        self._signed |= self.mode == "power"
        self._bases = operand.bases
        self._complement = complement(event) if self.mode == "complement" and event is not None else None
        always = self._complement is not None and self._complement.constant is False  # the operand is always true
        self._unsatisfiable = always or any(base.energy.unsatisfiable for base in self._bases)

    def config(self) -> dict[str, Any]:
        return {"mode": self.mode, "weight": self.weight, "offset": self.offset}

    @property
    def formula(self) -> Formula | None:
        return self._complement if not isinstance(self.weight, Tensor) and self.weight == 1 else None

    def join_supports(self, supports: Sequence[Support]) -> Support:
        """Returns the support of the bases; else the space of the operand, as "not in (0, 1)" holds at 2, and on no other simplex."""
        if self.mode == "power":  # the quotient by a density has no value where that is 0
            return supports[0]
        bases = [(base.energy, base.energy.support) for base in self._bases]
        return intersect(bases) if bases else None if is_full(supports[0]) else supports[0]

    @property
    def grounded(self) -> bool:
        return self.mode != "power" and any(base.energy.grounded for base in self.bases)

    def forward_evidence(self, x: Tensor, **conditions: Any) -> Tensor:
        if self._complement is not None:
            return scale(self.weight, self._complement.energy(x, **conditions))
        if self.mode == "power":
            with dividing_by(self):
                return scale(self.weight, -evidence_of(self.terms[0], x, conditions))
        try:
            return scale(self.weight, F.softplus(self.offset - evidence_of(self.terms[0], x, conditions)))
        except ContradictionError:
            return zeros(x)

    def extra_repr(self) -> str:
        weight = as_float(self.weight)
        return f"mode={self.mode!r}" + (f", weight={weight:g}" if weight != _DEFAULT_WEIGHT[self.mode] else "")

    def __str__(self) -> str:
        return "~" + format_operand(self.terms[0], self.precedence)
