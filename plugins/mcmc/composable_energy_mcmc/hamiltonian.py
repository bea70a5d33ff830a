"""Hamiltonian Monte Carlo."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from composable_energy import Energy
from composable_energy.errors import OptionError
from composable_energy.options import check_flag, check_integer, check_number
from composable_energy.sampling import Info, Noise, Sampler, State, Traits, energy_and_gradient, normal
from composable_energy_mcmc.batch import REFUSED, bound_kicks, choose, sum_of_each
from composable_energy_mcmc.metric import IDENTITY, Metric
from composable_energy_mcmc.tuning import approach, tune_step_size

RUNAWAY = 1000.0  # an error of the energy that no trajectory recovers from


@dataclass(frozen=True)
class HMC(Sampler):
    r"""Hamiltonian Monte Carlo (Duane et al., 1987; Neal, 2011): leapfrog trajectories with fresh momentum, accepted or rejected.

    A trajectory of $L$ leapfrog steps costs $L$ gradients. $L$ runs through $1, \dots, L_\text{max}$ in the order of van der Corput's
    sequence, the same for all chains, because a fixed length can resonate with the energy, so that chains return to where they were.
    Kicks $\varepsilon \nabla E$ are shortened to a norm of at most $3 + 1.5\, d^{1/3}$, so that chains leave walls thinner than a step.

    Args:
        step_size: $\varepsilon > 0$, in units of $x$; None tunes it on pilot chains.
        leapfrogs: $L_\text{max}$, or $L$ itself without jitter.
        jitter: Whether the length of trajectories varies.
        acceptance: The mean acceptance to tune for.
        tuning_steps: The number of steps of the pilot chains.

    References:
        MCMC using Hamiltonian dynamics (Neal, 2011), https://arxiv.org/abs/1206.1901
    """

    step_size: float | None = None
    leapfrogs: int = 16
    jitter: bool = True
    acceptance: float = 0.8
    tuning_steps: int = 100

    traits: ClassVar[Traits] = Traits(steps=100, refused=REFUSED)

    def __post_init__(self) -> None:
        check_number("step_size", self.step_size, above=0, optional=True)
        check_integer("leapfrogs", self.leapfrogs)
        check_flag("jitter", self.jitter)
        check_number("acceptance", self.acceptance, above=0, below=1)
        check_integer("tuning_steps", self.tuning_steps)

    def tune(self, energy: Energy, x: Tensor, noise: Noise) -> tuple[Sampler, Tensor]:
        if self.step_size is not None:
            return self, x
        return tune_step_size(lambda length: replace(self, step_size=length), energy, x, noise, self.acceptance, self.tuning_steps)

    def approach(self, energy: Energy, x: Tensor, noise: Noise, level: float | None) -> tuple[Tensor, Tensor]:
        state, arrived = approach(energy, x, noise, level=level, step_size=self.step_size or 0.1)
        return state.x, arrived

    def step(self, energy: Energy, state: State, noise: Noise) -> tuple[State, Info]:
        if self.step_size is None:
            raise OptionError("HMC has no step_size yet: give one, or let `sample` tune it.")
        count = math.ceil(van_der_corput(noise.step) * self.leapfrogs) if self.jitter else self.leapfrogs
        proposal, log_ratio = propose(energy, state, normal(state.x, noise), self.step_size, count)
        return choose(state, proposal, log_ratio, noise, count)


def propose(
    energy: Energy, state: State, momentum: Tensor, step_size: float, steps: int, metric: Metric = IDENTITY
) -> tuple[State, Tensor]:
    """Follows a trajectory; returns its end, and the logarithm of the acceptance ratio, with shape $(B,)$."""
    before = state.energy + sum_of_each(momentum.square()) / 2
    proposal, momentum, highest = leapfrog(energy, state, momentum, step_size, steps, metric)
    log_ratio = before - proposal.energy - sum_of_each(momentum.square()) / 2
    runaway = (highest > before + RUNAWAY) & ~log_ratio.isfinite()  # the step was too long; the energy need not be broken
    return proposal, torch.where(runaway, -torch.inf, log_ratio)


def leapfrog(
    energy: Energy, state: State, momentum: Tensor, step_size: float, steps: int, metric: Metric = IDENTITY
) -> tuple[State, Tensor, Tensor]:
    """Integrates Hamilton's equations by the leapfrog scheme; returns the end, the momentum there, and the highest energy on the way."""
    length = torch.full((), step_size, dtype=torch.promote_types(state.x.dtype, torch.float32), device=state.x.device)
    kick = bound_kicks(metric.whiten_gradient(state.grad) * length)
    momentum = torch.sub(momentum, kick, alpha=0.5)
    x, energies, grad, highest = state.x, state.energy, state.grad, state.energy
    for _ in range(steps):
        x = torch.addcmul(x, metric.unwhiten(momentum), length)
        energies, grad = energy_and_gradient(energy, x)
        kick = bound_kicks(metric.whiten_gradient(grad) * length)
        momentum, highest = momentum - kick, torch.fmax(highest, energies)
    return State(x, energies, grad), torch.add(momentum, kick, alpha=0.5), highest


def van_der_corput(number: int) -> float:
    """Returns an element of van der Corput's sequence in base 2, counted from 1: 1/2, 1/4, 3/4, 1/8, ..."""
    return int(f"{number:b}"[::-1], 2) / (1 << number.bit_length())
