"""Weighted sums of energies: `A & B`, `w * A`, `A.sharpened(w)`, `A - B`, `A.relative_to(B)`."""

import itertools
import math
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from composable_energy.algebra.node import Node, Operand, Weight, as_float, dividing_by, flatten, join_events, set_weight, to_common_space
from composable_energy.arithmetic import Estimate, add, scale, subtract
from composable_energy.energies.bases import WeightedBase, contains, evidence_of, select_conditions, shared_bases, union_of_bases, value_of
from composable_energy.energies.energy import Energy
from composable_energy.energies.evaluation import evaluate_once
from composable_energy.errors import ExpressionError, OptionError
from composable_energy.events import Formula, conjoin
from composable_energy.supports import Support, intersect


class Conjunction(Node):
    r"""The conjunction of energies: each distinct base once, plus the sum of evidences; for absolute energies $\sum_k E_k$ (Hinton, 1999).

    Events over one base become one formula with evidence $-\log P(\text{formula} \mid x)$. With positive weights $w_1 \ge w_2 \ge \dots$
    their evidence is $-\sum_k (w_k - w_{k+1}) \log P(A_1 \cap \dots \cap A_k \mid x)$, so that $w A \cap w B$ is $w (A \cap B)$, a weight
    of 0 leaves an event out, and independent events have $-\sum_k w_k \log P(A_k \mid x)$. A term that is the base of another is counted
    once. Nested conjunctions are flattened. A conjunction is unsatisfiable if a term is, or if events exclude each other.

    Args:
        *terms: One or more energies.

    Attributes:
        concepts: The terms that are not the base of another.

    Raises:
        ExpressionError: There are no terms, or they have different decoders.
        ShapeError: The terms take points of different shapes.

    Example:
        >>> bowl = ce.as_energy(lambda x: x.square().sum(1) / 2)
        >>> (bowl & bowl)(torch.ones(3, 2))
        tensor([2., 2., 2.])
    """

    sums = True
    precedence = 60
    _groups: Sequence[Sequence["Power"]] = ()

    def __init__(self, *terms: Energy) -> None:
        if not terms:
            raise ExpressionError("A conjunction needs at least one term.")
        super().__init__(*to_common_space(flatten(terms, Conjunction)))
        self.bases = union_of_bases(self.terms)
        concepts = tuple(term for term in self.terms if not contains(self.bases, term)) if self.bases else self.terms
        self.concepts = concepts or self.terms
        self._formulas, others = join_events(concepts, conjoin)
        self._others, self.evidence_has_value, weighted = Counter(others), True, bool(self.variables)
        for formula in self._formulas:
            self.formula = formula if len(self._formulas) == 1 and not others else None
            self.unsatisfiable |= formula.constant is False
        for term in self._others:
            self.evidence_has_value &= term.evidence_has_value
            weighted |= isinstance(term, Weighted | Conjunction)
        powers = {term: found for term in self._others if (found := powers_of(term))} if weighted else {}
        if powers:  # makes groups of dependent events
            every = dict.fromkeys([*(Power((), formula) for formula in self._formulas), *itertools.chain(*powers.values())])
            self._formulas, self._others = (), Counter({term: n for term, n in self._others.items() if term not in powers})
            self._groups, self._joined, self.formula = _group(every), dict[tuple[Formula, ...], Formula](), None
            self.unsatisfiable |= any(formula.constant is False and as_float(weight) > 0 for weight, formula in self._weighted())

    def _weighted(self) -> Iterator[tuple[Weight, Formula]]:
        """Yields exponents and formulas of the evidence of groups of dependent events; they follow learnable weights."""
        for group in self._groups:
            exponents = [power.exponent for power in group]
            order = sorted(range(len(group)), key=lambda i: -as_float(exponents[i]))
            positive = [i for i in order if as_float(exponents[i]) > 0]
            for i in order[len(positive) :]:
                yield exponents[i], group[i].formula
            for k, i in enumerate(positive):
                rest = exponents[i] - exponents[positive[k + 1]] if k + 1 < len(positive) else exponents[i]
                if isinstance(rest, Tensor) or rest > 0:
                    if (formulas := tuple(group[j].formula for j in sorted(positive[: k + 1]))) not in self._joined:
                        self._joined[formulas] = conjoin(formulas)
                    yield rest, self._joined[formulas]

    def join_grounded(self, grounded: Sequence[bool]) -> bool:
        return any(grounded) and (not self.variables or self.covered_by(itertools.compress(self.terms, grounded)))

    def summands(self) -> list[tuple[Energy, Weight]]:
        return [found for term in self.terms for found in term.summands()]

    def join_supports(self, supports: Sequence[Support]) -> Support:
        return intersect([*zip(self.terms, supports, strict=True), *((base.energy, base.energy.support) for base in self.bases)])

    @property
    def log_normalizer(self) -> Estimate | None:
        """The sum of those of factors, each over variables of its own."""
        names = Counter(name for term in self.terms for name in getattr(term, "names", (None,)))
        logs = [term.terms[0].log_normalizer for term in self.terms] if names == Counter([*self.variables]) else []
        known = [log for log in logs if log is not None]
        total = Estimate(math.fsum(log.value for log in known), math.hypot(*(log.standard_error for log in known)))
        return total if len(known) == len(self.terms) else None

    @property
    def powers(self) -> list["Power"]:
        """The powers of events whose product is its evidence; none if it is no such product."""
        return [] if self._others else [*(Power((), formula) for formula in self._formulas), *itertools.chain(*self._groups)]

    def forward_evidence(self, x: Tensor, **conditions: Any) -> Tensor:
        parts = [formula.energy(x, **conditions) for formula in self._formulas] if self._formulas else []
        if self._groups:
            parts += [scale(weight, formula.energy(x, **conditions)) for weight, formula in self._weighted()]
        for term, count in self._others.items():
            evidence = evidence_of(term, x, conditions)
            parts.append(evidence if count == 1 else scale(count, evidence))
        return add(parts, signed=self._signed)

    def text(self, operand: Operand) -> str:
        return " & ".join(operand(term, self.precedence) for term in self.terms)


