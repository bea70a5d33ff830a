"""Underdamped Langevin."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, cast

from torch import Tensor

from composable_energy import Energy
from composable_energy.errors import OptionError
from composable_energy.options import check_number
from composable_energy.sampling import Info, Noise, Sampler, State, Traits, energy_and_gradient, normal, underdamped_step
from composable_energy_mcmc.langevin import Langevin


@dataclass(frozen=True)
class MomentumState(State):
    """A state with a momentum for each coordinate, with shape $(B, *)$."""

    momentum: Tensor


@dataclass(frozen=True)
class Underdamped(Sampler):
    r"""Underdamped Langevin in the splitting BAOAB (Leimkuhler & Matthews, 2013): points have a momentum that friction slowly renews.

    With $c = e^{-\gamma h}$ a step is

    $$p \leftarrow p - \tfrac{h}{2} \nabla E(x), \quad x \leftarrow x + \tfrac{h}{2} p, \quad p \leftarrow c\, p + \sqrt{(1 - c^2) T}\, \xi,
    \quad x \leftarrow x + \tfrac{h}{2} p, \quad p \leftarrow p - \tfrac{h}{2} \nabla E(x)$$

    and costs one gradient. Points keep their direction for a while, so they cross long valleys in fewer steps. On a Gaussian with variance
    $s^2$ its points are unbiased for every $h < 2 s$, and its momenta have the variance $T (1 - h^2 / 4 s^2)$; on other energies the bias
    is of the order of $h^2$.

    Args:
        step_size: $h > 0$, in units of $x$; that of `langevin` is $\lambda = h^2$. None tunes it on pilot chains, so that `max_bias`
            holds.
        friction: $\gamma > 0$, by time: the momentum is forgotten after about $1 / \gamma h$ steps. Near $2 / s$ a
            Gaussian forgets where it began fastest.
        temperature: $T \ge 0$; 0 rolls down to a mode.
        max_bias: The relative loss of the variance of a momentum, $h^2 / 4 s^2$, to tune for: that of a Gaussian, along the coordinate with
            the steepest gradients. The bias of points is smaller.

    References:
        Rational construction of stochastic numerical methods for molecular sampling (Leimkuhler & Matthews, 2013),
        https://doi.org/10.1093/amrx/abs010
    """

    step_size: float | None = None
    friction: float = 1.0
    temperature: float = 1.0
    max_bias: float = 0.05

    traits: ClassVar[Traits] = Traits(
        gradients=1, values=False, refused={"clamp": "a point that is clamped keeps a momentum that points out of the box; use langevin."}
    )

    def __post_init__(self) -> None:
        check_number("step_size", self.step_size, above=0, optional=True)
        check_number("max_bias", self.max_bias, above=0, below=1)
        check_number("friction", self.friction, above=0)
        check_number("temperature", self.temperature, least=0)

    def tune(self, energy: Energy, x: Tensor, noise: Noise) -> tuple[Sampler, Tensor]:
        if self.step_size is not None:
            return self, x
        overdamped, points = Langevin(temperature=self.temperature, max_bias=self.max_bias).tune(energy, x, noise)
        return replace(self, step_size=math.sqrt(cast(Langevin, overdamped).step_size or 0.0)), points

    def approach(self, energy: Energy, x: Tensor, noise: Noise, level: float | None) -> tuple[Tensor, Tensor]:
        return Langevin(temperature=self.temperature).approach(energy, x, noise, level)

    def init(self, energy: Energy, x: Tensor, noise: Noise) -> MomentumState:
        return MomentumState(x, *energy_and_gradient(energy, x), normal(x, noise, math.sqrt(self.temperature)))

    def step(self, energy: Energy, state: MomentumState, noise: Noise) -> tuple[MomentumState, Info]:
        if self.step_size is None:
            raise OptionError("Underdamped has no step_size yet: give one, or let `sample` tune it.")
        half, kept = self.step_size / 2, math.exp(-self.friction * self.step_size)
        scale = math.sqrt((1 - kept**2) * self.temperature)
        x, momentum = underdamped_step(state.x, state.grad, state.momentum, noise=noise, drift=half, scale=scale, keep=kept, move=half)
        energies, grad = energy_and_gradient(energy, x)
        return MomentumState(x, energies, grad, momentum.add_(grad, alpha=-half)), Info()
