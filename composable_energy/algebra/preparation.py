"""What an expression needs before it is sampled: estimated levels, known shares of branches, and a warning where they are arbitrary."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from composable_energy.algebra.decoded import Decoded
from composable_energy.algebra.disjunction import Disjunction
from composable_energy.algebra.negation import Negation
from composable_energy.algebra.relative import Relative
from composable_energy.energy import Energy
from composable_energy.errors import ContradictionError, MixtureWarning
from composable_energy.estimate import Estimate

_UNKNOWN_ERROR = 0.1  # of a log Z that was given without one


class Branch(NamedTuple):
    r"""A branch of a mixture whose shares are known.

    Attributes:
        energy: $E_k$, with the bases.
        shift: $s_k$, so that the energy of the mixture is $-\log \sum_k e^{-E_k - s_k}$.
        share: The probability of the branch.
        error: The standard error of the share.
    """

    energy: Energy
    shift: float
    share: float
    error: float


def known_branches(energy: Energy) -> tuple[Branch, ...]:
    """Returns the branches of a mixture with known shares, those of mixtures inside it included; none for any other energy."""
    found = _find_branches(energy) if isinstance(energy, Disjunction | Relative | Decoded) else ()
    if len(found) < 2:
        return ()
    logs = [log for *_, log, _ in found]
    highest = max(logs)
    parts = [math.exp(log - highest) for log in logs]
    shares, errors = [part / sum(parts) for part in parts], [error for *_, error in found]
    others = sum((share * error) ** 2 for share, error in zip(shares, errors, strict=True))
    return tuple(
        Branch(part, shift, share, share * math.sqrt(max(0.0, others + (1 - 2 * share) * error**2)))
        for (part, shift, _, error), share in zip(found, shares, strict=True)
    )


def _find_branches(energy: Energy) -> Sequence[tuple[Energy, float, float, float]]:
    """Returns branches, each with its shift, the logarithm of the integral of its part of the mixture, and the standard error of that."""
    if isinstance(energy, Relative | Decoded):  # the same density
        return _find_branches(energy.terms[0])
    if not isinstance(energy, Disjunction) or energy.formula is not None or energy.unsatisfiable:
        return ()
    found: list[tuple[Energy, float, float, float]] = []
    ones, none = (1.0,) * len(energy.terms), (None,) * len(energy.terms)
    numbers = (energy.weights or ones, energy.log_z or none, energy.log_z_errors or none)
    for term, weight, log_z, error in zip(energy.terms, *numbers, strict=True):
        if term.unsatisfiable:
            continue
        inside, shift = _find_branches(term), (log_z or 0.0) - math.log(weight)
        if not inside:
            known = term.log_normalizer
            if known is None and log_z is not None:
                known = Estimate(log_z, _UNKNOWN_ERROR if error is None else error)
            if known is None:
                return ()
            inside = [(term, 0.0, known.value, known.standard_error)]
        found += [(part, own + shift, log - shift, error) for part, own, log, error in inside]
    return found


def estimate_levels(energy: Energy, point: Tensor, conditions: Mapping[str, float]) -> None:
    """Evaluates an expression at one point if it has negations with a level, so that all levels are current.

    Args:
        energy: The expression, as it is sampled.
        point: A point, without an axis for the batch.
        conditions: Conditions that the sampler binds.

    Raises:
        ExpressionError: The operand of a negation cannot be sampled.
    """
    levels = (part for part in energy.modules() if isinstance(part, Negation) and part.mode == "level" and part.given_level is None)
    if next(levels, None) is None or not energy.evidence_has_value:
        return
    x = point.unsqueeze(0)
    values: dict[str, Any] = {name: x.new_full((1,), value) for name, value in conditions.items()}
    try:
        with torch.no_grad():
            energy(x, **values)
    except ContradictionError:  # the first step reports that no point fulfils it
        return


def warn_of_shares(energy: Energy, stacklevel: int = 4) -> None:
    """Warns of mixtures of densities whose shares depend on unknown normalisers.

    Args:
        energy: The expression.
        stacklevel: The number of calls between the warning and the caller.
    """
    for part in energy.modules():
        if isinstance(part, Disjunction) and part.shares == "unknown":
            warnings.warn(
                f"{part} mixes densities with unknown normalisers: a constant added to one energy changes the shares of its branches. "
                "Estimate them by `composable_energy.calibrate(E)` or `any_of(..., calibrate=True)`; or accept the shares as they are by "
                "`any_of(..., weights=[1, 1])`.",
                MixtureWarning,
                stacklevel=stacklevel,
            )
            return