class Weighted(Node):
    r"""A power of a density: $w E(x)$, or $E(x) / w$; or of its evidence: $\text{base} + w \cdot \text{evidence}$, known as guidance.

    In a conjunction over the same base the base is counted once and the weight scales the evidence; see `union_of_bases`. Where $E$ is
    infinite, $0\, E$ is infinite, too, so the support stays. A number 1, in all, keeps an event one.

    Args:
        operand: The energy.
        weight: A number or a 0-d tensor, which may be learnable.
        inverse: Whether to divide by the weight, for a learnable temperature.
        of_evidence: Whether to scale the evidence alone.
    """

    sums = True
    weight: Weight

    def __init__(self, operand: Energy, weight: Weight, inverse: bool = False, of_evidence: bool = False) -> None:
        super().__init__(operand)
        set_weight(self, weight)
        self.inverse, self.of_evidence, self.precedence = inverse, of_evidence, 100 if of_evidence else 80
        self.unsatisfiable = self.unsatisfiable and as_float(weight) >= 0
        self._signed |= isinstance(weight, Tensor) or weight < 0
        total, inner = self.factor, operand
        while isinstance(inner, Weighted) and inner.of_evidence == of_evidence:
            total, inner = total * inner.factor, inner.terms[0]
        self.formula = None if isinstance(total, Tensor) or total != 1 else inner.formula

    @property
    def bases(self) -> tuple[WeightedBase, ...]:
        bases = self.terms[0].bases
        return bases if self.of_evidence else tuple(WeightedBase(base.energy, (*base.scaled_by, self)) for base in bases)

    @property
    def factor(self) -> Weight:
        """The current factor of the energy."""
        return 1 / self.weight if self.inverse else self.weight

    @property
    def weight_key(self) -> Hashable:
        """A key that is equal for nodes whose factors stay equal in training."""
        return id(self.weight) if isinstance(self.weight, Tensor) else self.weight, self.inverse

    def config(self) -> dict[str, Any]:
        return {"weight": self.weight, "inverse": self.inverse, "of_evidence": self.of_evidence}

    def join_grounded(self, grounded: Sequence[bool]) -> bool:
        return grounded[0] and ((weight := as_float(self.weight)) > 0 or (weight == 0 and self.of_evidence and bool(self.bases)))

    def summands(self) -> list[tuple[Energy, Weight]]:
        if self.of_evidence and self.bases:
            return super().summands()
        return [(term, self.factor * weight) for term, weight in self.terms[0].summands()]

    def forward_evidence(self, x: Tensor, **conditions: Any) -> Tensor:
        with dividing_by(self, self.weight):
            return scale(self.factor, evidence_of(self.terms[0], x, conditions))

    def extra_repr(self) -> str:
        return f"weight={as_float(self.factor):g}{', of_evidence=True' if self.of_evidence else ''}"

    def text(self, operand: Operand) -> str:
        weight = f"{as_float(self.weight):g}"  # exact for a number, short for a tensor
        weight = weight if isinstance(self.weight, Tensor) or float(weight) == self.weight else repr(self.weight)
        if self.of_evidence:
            return f"{operand(self.terms[0], 95)}.sharpened({weight})"
        inner = operand(self.terms[0], self.precedence)
        return f"{inner} / {weight}" if self.inverse else f"{weight} * {inner}"


