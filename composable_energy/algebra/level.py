r"""Levels of energies: the quantile $L_q$ of the evidence of A at draws of A.

The points with $E_A(x) \le L_q$ are where a share $q$ of the draws of A lies. A constant in $E_A$ moves $L_q$ alike, so the region does not
depend on it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from composable_energy.arithmetic import Estimate
from composable_energy.distributions import DistributionEnergy, seeded_draws
from composable_energy.energy import Energy
from composable_energy.twins import tensors_of, twin

_SEED = 0
_LEAST_DRAWS, _DRAWS = 16, 65_536
_NUMBERS = 2**24  # of all draws together


def exact_level(energy: Energy, quantile: float, temperature: float, x: Tensor | None = None) -> Estimate | None:
    r"""Returns the level of an energy that is known in closed form or from exact draws of a distribution; None for any other.

    Args:
        energy: The energy A.
        quantile: $q$.
        temperature: $\tau$.
        x: A point that gives the shape, dtype and device; None takes those of the distribution.
    """
    known = energy.known_level(quantile)
    if known is not None:
        return Estimate(known)
    if not isinstance(energy, DistributionEnergy) or energy.event_shape is None:
        return None
    tensors = tensors_of(energy)
    if x is None and any(tensor.requires_grad for tensor in tensors):  # it is trained later
        return None
    count = max(_LEAST_DRAWS, min(_DRAWS, _NUMBERS // max(1, energy.event_shape.numel())))
    device = x.device if x is not None else tensors[0].device if tensors else torch.get_default_device()
    try:
        with torch.no_grad():
            points = seeded_draws(energy.distribution, count, device, _SEED)
            evidence = None if points is None else twin(energy).evidence(points if x is None else points.to(x))
    except Exception:  # of any distribution
        return None
    return None if evidence is None or not evidence.isfinite().all() else level_of_draws(evidence, quantile, temperature)


def quantile_of(values: Tensor, quantile: float) -> Estimate:
    """Returns a quantile of independent numbers with its standard error."""
    ordered, count = values.double().sort().values, len(values)
    # The ranks of a quantile are binomial, so the order statistics one deviation apart give its standard error.
    rank, deviation = quantile * count, math.sqrt(count * quantile * (1 - quantile))
    low, middle, high = (ordered[min(max(math.ceil(r) - 1, 0), count - 1)].item() for r in (rank - deviation, rank, rank + deviation))
    return Estimate(middle, (high - low) / 2)


def level_of_draws(evidence: Tensor, quantile: float, temperature: float) -> Estimate:
    """Returns a quantile of the evidence of draws, raised until the complement excludes the draws, up to a share of $2 (1 - q)$.

    The energies of a flat density, such as a uniform one, are hardly below their quantile, so the border must lie above them.
    """
    evidence, found = evidence.double(), quantile_of(evidence, quantile)
    low, high, share = found.value, found.value, min(2 * (1 - quantile), 1 - quantile / 2)
    for _ in range(60):
        if torch.sigmoid((evidence - high) / temperature).mean() <= share:
            break
        low, high = high, high + temperature
    for _ in range(30 if high > found.value else 0):
        middle = (low + high) / 2
        passes = bool(torch.sigmoid((evidence - middle) / temperature).mean() <= share)
        low, high = (low, middle) if passes else (middle, high)
    return Estimate(high, found.standard_error)
