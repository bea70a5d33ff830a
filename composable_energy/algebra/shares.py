"""Shares of the branches of a mixture: whether they are known, or depend on unknown normalisers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from composable_energy.algebra.conjunction import Conjunction
from composable_energy.algebra.negation import Negation
from composable_energy.algebra.node import contains
from composable_energy.algebra.relative import Conditioned
from composable_energy.algebra.weights import Sharpened, Weighted
from composable_energy.energy import Energy
from composable_energy.estimate import Estimate

if TYPE_CHECKING:
    from composable_energy.algebra.disjunction import Disjunction

__all__ = ["Shares", "describe_shares", "mixture_normalizer", "shares_of"]

Shares = Literal["exact", "calibrated", "chosen", "normalised", "unknown"]
_Factor = Literal["probability", "density", "unknown"]
_TEXTS = {
    "exact": "exact",
    "calibrated": "calibrated",
    "chosen": "as weighted, not calibrated",
    "normalised": "of normalised densities",
    "unknown": "arbitrary: normalisers are unknown, see composable_energy.calibrate",
}


def shares_of(mixture: Disjunction) -> Shares:
    """Returns what the shares of the branches of a mixture are.

    Returns:
        `exact` for a formula of events and for a single branch; `calibrated` with estimates of the normalisers; `chosen` with given weights
        alone; `normalised` if no branch has an unknown constant; else `unknown`.
    """
    branches = set(mixture.satisfiable_terms)
    if mixture.formula is not None or len(branches) == 1:
        return "exact"
    if mixture.log_z is not None:
        return "calibrated"
    if mixture.weights is not None:
        return "chosen"
    return "normalised" if all(_is_normalized(branch, mixture) for branch in branches) else "unknown"


def describe_shares(shares: Shares) -> str:
    """Returns in words what the shares of a mixture are, for tables."""
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


def _is_normalized(branch: Energy, mixture: Disjunction) -> bool:
    """Returns whether the density of a branch has no unknown constant: a normalised density or none, times probabilities."""
    if branch.log_normalizer is not None:
        return True
    own = [_kind(base.energy) for base in branch.bases if not contains(mixture.bases, base.energy)]
    return _product([_evidence_kind(branch), *own]) != "unknown"


def _evidence_kind(energy: Energy) -> _Factor:
    if energy.formula is not None or energy.evidence_normalized:
        return "probability"
    match energy:
        case Negation():
            return "unknown" if energy.mode == "power" else "probability"
        case Conjunction():
            return _product(map(_evidence_kind, energy.concepts))
        case Conditioned():
            return _evidence_kind(energy.terms[0])
        case Sharpened() | Weighted():
            return "probability" if _evidence_kind(energy.terms[0]) == "probability" else "unknown"
    return "unknown" if energy.bases else _kind(energy)


def _kind(energy: Energy) -> _Factor:
    return "unknown" if energy.log_normalizer is None else "density"


def _product(factors: Iterable[_Factor]) -> _Factor:
    found = list(factors)
    if "unknown" in found or found.count("density") > 1:  # a product of densities has another integral
        return "unknown"
    return "density" if "density" in found else "probability"
