"""Metropolis-adjusted Langevin."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from composable_energy import Energy
from composable_energy.errors import OptionError
from composable_energy.options import check_integer, check_number
from composable_energy.sampling import Info, Noise, Sampler, State, Traits, energy_and_gradient, langevin_step
from composable_energy_mcmc.batch import REFUSED, bound_kicks, choose, sum_of_each
from composable_energy_mcmc.tuning import approach, tune_step_size


@dataclass(frozen=True)
class MALA(Sampler):
    r"""Metropolis-adjusted Langevin (Roberts & Tweedie, 1996): a Langevin step as a proposal, accepted or rejected, without bias.

    A step costs one gradient; that of the current point is kept. With $y = x - \tfrac{\lambda}{2} g(x) + \sqrt{\lambda}\, \xi$ the
    logarithm of the acceptance ratio is

    $$E(x) - E(y) + \tfrac12 (g(x) + g(y)) \cdot \left(y - x + \tfrac{\lambda}{4} (g(x) - g(y))\right).$$

    Here $g$ is $\nabla E$, shortened to a norm of at most $(3 + 1.5\, d^{1/3}) / \sqrt{\lambda}$ (MALTA, in the same paper): with the
    whole gradient, chains would never leave a wall that is thin beside the step.

    Args:
        step_size: $\lambda > 0$, in units of $x^2$; None tunes it on pilot chains.
        acceptance: The mean acceptance to tune for; .574 is best in many dimensions (Roberts & Rosenthal, 1998).
        tuning_steps: The number of steps of the pilot chains.
    """

    step_size: float | None = None
    acceptance: float = 0.574
    tuning_steps: int = 150

    traits: ClassVar[Traits] = Traits(steps=500, gradients=1, refused=REFUSED)

    def __post_init__(self) -> None:
        check_number("step_size", self.step_size, above=0, optional=True)
        check_number("acceptance", self.acceptance, above=0, below=1)
        check_integer("tuning_steps", self.tuning_steps)

    def tune(self, energy: Energy, x: Tensor, noise: Noise) -> tuple[Sampler, Tensor]:
        if self.step_size is not None:
            return self, x

        def make(length: float) -> MALA:
            return replace(self, step_size=min(max(length**2, 1e-30), 1e18))

        return tune_step_size(make, energy, x, noise, self.acceptance, self.tuning_steps)

    def approach(self, energy: Energy, x: Tensor, noise: Noise, level: float | None) -> tuple[Tensor, Tensor]:
        state, arrived = approach(energy, x, noise, level=level, step_size=math.sqrt(self.step_size or 0.01))
        return state.x, arrived

    def step(self, energy: Energy, state: State, noise: Noise) -> tuple[State, Info]:
        if self.step_size is None:
            raise OptionError("MALA has no step_size yet: give one, or let `sample` tune it.")
        drift, scale = self.step_size / 2, math.sqrt(self.step_size)
        here = bound_kicks(state.grad, scale)
        x = langevin_step(state.x, here, noise=noise, drift=drift, scale=scale)
        proposal = State(x, *energy_and_gradient(energy, x))
        there = replace(proposal, grad=bound_kicks(proposal.grad, scale))
        log_ratio = state.energy - proposal.energy + langevin_log_ratio(replace(state, grad=here), there, self.step_size)
        return choose(state, proposal, log_ratio, noise)


def langevin_log_ratio(state: State, proposal: State, step_size: float) -> Tensor:
    """Returns the logarithm of the density of the reverse proposal over that of the forward one, with shape $(B,)$. It is computed from the
    points, not from the noise, so that it holds for the step after rounding."""
    wide = torch.promote_types(state.x.dtype, torch.float32)
    x, y, here, there = (value.to(wide) for value in (state.x, proposal.x, state.grad, proposal.grad))
    way = torch.sub(y, x).add_(here, alpha=step_size / 4).sub_(there, alpha=step_size / 4)
    return sum_of_each(way.mul_(torch.add(here, there))) / 2
