r"""Annealing schedules: levels $0 = b_0 < \dots < b_J = 1$ of a path, the step size at each, their search, and resampling.

Pilot points of `smc` and `tempering` fit the Gaussian and find the schedule by Hamiltonian Monte Carlo.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from composable_energy import Energy
from composable_energy.errors import OptionError, ShapeError
from composable_energy.options import check_instance, check_integer, check_number
from composable_energy.sampling import Noise, Sampler, State, has_rows, normal
from composable_energy_mcmc.annealing.path import Gaussian, check_gaussian_options, evaluate, fit_gaussian, hamiltonian_step
from composable_energy_mcmc.batch import finite_rows, select
from composable_energy_mcmc.hamiltonian import HMC, van_der_corput
from composable_energy_mcmc.tuning import try_step

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
        step_sizes = tuple(map(math.exp, _respace([math.log(step_size) for step_size in self.step_sizes], count, positions)))
        return replace(self, levels=respace_levels(self.levels, count, positions), step_sizes=step_sizes)

    def __repr__(self) -> str:
        return f"Schedule({len(self.levels)} levels)"


def respace_levels(levels: Sequence[float], count: int, positions: Sequence[float] | None = None) -> tuple[float, ...]:
    """Returns at least 2 levels from 0 to 1 in place of others, evenly spaced in a quantity that rises from level to level."""
    return (0.0, *_respace(levels, count, positions)[1:-1], 1.0)


def _respace(values: Sequence[float], count: int, positions: Sequence[float] | None) -> list[float]:
    at = range(len(values)) if positions is None else positions
    return [_interpolate(at, values, at[-1] * i / (count - 1)) for i in range(count)]


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
    """Anneals pilot points from the base to the density and returns the levels and step sizes on the way. At each level the points are
    resampled, then move, while the step size follows their acceptance."""
    size = 0.5 * max(1, pilots.points[0].numel()) ** -0.25 if step_size is None else step_size
    levels, sizes = [0.0], [size]
    while levels[-1] < 1:
        if len(levels) > _MAX_LEVELS:
            raise pilots.failure(f"after {_MAX_LEVELS} levels the pilot points have come to {levels[-1]:.3g} of 1")
        if (log_ratio := pilots.log_density_ratio()).max() == -torch.inf:
            raise pilots.failure(f"no pilot point at level {levels[-1]:.3g} has a density there")
        level = next_level(levels[-1], log_ratio, pilots.keep * (log_ratio > -torch.inf).double().mean().item())
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
    return 0.0 if log_weights.max() == -torch.inf else 1 / torch.softmax(log_weights, 0).square().sum().item()


def systematic_resample(log_weights: Tensor, offset: Tensor) -> Tensor:
    r"""Draws rows at evenly spaced quantiles from a uniform offset: row $i$ of $B$ is drawn $B w_i / \sum_j w_j$ times, in rising order."""
    cumulative = torch.softmax(log_weights.double(), 0).cumsum(0)
    quantiles = (torch.arange(len(cumulative), device=cumulative.device) + offset.double()) / len(cumulative) * cumulative[-1]
    return torch.searchsorted(cumulative, quantiles).clamp_(max=len(cumulative) - 1)


_SETTLING_STEPS = 40  # of the chains whose spread the first base is made from
_FIRST_FACTOR = 10.0, 5.0  # of that spread, so that the first base reaches other modes
_FIRST_POINTS, _FIRST_NUMBERS = 512, 2**16  # of 64 points, the resampling loses a far mode in every second run
_FACTOR = 1.3, 1.5  # a base that is narrower than the density misses its tails, a wider one costs a few levels


@dataclass(frozen=True)
class Scheduled(Sampler, ABC):
    """Abstract sampler along the levels of a schedule from a Gaussian to the energy; see `Tempering` for its options."""

    levels: int | None = None
    leapfrogs: int = 8
    mean: float | Tensor | None = None
    scale: float | Tensor | None = None
    acceptance: float = 0.8
    schedule: Schedule | None = None

    def __post_init__(self) -> None:
        check_integer("leapfrogs", self.leapfrogs)
        check_number("acceptance", self.acceptance, above=0, below=1)
        check_gaussian_options(self.mean, self.scale)
        check_instance("schedule", self.schedule, Schedule)

    @property
    def tuned_schedule(self) -> Schedule:
        """The schedule; raises `OptionError` as long as there is none."""
        if self.schedule is None:
            raise OptionError(f"{type(self).__name__} has no schedule yet: let `sample` tune it.")
        return self.schedule


def tune_schedule(
    energy: Energy,
    x: Tensor,
    noise: Noise,
    mean: float | Tensor | None,
    scale: float | Tensor | None,
    leapfrogs: int,
    acceptance: float,
    keep: float = 0.9,
) -> tuple[Schedule, Tensor]:
    """Returns a schedule for points of an energy, and pilot points at its end, with shape $(B, *)$; without `mean` the base is fitted."""
    given = None if mean is None or scale is None else Gaussian.from_options(mean, scale, x)
    base = given or _fit_base(energy, x, noise.child("base"), leapfrogs)
    pilots = _HamiltonianPilots(energy, base, x, noise.child("climb"), leapfrogs, acceptance, keep)
    return find_schedule(pilots, base, pilots.noise), pilots.points


def _fit_base(energy: Energy, x: Tensor, noise: Noise, leapfrogs: int) -> Gaussian:
    """Returns a Gaussian somewhat wider than the density. Chains settle near where they start, perhaps all of them in one mode. Points of a
    Gaussian several times as wide as they are then anneal to the density and find other modes. The result has the mean of both, as each may
    miss modes, and a bit more than their spread."""
    local = noise.child("local")
    sampler, x = HMC(leapfrogs=leapfrogs, tuning_steps=_SETTLING_STEPS).tune(energy, x, local)
    state = sampler.init(energy, x, local)
    for step in range(1, _SETTLING_STEPS + 1):
        state, _ = try_step(sampler, energy, state, local.at(1000 + step))
    wide = _widen(state.x, *_FIRST_FACTOR)
    most = 0 if has_rows(energy) else min(_FIRST_POINTS, _FIRST_NUMBERS // x[0].numel())  # chains may have their own conditions
    like, noise = x.new_zeros(max(len(x), most), *x.shape[1:]), noise.child("first").for_chains(range(max(len(x), most)))
    pilots = _HamiltonianPilots(energy, wide, like, noise, leapfrogs)
    find_schedule(pilots, wide, pilots.noise)
    return _widen(torch.cat([state.x, pilots.points]), *_FACTOR)


def _widen(points: Tensor, factor: float, exponent: float) -> Gaussian:
    """Fits a Gaussian to points, wider by a factor; by less in many dimensions, where the number of levels would grow with their root."""
    return fit_gaussian(points, min(factor, math.exp(exponent / math.sqrt(points[0].numel() / 2))))


class _HamiltonianPilots(Pilots):
    """Pilot points that move by Hamiltonian Monte Carlo; those with conditions of their own are not resampled."""

    def __init__(
        self, energy: Energy, base: Gaussian, like: Tensor, noise: Noise, leapfrogs: int, acceptance: float = 0.8, keep: float = 0.9
    ) -> None:
        self.energy, self.base, self.noise, self.leapfrogs, self.acceptance, self.keep = energy, base, noise, leapfrogs, acceptance, keep
        self.state, self.moves = evaluate(energy, base.from_standard(noise.normal(like))), noise.child("moves")

    @property
    def points(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.state.x

    def log_density_ratio(self) -> Tensor:
        log_ratio = self.base.energy(self.state.x).double() - self.state.energy.double()
        return log_ratio.nan_to_num_(-torch.inf, posinf=torch.inf, neginf=-torch.inf)

    def resample(self, rows: Tensor) -> None:
        if not has_rows(self.energy):
            self.state = State(self.state.x[rows], self.state.energy[rows], self.state.grad[rows])

    def move(self, level: float, step_size: float, number: int) -> float:
        noise, state, ones = self.moves.at(number + 1), self.state, torch.ones_like(self.state.energy)
        leapfrogs = math.ceil(van_der_corput(noise.step) * self.leapfrogs)
        log_uniform, momentum = noise.uniform(state.x, stream=1).log(), normal(state.x, noise)
        after, rates = hamiltonian_step(self.energy, self.base, state, level * ones, step_size * ones, momentum, leapfrogs, log_uniform)
        finite = finite_rows(after)
        self.state = select(finite, after, state)
        return torch.where(finite, rates, 0.0).nan_to_num(0.0).mean().item()

    def failure(self, reason: str) -> OptionError:
        return OptionError(
            f"The path from {self.base} to {self.energy} cannot be followed: {reason}. Give the `mean` and `scale` of a Gaussian nearer to "
            "the density, or check that the energy has a lower bound."
        )
