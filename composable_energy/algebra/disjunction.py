"""Disjunctions `A | B`, and how the shares of their branches are known."""

import math
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from composable_energy.algebra.factors import Factor
from composable_energy.algebra.negation import Negation
from composable_energy.algebra.node import Node, Operand, Weight, as_float, flatten, join_events, to_common_space
from composable_energy.algebra.sums import Conjunction, Relative, Weighted
from composable_energy.algebra.transformed import Conditioned, Decoded
from composable_energy.arithmetic import Estimate, add, mixture
from composable_energy.energies.bases import WeightedBase, contains, evidence_of, shared_bases, union_of_bases
from composable_energy.energies.checks import has_levels, modules_of
from composable_energy.energies.energy import Energy
from composable_energy.energies.evaluation import evaluating
from composable_energy.energies.identity import same
from composable_energy.errors import ContradictionError, ExpressionError, MixtureWarning, OptionError, warn_caller
from composable_energy.events import Formula, disjoin
from composable_energy.supports import Support, unite

Shares = Literal["exact", "calibrated", "chosen", "known", "unknown"]
SHARES: dict[Shares, str] = {
    "exact": "exact",  # of a formula of events, or of a single branch
    "calibrated": "calibrated",  # with estimates of the normalisers
    "chosen": "as weighted, not calibrated",
    "known": "of densities with known constants",  # or with the same unknown one
    "unknown": "arbitrary, not calibrated",
}
"""What the shares of a mixture are, in words."""

_UNKNOWN_ERROR = 0.1  # of a log Z that was given without one


class _Part(NamedTuple):
    """What a mixture adds up: a term or a formula of several, the shift of its energies, and its bases that not all parts share."""

    energy: Formula | Energy
    shift: float
    bases: tuple[WeightedBase, ...]


