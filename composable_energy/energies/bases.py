r"""Relative energies $E(x) = \sum_b w_b\, b(x) + \text{evidence}(x)$, and the evaluation of their terms.

A base $b$ is a density shared by many concepts, the evidence is what one concept adds. The algebra counts each base once.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling

from composable_energy.arithmetic import add, scale, subtract
from composable_energy.energies.checks import check_energies, check_value
from composable_energy.energies.conditions import Parameters, method_parameters
from composable_energy.energies.energy import Energy
from composable_energy.energies.evaluation import THREAD, evaluate_once, evaluating, note_repeated, seen, uses_own_gradient
from composable_energy.energies.identity import same
from composable_energy.supports import Support, intersect

if TYPE_CHECKING:
    from composable_energy.algebra import Weighted


@dataclass(frozen=True)
class WeightedBase:
    """A base and the nodes `w * A` around it, whose factors may be learnable; calling it returns weighted energies."""

    energy: Energy
    scaled_by: tuple["Weighted", ...] = ()

    @property
    def weight(self) -> float | Tensor:
        """The weight; 1 if nothing scales the base."""
        return math.prod(node.factor for node in self.scaled_by) if self.scaled_by else 1.0

    def __call__(self, x: Tensor, **conditions: Any) -> Tensor:
        return scale(self.weight, evaluate_once(self.energy, x, select_conditions(self.energy, conditions)))


class RelativeEnergy(Energy, ABC):
    r"""Abstract energy $E(x) = \sum_b w_b\, b(x) + \text{evidence}(x)$, which is infinite where a base is. A subclass implements
    `forward_evidence`, and its constructor sets `bases` to distinct `WeightedBase`; without bases it is absolute."""

    bases: tuple[WeightedBase, ...] = ()
    _repeated: tuple[Energy, ...] = ()  # sub-expressions that occur more than once
    _valueless: tuple[Energy, ...] = ()  # terms and bases whose values this energy itself needs, and that have none
    _values_for: str = ""  # what needs them

    @abstractmethod
    def forward_evidence(self, x: Tensor, *args: Any, **conditions: Any) -> Tensor:
        """Returns the evidence, with shape $(B,)$, of points with shape $(B, *)$."""

    def forward(self, x: Tensor, **conditions: Any) -> Tensor:
        if self._repeated:
            note_repeated(self._repeated)
        evidence, bases = self._evidence(x, conditions), self.bases
        if not bases:
            return evidence  # `__call__` checks it
        return add([check_energies(self, evidence, x), *(base(x, **conditions) for base in bases)], signed=self._signed)

    def evidence(self, x: Tensor, **conditions: Any) -> Tensor:
        evaluation, kind = THREAD.evaluation, type(self)
        if (evaluation is None or evaluation.memo is None) and not is_dynamo_compiling():
            with evaluating():
                return self.evidence(x, **conditions)
        if self._repeated:
            note_repeated(self._repeated)
        whole = kind.has_value is False or (evaluation is not None and evaluation.given is not None and self in evaluation.given)
        if whole or (kind.has_own_gradient and uses_own_gradient(self, x)):
            total = self(x, **conditions)
            for base in self.bases:
                total = subtract(total, base(x, **conditions))
            return total
        direct = self._direct if not conditions and type(x) is Tensor else None
        if not direct or (x.shape, x.dtype, x.device) not in direct:
            conditions = self._check_input(x, conditions)
        return check_energies(self, self._evidence(x, conditions), x)

    def _evidence(self, x: Tensor, conditions: dict[str, Any]) -> Tensor:
        if self._valueless and (THREAD.evaluation is None or THREAD.evaluation.given is None):
            check_value(self._valueless[0], self._values_for, evidence=True)
        own = method_parameters(type(self).forward_evidence)
        if not own.open:  # a leaf takes its own conditions; a node takes all and passes them on
            conditions = {name: value for name, value in conditions.items() if name in own.names}
            x = x if "sigma" in own.names else seen(x)
        return self.forward_evidence(x, **conditions)

    @property
    def has_value(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        for base in self.bases:
            if not base.energy.has_value:
                return False
        return self.evidence_has_value

    @property
    def evidence_has_value(self) -> bool:
        return type(self).has_value is not False  # pyright: ignore[reportUnnecessaryComparison]  (a class may set it)

    @property
    def evidence_parameters(self) -> Parameters:
        """The conditions of the evidence, without those of the bases."""
        return method_parameters(type(self).forward_evidence)

    @property
    def conditions(self) -> frozenset[str]:
        return self.evidence_parameters.names.union(*(base.energy.conditions for base in self.bases))

    @property
    def required_conditions(self) -> frozenset[str]:
        return self.evidence_parameters.required.union(*(base.energy.required_conditions for base in self.bases))

    @property
    def support(self) -> Support:
        return intersect([(base.energy, base.energy.support) for base in self.bases]) if self.bases else None

    @property
    def decoder(self) -> nn.Module | None:
        return next((base.energy.decoder for base in self.bases if base.energy.decoder is not None), None)

    @property
    def grounded(self) -> bool:
        return any(base.energy.grounded for base in self.bases)

    @property
    def unsatisfiable(self) -> bool:
        return (self.formula is not None and self.formula.constant is False) or any(base.energy.unsatisfiable for base in self.bases)


def value_of(term: Energy, x: Tensor, conditions: Mapping[str, Any]) -> Tensor:
    """Returns the energies of a term, evaluated once if the term occurs several times in the expression."""
    own = select_conditions(term, conditions) if conditions else conditions
    evaluation = THREAD.evaluation
    repeated = evaluation is not None and id(term) in evaluation.repeated
    return evaluate_once(term, x, own, always=True) if repeated else term(x, **own)


def evidence_of(term: Energy, x: Tensor, conditions: Mapping[str, Any]) -> Tensor:
    """Returns the evidence of a term, evaluated once if the term occurs several times in the expression."""
    own = select_conditions(term, conditions) if conditions else conditions
    if (evaluation := THREAD.evaluation) is not None and id(term) in evaluation.repeated:
        return evaluate_once(term.evidence if term.bases else term, x, own, always=True)  # without bases the value, which others may need
    return term.evidence(x, **own) if term.terms or term.bases else term(x, **own)


def select_conditions(energy: Energy, conditions: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the conditions that an energy depends on, of those that an expression passes to its terms."""
    return {name: conditions[name] for name in energy.conditions & conditions.keys()}


