"""How fast pilot chains mix: the cost of an effective draw, by correlation times."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from composable_energy import Energy
from composable_energy.sampling import Noise, State
from composable_energy_mcmc.batch import flatten_points
from composable_energy_mcmc.trials import take_step

if TYPE_CHECKING:
    from composable_energy_mcmc.chees import ChEES

_TRIAL, _LAGS = 8, 3  # steps, a cycle of trajectory lengths; and the lags of their correlations


@dataclass(frozen=True)
class Mixing:
    r"""How fast chains mix.

    Args:
        cost: Gradients of each chain for an effective draw of that coordinate; infinite if the chains say nothing.
        longest: The longest correlation time $\tau$, in steps.
        state: The chains after the trial.
    """

    cost: float
    longest: float
    state: State


def measure_mixing(
    sampler: ChEES, energy: Energy, state: State, noise: Noise, steps: int = _TRIAL, directions: Tensor | None = None
) -> Mixing:
    r"""Returns how fast chains mix.

    The correlation times $\tau_j$ of the coordinates of whitened points and of their squared distances to the median are estimated over
    all chains, by the correlations up to lag 3 and a geometric tail. In a heavy tail few chains decide about those of squares. Those of
    the normal scores of ranks (Vehtari et al., 2021, https://doi.org/10.1214/20-BA1221) do not depend on them, but see little of
    the tail. So $\tau$ is the geometric mean of the longest ones of both, and the cost is $\bar L\, \tau$.

    Args:
        sampler: The sampler with all options.
        energy: The energy.
        state: The chains, near their stationary density.
        noise: Their noise.
        steps: The number of steps.
        directions: Directions of whitened points, with shape $(d, k)$, that count as coordinates do.
    """
    points, gradients = [state.x], 0
    for step in range(1, steps + 1):
        state, _, count = take_step(sampler, energy, state, noise.at(step))
        points.append(state.x)
        gradients += count
    x = torch.stack([flatten_points(sampler.whitening.whiten(some)).double() for some in points])
    x = x[:, x.isfinite().all(2).all(0)]
    x = x if directions is None else torch.cat([x, x @ directions.to(x)], 2)
    values = torch.cat([x, (x - x.flatten(0, 1).median(0).values).square()], 2)
    longest = math.sqrt(_longest_correlation_time(values) * _longest_correlation_time(_rank_normalize(values)))
    return Mixing(gradients / steps * longest, longest, state)


def _longest_correlation_time(values: Tensor) -> float:
    """Returns the longest correlation time of numbers with shape (steps, chains, k), in steps; infinite if they say nothing.

    Correlations come from mean square differences, which are precise where they are near 1, up to the first that is not positive.
    """
    values = values - values.mean((0, 1))
    variances = values.square().mean((0, 1))
    times, positive = torch.ones_like(variances), torch.ones_like(variances, dtype=torch.bool)
    lag, correlation = 0, times
    for lag in range(1, min(_LAGS, len(values) // 2) + 1):
        change = (values[lag:] - values[:-lag]).square().mean((0, 1)) / (2 * variances)
        correlation = 1 - change.clamp_min(1e-6)
        positive &= ~(correlation <= 0)  # also for NaN, of numbers that do not vary
        times = times + torch.where(positive, 2 * correlation, 0.0)
    ratio = correlation.clamp_min(0) ** (1 / max(lag, 1))
    times = times + torch.where(positive, 2 * correlation * ratio / (1 - ratio), 0.0)
    return times.max().item() if len(times) and times.isfinite().all() else math.inf


def _rank_normalize(values: Tensor) -> Tensor:
    """Returns the normal scores of numbers with shape (steps, chains, k) among all steps and chains, which outliers do not dominate."""
    flat = values.flatten(0, 1)
    ranks = flat.argsort(0).argsort(0) + 1.0
    return torch.special.ndtri((ranks - 0.375) / (len(flat) + 0.25)).view_as(values).to(values)
