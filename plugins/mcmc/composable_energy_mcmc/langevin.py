"""Unadjusted Langevin."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from composable_energy import Energy
from composable_energy.errors import OptionError
from composable_energy.sampling import Info, Noise, Sampler, State, energy_and_gradient
from composable_energy_mcmc.options import at_least, positive

__all__ = ["Langevin"]


@dataclass(frozen=True)
class Langevin(Sampler):
    r"""Unadjusted Langevin: $x' = x - \tfrac{\lambda}{2} \nabla E(x) + \sqrt{\lambda T}\, \xi$ (Welling & Teh, 2011).

    One gradient a step. Biased by its step size: on a Gaussian with variance $s^2$ its variance is $T s^2 / (1 - \lambda / 4 s^2)$.

    Args:
        step_size: $\lambda > 0$, in units of $x^2$.
        temperature: $T \ge 0$; 0 is gradient descent.
        clamp: The lowest and the highest value of a coordinate, such as `(0, 1)` for images; None leaves points alone.
    """

    step_size: float
    temperature: float = 1.0
    clamp: tuple[float, float] | None = None

    gradients: ClassVar[int] = 1

    def __post_init__(self) -> None:
        positive("step_size", self.step_size)
        at_least("temperature", self.temperature, 0)
        if self.clamp is not None:
            if not isinstance(self.clamp, Sequence) or len(self.clamp) != 2 or not self.clamp[0] < self.clamp[1]:
                raise OptionError(f"clamp must be (lowest, highest), got {self.clamp!r}.")
            object.__setattr__(self, "clamp", (float(self.clamp[0]), float(self.clamp[1])))

    @classmethod
    def from_step_and_noise(cls, step: float, noise: float, clamp: tuple[float, float] | None = None) -> Langevin:
        r"""Returns the sampler of papers that give two numbers: $x' = x - \tfrac12 \text{step}\, \nabla E(x) + \text{noise}\, \xi$.

        Args:
            step: $\lambda$; a paper that writes $x - a \nabla E$ has $\lambda = 2 a$.
            noise: The standard deviation of the noise, $\sqrt{\lambda T}$.
            clamp: As for the class.
        """
        positive("step", step)
        at_least("noise", noise, 0)
        return cls(step, noise**2 / step, clamp)

    def init(self, energy: Energy, x: Tensor, noise: Noise) -> State:
        return State(x, *energy_and_gradient(energy, x))

    def step(self, energy: Energy, state: State, noise: Noise) -> tuple[State, Info]:
        x = torch.add(state.x, state.grad, alpha=-self.step_size / 2)
        if self.temperature > 0:
            x.add_(noise.normal(x), alpha=math.sqrt(self.step_size * self.temperature))
        if self.clamp is not None:
            x.clamp_(*self.clamp)
        return State(x, *energy_and_gradient(energy, x)), Info()

    @property
    def stationary(self) -> bool:
        return self.temperature > 0

    def bias(self, state: State) -> Tensor | None:
        r"""Returns $\lambda \lVert \nabla E \rVert^2 / 4 T d$ of points with $d$ coordinates: since the mean of $\lVert x \rVert^2$ stays
        as it is, $\langle x \cdot \nabla E \rangle = T d + \tfrac{\lambda}{4} \langle \lVert \nabla E \rVert^2 \rangle$ exactly."""
        if self.clamp is not None or self.temperature == 0:
            return None
        return state.grad.reshape(len(state.x), -1).double().square().mean(1) * (self.step_size / (4 * self.temperature))
