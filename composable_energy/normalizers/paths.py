r"""Paths from a Gaussian to a density: annealed importance sampling with levels $(1 - \beta)\, E_0 + \beta\, E$, in both directions.

All points are standard ones of the base, $x = \mu + S z$, so that the base is a standard normal and a step size has no unit.

References:
    Annealed importance sampling (Neal, 2001), https://arxiv.org/abs/physics/9803008
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from composable_energy.energy import Energy
from composable_energy.errors import NormalizerError, OptionError, SamplingDiverged
from composable_energy.noise import Noise
from composable_energy.normalizers.gaussians import Gaussian, log_density
from composable_energy.sampling.sampler import Sampler

__all__ = ["Path", "Schedule", "pilot"]

_PILOTS = 256
_PILOT_MOVES = 3
_KEPT = 0.9  # share of the pilots' weights that survives from one level to the next
_GAIN = 0.3
_MOST_LEVELS = 500


@dataclass(frozen=True)
class Schedule:
    r"""What both directions share: levels $0 = \beta_0 < \dots < \beta_T = 1$ and a sampler for each."""

    levels: tuple[float, ...]
    samplers: tuple[Sampler, ...]


class _Level(Energy):
    r"""$(1 - \beta)\, E_0 + \beta\, E$ at standard points."""

    def __init__(self, path: Path, beta: float) -> None:
        super().__init__()
        self.path = path
        self.beta = beta

    def forward(self, z: Tensor) -> Tensor:
        energies = self.path.energies(z)
        return energies if self.beta == 1 else self.beta * energies - (1 - self.beta) * log_density(z)

    def __str__(self) -> str:
        return str(self.path.energy)


@dataclass(frozen=True)
class Path:
    """The way from a Gaussian to a density.

    Args:
        energy: The energy of the density.
        base: The Gaussian.
        size: How many points are evaluated together.
        moves: How many steps are taken at each level.
    """

    energy: Energy
    base: Gaussian
    size: int
    moves: int

    def energies(self, z: Tensor) -> Tensor:
        """Returns the energies of the density of standard points, with shape $(B,)$."""
        return self.energy(self.base.points(z)) - self.base.log_volume.to(z)

    def gaps(self, z: Tensor) -> Tensor:
        """Returns $E_0 - E$ at standard points, with shape $(B,)$ in float64."""
        energies = torch.cat([self.energies(some) for some in z.split(self.size)])
        gaps = -log_density(z).double() - energies.double()
        if (gaps.isnan() | (gaps == torch.inf)).any():
            bad = gaps.isnan() | (gaps == torch.inf)
            raise SamplingDiverged(
                f"{int(bad.sum())} of {len(bad)} points on the way to {self.energy} have an energy that is not a number: check the energy "
                "there, or give a `base` or `init` nearer to its density.",
                samples=self.base.points(z),
                diverged=bad,
            )
        return gaps

    def move(self, z: Tensor, beta: float, sampler: Sampler, noise: Noise, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Takes some numbered steps at one level.

        Returns:
            The points, and the mean acceptance of each, with shape $(B,)$.
        """
        level, points, rates = _Level(self, beta), [], []
        for rows in torch.arange(len(z)).split(self.size):
            first, last = int(rows[0]), int(rows[-1]) + 1
            own = noise.for_chains(range(first, last))
            state = sampler.init(level, z[first:last], own.at(numbers[0]))
            rate = []
            for number in numbers:
                state, info = sampler.step(level, state, own.at(number))
                if info.acceptance is None:
                    raise OptionError(f"{sampler} never rejects, so its levels are not those of the path; take 'hmc' or 'mala'.")
                rate.append(info.acceptance)
            points.append(state.x)
            rates.append(torch.stack(rate).mean(0))
        return torch.cat(points), torch.cat(rates)

    def weights(self, z: Tensor, schedule: Schedule, noise: Noise, *, reverse: bool = False) -> Tensor:
        r"""Returns the log weights of paths, with shape $(B,)$ in float64: forward their weights have the mean $Z$, reverse $1 / Z$.

        Both directions take the same steps at the same levels, in the opposite order.

        Args:
            z: Standard points: of the Gaussian, or of the density for the reverse direction.
            schedule: The levels and samplers.
            noise: The noise of the paths.
            reverse: The direction.

        Raises:
            OptionError: Points where the reverse direction starts have density 0.
        """
        levels, last = schedule.levels, len(schedule.levels) - 1
        total = torch.zeros(len(z), dtype=torch.float64, device=z.device)
        steps = range(1, last + 1)
        for j in reversed(steps) if reverse else steps:
            rise, gaps = levels[j] - levels[j - 1], self.gaps(z)
            if reverse and gaps.isinf().any():
                raise OptionError(
                    f"{int(gaps.isinf().sum())} of {len(z)} draws have density 0 under {self.energy}, so they are none of its."
                )
            total = total + (-rise if reverse else rise) * gaps
            at = j - 1 if reverse else j  # the level to move at; there is nothing to move for at the ends
            if 0 < at < last:
                numbers = range(at * self.moves, (at + 1) * self.moves)
                z, _ = self.move(z, levels[at], schedule.samplers[at], noise, numbers[::-1] if reverse else numbers)
        return total


