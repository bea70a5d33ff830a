r"""The geometric path $E_b = (1 - b)\, E_0 + b\, E$ from a Gaussian $E_0$ at $b = 0$ to an energy $E$ at $b = 1$, and steps along it."""

import torch
from torch import Tensor

from composable_energy import Energy
from composable_energy.arithmetic import unsqueeze_to
from composable_energy.sampling import State, energy_and_gradient
from composable_energy_mcmc.annealing.gaussian import Gaussian
from composable_energy_mcmc.batch import select, sum_of_each
from composable_energy_mcmc.hamiltonian import RUNAWAY
from composable_energy_mcmc.metropolis import check_precision, judge


def geometric_energy(level: float | Tensor, at_base: Tensor, energies: Tensor) -> Tensor:
    """Returns $(1 - b) E_0 + b E$, with shape $(B,)$; at either end the other energy has no influence, even if it is infinite."""
    if not isinstance(level, Tensor):
        return energies if level == 1 else at_base if level == 0 else (1 - level) * at_base + level * energies
    return torch.where(level == 1, energies, torch.where(level == 0, at_base, (1 - level) * at_base + level * energies))


def evaluate(energy: Energy, x: Tensor) -> State:
    r"""Returns points with $E$ and $\nabla E$; where the energy is not a number it is infinite, and there the gradient is 0."""
    energies, grad = energy_and_gradient(energy, x)
    energies = torch.where(energies.isnan(), torch.inf, energies)
    state = State(x, energies, torch.where(unsqueeze_to(energies == torch.inf, x), 0.0, grad))
    check_precision(state)
    return state


def hamiltonian_step(
    energy: Energy, base: Gaussian, state: State, levels: Tensor, step_sizes: Tensor, momentum: Tensor, leapfrogs: int, log_uniform: Tensor
) -> tuple[State, Tensor]:
    r"""Takes a step of Hamiltonian Monte Carlo with each point at its own level $b$, and step sizes in units of the base's scale.

    Proposals are accepted as `judge` says, and runaway trajectories are rejected.
    """
    b, units = unsqueeze_to(levels, state.x), unsqueeze_to(step_sizes, state.x) * base.scale

    def kick(here: State) -> Tensor:
        return ((1 - b) * base.gradient(here.x) + b * here.grad).mul_(units)

    def hamiltonian(here: State, momentum: Tensor) -> Tensor:
        return geometric_energy(levels, base.energy(here.x), here.energy) + sum_of_each(momentum.square()) / 2

    before, here, highest = hamiltonian(state, momentum), state, state.energy
    momentum = torch.sub(momentum, kick(here), alpha=0.5)
    for step in range(1, leapfrogs + 1):
        x = torch.addcmul(here.x, units, momentum)
        here = State(x, *energy_and_gradient(energy, x))
        momentum.sub_(kick(here), alpha=1.0 if step < leapfrogs else 0.5)
        highest = torch.fmax(highest, here.energy)
    log_ratio = before - hamiltonian(here, momentum)
    runaway = (levels * highest > before + RUNAWAY) & ~log_ratio.isfinite()
    accepted, rates = judge(here.energy, torch.where(runaway, -torch.inf, log_ratio), log_uniform)
    return select(accepted, here, state), rates
