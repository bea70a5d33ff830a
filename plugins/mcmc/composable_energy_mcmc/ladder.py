"""Ladders: levels of the path from a Gaussian to an energy, the step sizes there, and how they are found."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from composable_energy import Energy
from composable_energy.errors import OptionError, ShapeError
from composable_energy.kernels import normal
from composable_energy.sampling import Noise, State, has_rows
from composable_energy_mcmc.hamiltonian import HMC, van_der_corput
from composable_energy_mcmc.options import at_least
from composable_energy_mcmc.path import Base, chosen, follow, resampled, state_at
from composable_energy_mcmc.tuning import attempt

__all__ = ["Ladder", "between", "check_base", "climbed", "fitted"]

_SETTLING = 40  # steps of the pilots before their spread is trusted
_WIDEST = 10.0, 5.0  # times the spread of the pilots, where a first search for other modes begins
_WIDER = 1.3, 1.5  # a base that is narrower than the density misses its tails, a wider one costs a few levels
_KEPT = 0.9  # share of the pilots' weights that survives from one level to the next
_MOVES = 3  # of the pilots at each level, as their step size is found meanwhile
_GAIN = 0.5
_MOST_LEVELS = 300


@dataclass(frozen=True)
class Ladder:
    """Levels and their step sizes, tuned for one energy.

    Args:
        base: The Gaussian at the first level.
        levels: The $b$ of each level, from 0 to 1.
        step_sizes: Of each level, in units of the base's scale; the first is not used.
    """

    base: Base
    levels: tuple[float, ...]
    step_sizes: tuple[float, ...]

    def check(self, x: Tensor) -> None:
        """Raises if points have another shape than those that the ladder was tuned for.

        Raises:
            ShapeError: They have.
        """
        if x.shape[1:] != self.base.mean.shape:
            raise ShapeError(f"This ladder was tuned for points of shape {tuple(self.base.mean.shape)}, got {tuple(x.shape[1:])}.")

    def __repr__(self) -> str:
        return f"Ladder({len(self.levels)} levels)"


def check_base(mean: object, scale: object) -> None:
    """Raises unless options for a base are both left open, or numbers or tensors with a positive scale.

    Raises:
        OptionError: They are not.
    """
    if (mean is None) != (scale is None):
        raise OptionError("mean and scale of the base belong together: give both of them, or neither.")
    for name, value in (("mean", mean), ("scale", scale)):
        if value is not None and not isinstance(value, Tensor):
            at_least(name, value, -math.inf)
    if scale is not None and not bool((torch.as_tensor(scale) > 0).all()):
        raise OptionError(f"scale must be positive, got {scale}.")


def fitted(energy: Energy, x: Tensor, noise: Noise, leapfrogs: int) -> Base:
    """Returns a Gaussian somewhat wider than a density.

    Pilot chains settle where they begin, perhaps all of them in one mode. A base that is several times as wide as they are then gives
    points that climb to the density, and find other modes; the result has their mean and somewhat more than their spread.

    Args:
        energy: The energy.
        x: The points where pilot chains start, with shape $(B, *)$.
        noise: Their noise.
        leapfrogs: The length of trajectories.
    """
    local = noise.child("local")
    sampler = HMC(leapfrogs=leapfrogs, tuning_steps=_SETTLING).tune(energy, x, local)
    state = sampler.init(energy, x, local)
    for step in range(1, _SETTLING + 1):
        state, _ = attempt(sampler, energy, state, local.at(1000 + step))
    *_, points = climbed(energy, _around(state.x, *_WIDEST), x, noise.child("first"), leapfrogs, 0.8, _KEPT)
    return _around(points, *_WIDER)


def climbed(
    energy: Energy, base: Base, like: Tensor, noise: Noise, leapfrogs: int, acceptance: float, kept: float
) -> tuple[list[float], list[float], Tensor]:
    """Finds levels and step sizes by points that climb from the base to the density.

    They are resampled at each level, but for points with conditions of their own.

    Args:
        energy: The energy.
        base: The base.
        like: Points with the shape $(B, *)$ of those that climb.
        noise: Their noise.
        leapfrogs: The length of trajectories.
        acceptance: What step sizes are tuned for.
        kept: The share of the weights that survives from one level to the next.

    Returns:
        The levels, the step size at each, and the points at the last, with shape $(B, *)$.

    Raises:
        OptionError: They do not get there.
    """
    state = state_at(energy, base.points(noise.normal(like)))
    length, number = 0.5 * max(1, like[0].numel()) ** -0.25, 0
    levels, lengths, together = [0.0], [length], not has_rows(energy)
    while levels[-1] < 1:
        gaps = (base.energy(state.x).double() - state.energy.double()).nan_to_num_(-torch.inf, posinf=torch.inf, neginf=-torch.inf)
        if gaps.max() == -torch.inf or len(levels) > _MOST_LEVELS:
            why = f"{_MOST_LEVELS} levels do not reach it" if len(levels) > _MOST_LEVELS else "no point there has a density"
            raise OptionError(
                f"A ladder from a Gaussian at {_short(base.mean)} with scale {_short(base.scale)} to {energy}: {why}. Give the `mean` and "
                "`scale` of one that lies nearer, or check that the energy has a lower bound."
            )
        level = _next(levels[-1], gaps, kept)
        if together:
            rows = resampled((level - levels[-1]) * gaps, noise.at(len(levels)).uniform(state.x, stream=2)[0])
            state = State(state.x[rows], state.energy[rows], state.grad[rows])
        for _ in range(_MOVES):
            number += 1
            state, rate = _moved(energy, base, state, level, length, noise.child("moves").at(number), leapfrogs)
            length = min(length * math.exp(_GAIN * (rate - acceptance)), 4.0)
        levels.append(level)
        lengths.append(length)
    return levels, lengths, state.x


def between(values: Sequence[float], count: int) -> list[float]:
    """Returns values at even places in a list, between its numbers where there is none."""
    places = [i * (len(values) - 1) / (count - 1) for i in range(count)]
    lower = [min(int(place), len(values) - 2) for place in places]
    return [values[low] + (place - low) * (values[low + 1] - values[low]) for low, place in zip(lower, places, strict=True)]


def _moved(energy: Energy, base: Base, state: State, level: float, length: float, noise: Noise, leapfrogs: int) -> tuple[State, float]:
    """A step of all points at one level; those that leave the finite stay where they are."""
    count, same = math.ceil(van_der_corput(noise.step) * leapfrogs), torch.ones_like(state.energy)
    log_uniform = noise.uniform(state.x, stream=1).log()
    after, rates = follow(energy, base, state, level * same, length * same, normal(state.x, noise), count, log_uniform)
    good = after.energy.isfinite() & (after.x.isfinite() & after.grad.isfinite()).reshape(len(after.x), -1).all(1)
    return chosen(good, after, state), torch.where(good, rates, 0.0).mean().item()


def _next(level: float, gaps: Tensor, kept: float) -> float:
    """The next level, by halving: that at which the weights keep the share asked for of their effective sample size."""
    gaps = gaps - gaps.max()
    share: Callable[[float], float] = lambda rise: (w := (rise * gaps).exp()).mean().square().div(w.square().mean()).item()  # noqa: E731
    inside = (gaps > -torch.inf).double().mean().item()  # of the points have a density at all, so no level keeps more
    low, high = 0.0, 1 - level
    if share(high) >= kept * inside:
        return 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if share(middle) >= kept * inside else (low, middle)
    return min(1.0, level + max(low, 1e-6))


def _around(points: Tensor, wider: float, length: float) -> Base:
    """A Gaussian so much wider than points, or less in many dimensions, where the number of levels would grow with their root."""
    rows = points.reshape(len(points), -1).double()
    mean, spread = rows.mean(0), rows.std(0)
    spread = torch.where(spread > 0, spread, 1.0) * min(wider, math.exp(length / math.sqrt(len(mean) / 2)))
    return Base(mean.view(points.shape[1:]).to(points), spread.view(points.shape[1:]).to(points))


def _short(values: Tensor) -> str:
    low, high = values.min().item(), values.max().item()
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