class Disjunction(Node):
    r"""The disjunction of energies, a mixture of densities: $-\log \sum_k w_k e^{-E_k - \log Z_k}$.

    Bases shared by all terms are factored out. Without weights, events over one base become one formula with evidence
    $-\log P(\text{formula} \mid x)$, and nested disjunctions are flattened. Unsatisfiable terms have share 0.

    Args:
        *terms: One or more energies.
        weights: Numbers $w_k > 0$, one for each term; 1 each if None. With weights, events are treated as densities.
        log_z: Estimates of $\log Z_k$, the logarithms of $\int e^{-E_k}$; 0 each if None.
        log_z_errors: The standard errors of the estimates; None if they are not known.

    Attributes:
        satisfiable_terms: The terms that are satisfiable; all terms if the disjunction itself is unsatisfiable.
        weighted: Whether there are weights or estimates.

    Raises:
        OptionError: Weights are not positive and finite, or not one for each term.
        ExpressionError: There are no terms, they have different decoders, or one has no value.
        ShapeError: The terms take points of different shapes.

    Example:
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
        super().__init__(*to_common_space(terms if weighted else flatten(terms, Disjunction)))
        self.weighted = weighted
        self.weights = _as_floats(weights, "weights", len(terms))
        self.log_z = _as_floats(log_z, "log_z", len(terms))
        self.log_z_errors = _as_floats(log_z_errors, "log_z_errors", len(terms))
        if not all(0 < weight < math.inf for weight in self.weights or ()):
            raise OptionError(f"The weights of a disjunction must be positive and finite, got {list(self.weights or ())}.")
        self.satisfiable_terms = tuple(term for term in self.terms if not term.unsatisfiable) or self.terms
        self.unsatisfiable = all(term.unsatisfiable for term in self.satisfiable_terms)
        formulas, others = ((), self.satisfiable_terms) if weighted else join_events(self.satisfiable_terms, disjoin)
        self.formula = formulas[0] if len(formulas) == 1 and not others else None
        based = self.terms if self.variables else self.satisfiable_terms  # a variable keeps its base, also if its event is impossible
        self.bases = union_of_bases(based) if self.formula else shared_bases(self.satisfiable_terms)
        count = len(self.terms)
        numbers = zip(self.log_z or (0.0,) * count, self.weights or (1.0,) * count, strict=True)
        self._each = tuple(self._part(term, z - math.log(weight)) for term, (z, weight) in zip(self.terms, numbers, strict=True))
        self._merged = self._each
        if not self.weighted:
            copies = [self._part(term, -math.log(count)) for term, count in Counter(others).items()]
            self._merged = (*(self._part(formula, 0.0) for formula in formulas), *copies)
        for part in dict.fromkeys(part for part in self._each if part.energy in self.satisfiable_terms):
            self.need_values("A mixture", [part.energy, *(base.energy for base in part.bases)])  # pyright: ignore[reportArgumentType]

    def _part(self, energy: Formula | Energy, shift: float) -> _Part:
        bases = energy.bases if isinstance(energy, Energy) else [WeightedBase(base) for base in energy.bases.values() if base is not None]
        return _Part(energy, shift, tuple(base for base in bases if not contains(self.bases, base.energy)))

    def config(self) -> dict[str, Any]:
        return {"weights": self.weights, "log_z": self.log_z, "log_z_errors": self.log_z_errors}

    def join_grounded(self, grounded: Sequence[bool]) -> bool:
        if self.formula is not None:
            return super().join_grounded(grounded)
        if self.variables and any({*getattr(term, "names", self.variables)} != {*self.variables} for term in self.satisfiable_terms):
            return False  # a branch leaves a variable free
        return all(good for term, good in zip(self.terms, grounded, strict=True) if term in self.satisfiable_terms)

    def join_supports(self, supports: Sequence[Support]) -> Support:
        pairs = [(term, support) for term, support in zip(self.terms, supports, strict=True) if term in self.satisfiable_terms]
        return unite(pairs, one_number=self.event_shape is not None and self.event_shape.numel() == 1)

    @property
    def shares(self) -> Shares:
        """How the shares of the branches are determined; see `SHARES`."""
        if self.formula is not None or len(branches := tuple(dict.fromkeys(self.satisfiable_terms))) == 1:
            return "exact"
        if self.weighted:
            return "chosen" if self.log_z is None else "calibrated"
        first, *others = map(_unknown_factors, branches)  # none, or those in common, as `C & ~A` and `C & ~B` have
        equal = all(some.total() == first.total() and all(_count(one, some) == _count(one, first) for one in first) for some in others)
        return "known" if equal else "unknown"

    @property
    def log_normalizer(self) -> Estimate | None:
        r"""$\log Z$, whose standard error is $\sqrt{\sum_k (s_k \epsilon_k)^2}$ with the shares $s_k$, if it is known of all branches."""
        if not (logs := [log for *_, log in _find_branches(self)]):
            return None
        shares, total = _softmax(logs)
        return Estimate(total, math.hypot(*(share * log.standard_error for share, log in zip(shares, logs, strict=True))))

    def branches(self, x: Tensor, **conditions: Any) -> Tensor:
        r"""Returns the energies $E_k + \log Z_k - \log w_k$ of all terms minus the shared bases, with shape $(K, B)$.

        Energies of unsatisfiable terms are $\infty$.

        Raises:
            ContradictionError: All terms are unsatisfiable.
        """
        with evaluating():  # a network that branches share is evaluated once
            branches = self._energies(self._each, x, conditions)
        like = next(energies for energies in branches if energies is not None)
        return torch.stack([torch.full_like(like, math.inf) if energies is None else energies for energies in branches])

    def forward_evidence(self, x: Tensor, **conditions: Any) -> Tensor:
        branches = [energies for energies in self._energies(self._merged, x, conditions) if energies is not None]
        return branches[0] if len(branches) == 1 else mixture(torch.stack(branches))

    def _energies(self, parts: Sequence[_Part], x: Tensor, conditions: dict[str, Any]) -> list[Tensor | None]:
        """Returns the energies of parts with their shifts; None for those that are unsatisfiable."""
        found: list[Tensor | None] = []
        for part, shift, bases in parts:
            energies = None
            with suppress(ContradictionError):  # the number of labels is known only after evaluation
                if isinstance(part, Formula):
                    energies = add([part.energy(x, **conditions), *(base(x, **conditions) for base in bases)])
                elif not part.unsatisfiable:
                    energies = add([evidence_of(part, x, conditions), *(base(x, **conditions) for base in bases)], signed=part._signed)
            found.append(energies if energies is None or shift == 0 else energies + shift)
        if all(energies is None for energies in found):
            raise ContradictionError(f"No point fulfils {self}: each branch has probability 0 for any output of the networks.")
        return found

    def text(self, operand: Operand) -> str:
        if not self.weighted:
            return " | ".join(operand(term, self.precedence) for term in self.terms)
        weights = ", ".join(f"{weight:g}" for weight in self.weights or [1.0] * len(self.terms))
        return f"any_of({', '.join(operand(term, 0) for term in self.terms)}, weights=[{weights}])"


def _as_floats(values: Sequence[Weight] | None, name: str, count: int) -> tuple[float, ...] | None:
    if values is None:
        return None
    if len(values) != count:
        raise OptionError(f"A disjunction of {count} terms takes {count} {name}, got {len(values)}.")
    if any(isinstance(value, Tensor) and value.requires_grad for value in values):
        raise OptionError(f"The {name} of a disjunction must be fixed numbers; for a learnable weight write `w * A` for a term.")
    return tuple(map(as_float, values))


class Branch(NamedTuple):
    r"""A branch of a mixture $-\log \sum_k e^{-E_k - s_k}$: the energy $E_k$ with the bases, the shift $s_k$, its share and error."""

    energy: Energy
    shift: float
    share: float
    error: float


def known_branches(energy: Energy) -> tuple[Branch, ...]:
    """Returns the branches of a mixture with known shares, those of mixtures inside it included; none for any other energy."""
    if len(found := _find_branches(energy)) < 2:
        return ()
    shares, errors = _softmax([log for *_, log in found])[0], [log.standard_error for *_, log in found]
    others = sum((share * error) ** 2 for share, error in zip(shares, errors, strict=True))
    return tuple(
        Branch(part, shift, share, share * math.sqrt(max(0.0, others + (1 - 2 * share) * error**2)))
        for (part, shift, _), share, error in zip(found, shares, errors, strict=True)
    )


def _softmax(logs: Sequence[Estimate]) -> tuple[list[float], float]:
    """Returns shares from the logarithms of integrals, and the logarithm of their sum."""
    highest = max(log.value for log in logs)
    parts = [math.exp(log.value - highest) for log in logs]
    return [part / sum(parts) for part in parts], highest + math.log(sum(parts))


def _find_branches(energy: Energy) -> Sequence[tuple[Energy, float, Estimate]]:
    """Returns branches, each with its shift and the logarithm of the integral of its part of the mixture; none if one is not known."""
    if isinstance(energy, Relative | Decoded):  # the same density
        return _find_branches(energy.terms[0])
    if isinstance(energy, Factor) and energy.log_normalizer is not None:  # over the whole point
        return [(energy.around(part), shift, log) for part, shift, log in _find_branches(energy.terms[0])]
    if not isinstance(energy, Disjunction) or energy.formula is not None or energy.unsatisfiable:
        return ()
    found: list[tuple[Energy, float, Estimate]] = []
    errors = energy.log_z_errors or (_UNKNOWN_ERROR,) * len(energy.terms)
    for i, (term, error) in enumerate(zip(energy.terms, errors, strict=True)):
        if term.unsatisfiable:
            continue
        inside, shift = _find_branches(term), energy._each[i].shift if energy.weighted else 0.0
        if not inside:
            known = None if isinstance(term, Disjunction) else term.log_normalizer  # that of a mixture is the sum of its branches
            if (known := known or (Estimate(energy.log_z[i], error) if energy.log_z else None)) is None:
                return ()
            inside = [(term, 0.0, known)]
        found += [(part, own + shift, Estimate(log.value - shift, log.standard_error)) for part, own, log in inside]
    return found


def _count(factor: Energy, factors: Counter[Energy]) -> int:
    return sum(count for other, count in factors.items() if same(factor, other))


def _unknown_factors(branch: Energy) -> Counter[Energy]:
    """Returns the factors of a density whose integrals decide its constant; none for one normalised density times probabilities."""
    if branch.log_normalizer is not None:
        return Counter()
    if any(isinstance(base.weight, Tensor) or base.weight != 1 for base in branch.bases):
        return Counter([branch])
    factors = _evidence_factors(branch, {})
    factors.update(base.energy for base in branch.bases if base.energy.has_value or not has_levels(base.energy))
    return Counter() if factors.total() == 1 and next(iter(factors)).log_normalizer is not None else factors


def _evidence_factors(energy: Energy, found: dict[Energy, Counter[Energy]]) -> Counter[Energy]:
    """Returns the factors of $e^{-evidence}$ that are no probabilities, with their numbers; `found` has those of parts."""
    # Log densities that are carried along noise levels are normalised.
    if energy.formula is not None or energy.evidence_normalized or (not energy.evidence_has_value and has_levels(energy)):
        return Counter()
    if energy not in found:
        own = Counter([energy])
        match energy:
            case Negation() if energy.mode != "power":
                own = Counter[Energy]()
            case Conjunction():
                own = sum((_evidence_factors(term, found) for term in energy.concepts), Counter[Energy]())
            case Conditioned() | Weighted():
                own = own if _evidence_factors(energy.terms[0], found) else Counter()
        found[energy] = own
    return found[energy].copy()


def warn_of_shares(energy: Energy) -> None:
    """Warns of mixtures of densities whose shares depend on unknown normalisers."""
    for part in modules_of(energy):
        if isinstance(part, Disjunction) and part.shares == "unknown":
            warn_caller(
                f"{part} mixes densities with unknown normalisers: a constant added to one energy changes the shares of its branches. "
                "Estimate them by `composable_energy.calibrate(E)` or `any_of(..., calibrate=True)`; or accept the shares as they are by "
                "`any_of(..., weights=[1, 1])`.",
                MixtureWarning,
            )
            return
