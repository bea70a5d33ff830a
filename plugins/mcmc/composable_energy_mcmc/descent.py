"""Gradient descent."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from composable_energy import Energy
from composable_energy.arithmetic import unsqueeze_to
from composable_energy.options import check_number
from composable_energy.sampling import Info, Noise, Sampler, State, Traits, energy_and_gradient
from composable_energy_mcmc.batch import select, sum_of_each


@dataclass(frozen=True)
class DescentState(State):
    r"""A state with the step size $\eta$ of each chain, with shape $(B,)$."""

    rate: Tensor


@dataclass(frozen=True)
class Descent(Sampler):
    r"""Gradient descent, $x' = x - \eta \nabla E(x)$: finds modes; it does not sample.

    It is `langevin` at temperature 0, with $\eta = \lambda / 2$, but needs no choice of a step size. Each chain has its own: after a step
    $s$ that changes the gradient by $g$ it is $\eta = s \cdot g / g \cdot g$ (Barzilai & Borwein, 1988), so that narrow valleys take tens
    of steps instead of thousands. A step that would raise the energy is rejected, and $\eta$ falls to a quarter. A step costs one gradient.
    A chain whose gradient has vanished stays, and steps cost nothing once all chains have arrived.

    Args:
        step_size: $\eta > 0$ of the first step, in units of $x^2$.
        tolerance: The largest number in a gradient that counts as vanished.

    References:
        Two-point step size gradient methods (Barzilai & Borwein, 1988), https://doi.org/10.1093/imanum/8.1.141
    """

    step_size: float = 0.01
    tolerance: float = 1e-6

    traits: ClassVar[Traits] = Traits(steps=500, stationary=False, minimizes=True)

    def __post_init__(self) -> None:
        check_number("step_size", self.step_size, above=0)
        check_number("tolerance", self.tolerance, least=0)

    def init(self, energy: Energy, x: Tensor, noise: Noise) -> DescentState:
        energies, grad = energy_and_gradient(energy, x)
        return DescentState(x, energies, grad, sum_of_each(grad).new_full((len(x),), self.step_size))

    def step(self, energy: Energy, state: DescentState, noise: Noise) -> tuple[DescentState, Info]:
        moving = (state.grad.abs() > self.tolerance).reshape(len(state.x), -1).any(1)
        if not moving.any():
            return state, Info()
        x = state.x - unsqueeze_to(state.rate, state.x).to(state.x.dtype) * state.grad
        energies, grad = energy_and_gradient(energy, x)
        accepted = moving & ~(energies > state.energy)  # an energy that is not a number is accepted, so that the driver finds it
        curvature, change = sum_of_each((x - state.x) * (grad - state.grad)), sum_of_each((grad - state.grad).square())
        rate = torch.where(curvature > 0, torch.minimum(curvature / change, state.rate * 10), state.rate * 2)
        rate = torch.where(accepted, rate, torch.where(moving, state.rate / 4, state.rate)).clamp_min(torch.finfo(rate.dtype).tiny)
        after = select(accepted, State(x, energies, grad), state)
        return DescentState(after.x, after.energy, after.grad, rate), Info()
