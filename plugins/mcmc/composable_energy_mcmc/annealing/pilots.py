"""Pilot points of `smc` and `tempering`: they fit the Gaussian and find the schedule by Hamiltonian Monte Carlo."""

import math
from abc import ABC
from dataclasses import dataclass

import torch
from torch import Tensor

from composable_energy import Energy
from composable_energy.errors import OptionError
from composable_energy.options import check_instance, check_integer, check_number
from composable_energy.sampling import Noise, Sampler, State, has_rows, normal
from composable_energy_mcmc.annealing.path import Gaussian, check_gaussian_options, evaluate, fit_gaussian, hamiltonian_step
from composable_energy_mcmc.annealing.schedule import Pilots, Schedule, find_schedule
from composable_energy_mcmc.batch import finite_rows, select
from composable_energy_mcmc.hamiltonian import HMC, van_der_corput
from composable_energy_mcmc.tuning import try_step

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
    """Returns a Gaussian somewhat wider than the density.

    Chains settle near where they start, perhaps all of them in one mode. Points of a Gaussian several times as wide as they are then anneal
    to the density and find other modes. The result has the mean of both, as each may miss modes, and a bit more than their spread.
    """
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