def pilot(path: Path, like: Tensor, sampler: Any, noise: Noise, levels: int | None, refine: int) -> Schedule:
    r"""Finds levels and step sizes by a run of pilot points from the base to the density, which are resampled at each level.

    Each level keeps the same share of the points' weights, and the step size follows the acceptance. They are frozen then.

    Args:
        path: The path.
        like: Zeros with the shape of one point.
        sampler: A dataclass with an option `step_size`, which is found if it is None.
        noise: Noise of its own.
        levels: How many levels there shall be; None takes `refine` for each that the pilots needed.
        refine: The number.

    Raises:
        NormalizerError: The pilots do not get to the density.
    """
    given, target = sampler.step_size, getattr(sampler, "acceptance", 0.8)
    noise = noise.for_chains(range(_PILOTS))
    z = noise.normal(like.expand(_PILOTS, *like.shape).contiguous())
    length = 0.5 * max(1, like.numel()) ** -0.25 if given is None else given
    betas, lengths = [0.0], [length]
    while betas[-1] < 1:
        if len(betas) > _MOST_LEVELS:
            raise NormalizerError(
                f"After {_MOST_LEVELS} levels the way from the base to {path.energy} has come to {betas[-1]:.3g} of 1: its energy may have "
                "no lower bound; else give a `base`, `init` or `draws` nearer to its density."
            )
        gaps = path.gaps(z)
        if gaps.max() == -torch.inf:
            raise NormalizerError(
                f"No pilot point at level {betas[-1]:.3g} has a density under {path.energy}: give a `base` or `init` there."
            )
        beta = _next(betas[-1], gaps)
        z = z[_resampled((beta - betas[-1]) * gaps, noise.at(len(betas)).uniform(z, stream=2)[0])]
        for k in range(_PILOT_MOVES):
            number = len(betas) * _PILOT_MOVES + k
            made = replace(sampler, step_size=length)
            z, rates = path.move(z, beta, made, noise, (number,))
            if given is None:
                length *= math.exp(_GAIN * (rates.nan_to_num().mean().item() - target))
        betas.append(beta)
        lengths.append(length)
    count = max(16, refine * (len(betas) - 1)) if levels is None else levels
    even = [i * (len(betas) - 1) / count for i in range(count + 1)]
    logs = [math.log(length) for length in lengths]
    fine = [_between(betas, place) for place in even]
    steps = [replace(sampler, step_size=math.exp(_between(logs, place))) for place in even]
    return Schedule((0.0, *fine[1:-1], 1.0), tuple(steps))


def _next(beta: float, gaps: Tensor) -> float:
    """The next level, by halving: that at which the weights keep the share asked for of their effective sample size."""
    gaps = gaps - gaps.max()

    def kept(rise: float) -> float:
        weights = (rise * gaps).exp()
        return (weights.mean().square() / weights.square().mean()).item()

    low, high = 0.0, 1 - beta
    if kept(high) >= _KEPT:
        return 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if kept(middle) >= _KEPT else (low, middle)
    return min(1.0, beta + max(low, 1e-4 * (1 - beta), 1e-6))


def _resampled(log_weights: Tensor, offset: Tensor) -> Tensor:
    """Rows drawn by their weights, evenly spaced."""
    count = len(log_weights)
    shares = torch.softmax(log_weights, 0).cumsum(0)
    places = (torch.arange(count, device=shares.device) + offset.double()) / count
    return torch.searchsorted(shares, places * shares[-1]).clamp_(max=count - 1)


def _between(values: Sequence[float], place: float) -> float:
    """A value at a place between the numbers of a list."""
    low = min(int(place), len(values) - 2)
    return values[low] + (place - low) * (values[low + 1] - values[low])
