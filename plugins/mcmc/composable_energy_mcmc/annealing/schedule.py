r"""Annealing schedules: levels $0 = b_0 < \dots < b_J = 1$ of a path, the step size at each, their search, and resampling."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from composable_energy.errors import ShapeError
from composable_energy.sampling import Noise
from composable_energy_mcmc.annealing.path import Gaussian

_MOVES = 3  # steps of the pilots at each level, during which their step size adapts
_BISECTIONS = 40
_MIN_RISE, _MAX_LEVELS = 1e-6, 300  # after which the search fails
_GAIN, _LONGEST = 0.5, 4.0  # of the logarithm of the step size, by the acceptance; and the largest step size


@dataclass(frozen=True)
class Schedule:
    """Levels of a path and the step size at each.

    Args:
        base: The Gaussian at the first level.
        levels: $b$ of each level, from 0 to 1.
        step_sizes: The step size at each level; the first is not used.
    """

    base: Gaussian
    levels: tuple[float, ...]
    step_sizes: tuple[float, ...]

    def check(self, x: Tensor) -> None:
        """Raises ShapeError if points have another shape than those that the schedule was tuned for."""
        if x.shape[1:] != self.base.mean.shape:
            raise ShapeError(f"This schedule was tuned for points of shape {tuple(self.base.mean.shape)}, got {tuple(x.shape[1:])}.")

    def step_size_at(self, level: float) -> float:
        """Returns the step size at any level, from those of its neighbours."""
        return math.exp(_interpolate(self.levels, [math.log(step_size) for step_size in self.step_sizes], level))

    def respace(self, count: int, positions: Sequence[float] | None = None) -> Schedule:
        """Returns a schedule of at least 2 other levels, evenly spaced in a quantity that rises from level to level."""
        at = range(len(self.levels)) if positions is None else positions
        even = [at[-1] * i / (count - 1) for i in range(count)]
        logs = [math.log(step_size) for step_size in self.step_sizes]
        levels = [_interpolate(at, self.levels, position) for position in even]
        step_sizes = tuple(math.exp(_interpolate(at, logs, position)) for position in even)
        return replace(self, levels=(0.0, *levels[1:-1], 1.0), step_sizes=step_sizes)

    def __repr__(self) -> str:
        return f"Schedule({len(self.levels)} levels)"


class Pilots(ABC):
    """Points that move from the base to the density during the search for a schedule."""

    points: Tensor  # with shape (B, *)
    keep: float = 0.9  # the share of the effective sample size of points with a density that survives from one level to the next
    acceptance: float | None = 0.8  # the mean acceptance that step sizes are tuned for; None keeps the first step size

    @abstractmethod
    def log_density_ratio(self) -> Tensor:
        r"""Returns $E_0 - E$ at the points, in float64, with shape $(B,)$; $-\infty$ where the density is 0."""

    @abstractmethod
    def resample(self, rows: Tensor) -> None:
        """Replaces the points by rows of them."""

    @abstractmethod
    def move(self, level: float, step_size: float, number: int) -> float:
        """Takes a step at a level and returns the mean acceptance; `number` counts the steps of all levels from 0."""

    @abstractmethod
    def failure(self, reason: str) -> Exception:
        """Returns the error to raise if the points do not reach the density."""


def find_schedule(pilots: Pilots, base: Gaussian, noise: Noise, step_size: float | None = None) -> Schedule:
    """Anneals pilot points from the base to the density and returns the levels and step sizes on the way.

    At each level the points are resampled, then move, while the step size follows their acceptance.
    """
    size = 0.5 * max(1, pilots.points[0].numel()) ** -0.25 if step_size is None else step_size
    levels, sizes = [0.0], [size]
    while levels[-1] < 1:
        if len(levels) > _MAX_LEVELS:
            raise pilots.failure(f"after {_MAX_LEVELS} levels the pilot points have come to {levels[-1]:.3g} of 1")
        log_ratio = pilots.log_density_ratio()
        if log_ratio.max() == -torch.inf:
            raise pilots.failure(f"no pilot point at level {levels[-1]:.3g} has a density there")
        support = (log_ratio > -torch.inf).double().mean().item()
        level = next_level(levels[-1], log_ratio, pilots.keep * support)
        offset = noise.at(len(levels)).uniform(pilots.points, stream=2)[0]
        pilots.resample(systematic_resample((level - levels[-1]) * log_ratio, offset))
        for move in range(_MOVES):
            rate = pilots.move(level, size, (len(levels) - 1) * _MOVES + move)
            if pilots.acceptance is not None:
                size = min(size * math.exp(_GAIN * (rate - pilots.acceptance)), _LONGEST)
        levels.append(level)
        sizes.append(size)
    return Schedule(base, tuple(levels), tuple(sizes))


def next_level(level: float, log_ratio: Tensor, keep: float) -> float:
    """Returns the highest level at which the weights, by $E_0 - E$ of shape $(B,)$, keep a share of their effective sample size."""
    log_ratio = log_ratio - log_ratio.max()

    def share(rise: float) -> float:
        weights = (rise * log_ratio).exp()
        return (weights.mean().square() / weights.square().mean()).item()

    low, high = 0.0, 1 - level
    if share(high) >= keep:
        return 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if share(middle) >= keep else (low, middle)
    return min(1.0, level + max(low, _MIN_RISE))


def _interpolate(positions: Sequence[float], values: Sequence[float], at: float) -> float:
    low = min(max(bisect_right(positions, at) - 1, 0), len(positions) - 2)
    share = (at - positions[low]) / (positions[low + 1] - positions[low])
    return values[low] + min(share, 1.0) * (values[low + 1] - values[low])


def effective_sample_size(log_weights: Tensor) -> float:
    r"""Returns $(\sum_i w_i)^2 / \sum_i w_i^2$ of weights with shape $(B,)$; 0 if all of them are 0."""
    if log_weights.max() == -torch.inf:
        return 0.0
    return 1 / torch.softmax(log_weights, 0).square().sum().item()


def systematic_resample(log_weights: Tensor, offset: Tensor) -> Tensor:
    r"""Draws rows by their weights at evenly spaced quantiles from a uniform offset: row $i$ of $B$ is drawn $B w_i / \sum_j w_j$ times.

    The indices of the rows are in rising order.
    """
    cumulative = torch.softmax(log_weights.double(), 0).cumsum(0)
    quantiles = (torch.arange(len(cumulative), device=cumulative.device) + offset.double()) / len(cumulative) * cumulative[-1]
    return torch.searchsorted(cumulative, quantiles).clamp_(max=len(cumulative) - 1)