class Power(NamedTuple):
    """A power of the probability of an event, as in the evidence of `2 * A`: the nodes whose factors make the exponent, and the formula."""

    nodes: tuple[Weighted, ...]
    formula: Formula

    @property
    def exponent(self) -> Weight:
        """The current exponent."""
        return math.prod((node.factor for node in self.nodes), start=1.0)


def powers_of(term: Energy) -> list[Power]:
    """Returns the powers of events whose product is the evidence of a term; none if it is no such product, or a number is not positive."""
    if term.formula is not None:
        return [Power((), term.formula)]
    if isinstance(term, Weighted) and (isinstance(term.weight, Tensor) or term.weight > 0):
        return [Power((term, *nodes), formula) for nodes, formula in powers_of(term.terms[0])]
    if (place := getattr(term, "place_in_point", None)) and not term.values:
        return [Power(nodes, place.put(formula)) for nodes, formula in powers_of(term.terms[0])]
    return term.powers if isinstance(term, Conjunction) else []


def _group(powers: Iterable[Power]) -> list[list[Power]]:
    """Returns groups of powers that have a base and variables in common; those without a weight over one base are in one group."""

    def depend(one: Power, other: Power) -> bool:
        plain = not one.nodes and not other.nodes and one.formula.bases.keys() == other.formula.bases.keys()
        return one.formula.same_base(other.formula) and (plain or not set(one.formula.variables).isdisjoint(other.formula.variables))

    groups: list[list[Power]] = []
    for power in powers:
        mine = [group for group in groups if any(depend(power, other) for other in group)]
        groups = [*(group for group in groups if group not in mine), [*itertools.chain(*mine), power]]
    return groups


class Difference(Node):
    r"""The quotient of two densities: $E_A(x) - E_B(x)$, a likelihood ratio. It is never grounded by itself. Common bases cancel. Where
    both energies are infinite, so is the difference. The support is the intersection: no ratio if $p_B$ is 0."""

    sums = True
    precedence = 70
    _signed = True

    def __init__(self, left: Energy, right: Energy) -> None:
        super().__init__(*to_common_space([left, right]))
        self._cancels = all(len(term.bases) == len(shared_bases(self.terms)) for term in self.terms)
        self.unsatisfiable = left.unsatisfiable
        self.evidence_has_value = all(term.evidence_has_value if self._cancels else term.has_value for term in self.terms)

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


class Relative(Node):
    r"""An absolute energy relative to a base: the same density, with evidence $E - \text{base}$. Conjunctions count the base once:
    $\text{base} + \sum_i (E_i - \text{base})$, the corrected product of Du et al. (2023). The evidence is 0 where the base is infinite, so
    such a sum is infinite there."""

    sums = True
    has_value: bool = True

    def __init__(self, operand: Energy, base: Energy) -> None:
        if not isinstance(base, Energy):
            raise OptionError(f"base must be an energy, got {type(base).__name__}; lift it once with composable_energy.as_energy.")
        if operand.bases:
            raise ExpressionError(f"{operand} is already relative to {operand.bases[0].energy}.")
        super().__init__(*to_common_space([operand, base]))
        self.bases = (WeightedBase(self.terms[1]),)
        self.unsatisfiable = operand.unsatisfiable
        self.has_value = self.terms[0].has_value
        self.evidence_has_value = all(term.has_value for term in self.terms)

    def join_grounded(self, grounded: Sequence[bool]) -> bool:
        return grounded[0]

    @property
    def log_normalizer(self) -> Estimate | None:
        return self.terms[0].log_normalizer

    def forward(self, x: Tensor, **conditions: Any) -> Tensor:
        return value_of(self.terms[0], x, conditions)

    def forward_evidence(self, x: Tensor, **conditions: Any) -> Tensor:
        with dividing_by(self):
            base = evaluate_once(self.terms[1], x, select_conditions(self.terms[1], conditions))
        return subtract(value_of(self.terms[0], x, conditions), base)

    def text(self, operand: Operand) -> str:
        return f"{operand(self.terms[0], 95)}.relative_to({operand(self.terms[1], 0)})"
