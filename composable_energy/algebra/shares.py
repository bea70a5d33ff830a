"""Shares of the branches of a mixture: whether they are known, or depend on unknown normalisers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from composable_energy.algebra.conjunction import Conjunction
from composable_energy.algebra.negation import Negation
from composable_energy.algebra.relative import Conditioned
from composable_energy.algebra.weights import Sharpened, Weighted
from composable_energy.arithmetic import Estimate
from composable_energy.checks import has_levels
from composable_energy.energy import Energy
from composable_energy.identity import same

if TYPE_CHECKING:
    from composable_energy.algebra.disjunction import Disjunction

Shares = Literal["exact", "calibrated", "chosen", "known", "unknown"]
_TEXTS = {
    "exact": "exact",
    "calibrated": "calibrated",
    "chosen": "as weighted, not calibrated",
    "known": "of densities with known constants",
    "unknown": "arbitrary, not calibrated",
}


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
