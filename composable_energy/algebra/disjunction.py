"""Disjunctions `A | B`, and how the shares of their branches are known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from composable_energy.algebra.negation import Negation
from composable_energy.algebra.node import Node, Operand, Weight, as_float, join_operands
from composable_energy.algebra.sums import Conjunction, Sharpened, Weighted
from composable_energy.algebra.terms import contains, distinct, flatten, join_events, shared_bases, to_common_space
from composable_energy.algebra.transformed import Conditioned
from composable_energy.arithmetic import Estimate, add, mixture
from composable_energy.energies.bases import WeightedBase, evidence_of
from composable_energy.energies.checks import has_levels
from composable_energy.energies.energy import Energy
from composable_energy.energies.identity import same
from composable_energy.errors import ContradictionError, ExpressionError, OptionError
from composable_energy.events import Formula, disjoin
from composable_energy.supports import Support, unite

Shares = Literal["exact", "calibrated", "chosen", "known", "unknown"]
_TEXTS = {
    "exact": "exact",
    "calibrated": "calibrated",
    "chosen": "as weighted, not calibrated",
    "known": "of densities with known constants",
    "unknown": "arbitrary, not calibrated",
}


class _Branch(NamedTuple):
    """A term of a mixture.

    Attributes:
        part: The term, or the formula of several.
        bases: Its bases that are not shared by all branches.
        signed: Whether its energies may be minus infinity.
        possible: Whether a point can fulfil it, as far as its structure shows.
    """

    part: Formula | Energy
    bases: tuple[WeightedBase, ...]
    signed: bool
    possible: bool


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
    _notes_needs = True

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
        shifts = [0.0] * len(self._formulas) + [-math.log(count) for count in counts.values()]
        self._shifts = self._chosen_shifts() if self.weighted else shifts
        self._unsatisfiable = all(term.unsatisfiable for term in distinct(self.terms))
        for term in distinct(self.satisfiable_terms):
            self.need_values("A mixture", [term, *(base.energy for base in self._branch(term).bases)])

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
        shifts = self._shifts if self.weighted else [0.0] * len(self.terms)
        branches = self._energies([self._branch(term) for term in self.terms], shifts, x, conditions)
        like = next(energies for energies in branches if energies is not None)
        return torch.stack([torch.full_like(like, math.inf) if energies is None else energies for energies in branches])

    def forward_evidence(self, x: Tensor, **conditions: Any) -> Tensor:
        branches = [energies for energies in self._energies(self._branches, self._shifts, x, conditions) if energies is not None]
        return branches[0] if len(branches) == 1 else mixture(torch.stack(branches))

    def _chosen_shifts(self) -> list[float]:
        r"""Returns $\log Z_k - \log w_k$ of all terms."""
        weights, log_z = self.weights or [1.0] * len(self.terms), self.log_z or [0.0] * len(self.terms)
        return [z - math.log(weight) for weight, z in zip(weights, log_z, strict=True)]

    def _energies(self, branches: Sequence[_Branch], shifts: Sequence[float], x: Tensor, conditions: dict[str, Any]) -> list[Tensor | None]:
        """Returns the energies of branches, each with its shift; None for unsatisfiable branches."""
        found: list[Tensor | None] = []
        possible = False
        for branch, shift in zip(branches, shifts, strict=True):
            energies = _branch_energies(branch, x, conditions)
            possible = possible or energies is not None
            found.append(energies if energies is None or shift == 0 else energies + shift)
        if not possible:
            raise ContradictionError(f"No point fulfils {self}: each branch has probability 0 for any output of the networks.")
        return found

    def _branch(self, part: Formula | Energy) -> _Branch:
        formula = isinstance(part, Formula)
        bases = (() if part.base is None else (WeightedBase(part.base),)) if formula else part.bases
        own = tuple(base for base in bases if not contains(self._bases, base.energy))
        return _Branch(part, own, not formula and part._signed, formula or not part.unsatisfiable)

    def text(self, operand: Operand) -> str:
        if not self.weighted:
            return join_operands(operand, self.terms, " | ", self.precedence)
        weights = ", ".join(f"{weight:g}" for weight in self.weights or [1.0] * len(self.terms))
        return f"any_of({', '.join(operand(term, 0) for term in self.terms)}, weights=[{weights}])"


def _branch_energies(branch: _Branch, x: Tensor, conditions: dict[str, Any]) -> Tensor | None:
    """Returns the energies of a branch; None if it is unsatisfiable."""
    part = branch.part
    if not branch.possible:
        return None
    try:
        evidence = part.energy(x, **conditions) if isinstance(part, Formula) else evidence_of(part, x, conditions)
        return add([evidence, *[base(x, **conditions) for base in branch.bases]], signed=branch.signed) if branch.bases else evidence
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


def shares_of(mixture: Disjunction) -> Shares:
    """Returns how the shares of the branches of a mixture are determined.

    Returns:
        `exact` for a formula of events and for a single branch; `calibrated` with estimates of the normalisers; `chosen` with given weights
        alone; `known` if the branches have no unknown constant, or the same one; else `unknown`.
    """
    branches = tuple(dict.fromkeys(mixture.satisfiable_terms))
    if mixture.formula is not None or len(branches) == 1:
        return "exact"
    if mixture.log_z is not None:
        return "calibrated"
    if mixture.weights is not None:
        return "chosen"
    return "known" if _have_equal_constants(branches) else "unknown"


def describe_shares(shares: Shares) -> str:
    """Returns a text that describes the shares of a mixture, for tables."""
    return _TEXTS[shares]


def mixture_normalizer(mixture: Disjunction) -> Estimate | None:
    r"""Returns $\log Z$ of a mixture of branches with known normalisers; None if one is unknown.

    The errors of the branches are independent, so the standard error is $\sqrt{\sum_k (s_k \epsilon_k)^2}$ with the shares $s_k$.
    """
    if mixture.formula is not None or mixture.unsatisfiable:
        return None
    count = len(mixture.terms)
    weights, errors = mixture.weights or (1.0,) * count, mixture.log_z_errors or (math.nan,) * count
    logs = []
    for term, weight, error in zip(mixture.terms, weights, errors, strict=True):
        known = Estimate(0.0, error) if mixture.log_z is not None else term.log_normalizer
        if known is None:
            return None
        if not term.unsatisfiable:
            logs.append(Estimate(known.value + math.log(weight), known.standard_error))
    highest = max(log.value for log in logs)
    parts = [math.exp(log.value - highest) for log in logs]
    error = math.sqrt(sum((part / sum(parts) * log.standard_error) ** 2 for part, log in zip(parts, logs, strict=True)))
    return Estimate(highest + math.log(sum(parts)), error)


def _have_equal_constants(branches: Sequence[Energy]) -> bool:
    """Returns whether the densities of branches have no unknown constant, or all the same, as those of `C & ~A` and `C & ~B` have."""
    first, *others = (_unknown_factors(branch) for branch in branches)
    for other in others:
        rest = list(other)
        for factor in first:
            match = next((i for i, some in enumerate(rest) if same(factor, some)), None)
            if match is None:
                return False
            rest.pop(match)
        if rest:
            return False
    return True


def _unknown_factors(branch: Energy) -> list[Energy]:
    """Returns the factors of a density whose integrals decide its constant; none for one normalised density times probabilities."""
    if branch.log_normalizer is not None:
        return []
    bases = (base.energy for base in branch.bases)
    factors = [*_evidence_factors(branch), *(base for base in bases if base.has_value or not has_levels(base))]
    if any(isinstance(base.weight, Tensor) or base.weight != 1 for base in branch.bases):
        return [branch]
    return [] if len(factors) == 1 and factors[0].log_normalizer is not None else factors


def _evidence_factors(energy: Energy) -> list[Energy]:
    """Returns the factors of $e^{-evidence}$ that are no probabilities."""
    if energy.formula is not None or energy.evidence_normalized:
        return []
    if not energy.evidence_has_value and has_levels(energy):  # log densities that are carried along noise levels are normalised
        return []
    match energy:
        case Negation() if energy.mode != "power":
            return []
        case Conjunction():
            return [factor for term in energy.concepts for factor in _evidence_factors(term)]
        case Conditioned() | Sharpened() | Weighted():
            return [energy] if _evidence_factors(energy.terms[0]) else []
    return [energy]
