"""A sampler without gradients: random-walk Metropolis."""

from dataclasses import dataclass

import torch
from torch import Tensor

from composable_energy import Energy
from composable_energy.sampling import Info, Noise, Sampler, State

__all__ = ["MyPlugin"]


@dataclass(frozen=True)
class MyPlugin(Sampler):
    r"""Proposes $x + s\,\xi$ and accepts it with probability $\min(1, e^{E(x) - E(x')})$ (Metropolis et al., 1953).

    Args:
        scale: $s > 0$; about $2.4 / \sqrt{d}$ standard deviations is good in $d$ dimensions.
    """

    scale: float = 1.0

    def init(self, energy: Energy, x: Tensor, noise: Noise) -> State:
        """Returns the state at the start, with a row for each chain."""
        return State(x, energy(x), torch.zeros_like(x))

    def step(self, energy: Energy, state: State, noise: Noise) -> tuple[State, Info]:
        """Returns the state after a step; all random numbers come from `noise`."""
        proposal = state.x + self.scale * noise.normal(state.x)
        energies = energy(proposal)
        acceptance = (state.energy - energies).exp().clamp(max=1.0)
        keep = noise.uniform(state.x, stream=1) >= acceptance  # not `accept`: an energy that is NaN must stay visible
        x = torch.where(keep.view(-1, *[1] * (proposal.ndim - 1)), state.x, proposal)
        return State(x, torch.where(keep, state.energy, energies), state.grad), Info(acceptance)