def union_of_bases(terms: Sequence[Energy]) -> tuple[WeightedBase, ...]:
    """Returns each distinct base once, with the weight that all terms give it, else 1: `A & 2 * B` adds twice the evidence of B."""
    found: list[WeightedBase] = []
    for term in terms:
        for base in term.bases:
            if (index := next((i for i, other in enumerate(found) if same(other.energy, base.energy)), None)) is None:
                found.append(base)
            elif not _same_weight(found[index], base):
                found[index] = WeightedBase(found[index].energy)
    return tuple(found)


def shared_bases(terms: Sequence[Energy]) -> tuple[WeightedBase, ...]:
    """Returns the bases that all terms have with the same weight; a mixture factors them out."""
    found = terms[0].bases
    for term in terms[1:]:
        found = tuple(base for base in found if any(same(other.energy, base.energy) and _same_weight(other, base) for other in term.bases))
    return found


def contains(bases: Sequence[WeightedBase], energy: Energy) -> bool:
    """Returns whether an energy is one of the bases."""
    return any(same(base.energy, energy) for base in bases)


def _same_weight(a: WeightedBase, b: WeightedBase) -> bool:
    """Returns whether weights are equal numbers, or products of the same tensors, which stay equal in training."""
    if isinstance(a.weight, Tensor) or isinstance(b.weight, Tensor):
        return [node.weight_key for node in a.scaled_by] == [node.weight_key for node in b.scaled_by]
    return a.weight == b.weight
