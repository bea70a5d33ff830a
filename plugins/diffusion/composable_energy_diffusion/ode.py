"""The probability flow, by Heun's method."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from composable_energy import Energy
from composable_energy.sampling import Info, Noise, State, Traits
from composable_energy_diffusion.levels import LevelSampler
from composable_energy_mcmc.level_gradient import level_gradient


@dataclass(frozen=True)
class ODE(LevelSampler):
    r"""The probability flow $dx / d\sigma = \sigma \nabla E(x, \sigma)$ by Heun's method, from a random start and without noise on the way.

    For an energy with the condition `sigma`. A step from level $s$ to the next level $n$ is of second order,

    $$x' = x + (n - s)\, s\, \nabla E(x, s), \qquad
    x \leftarrow x + \tfrac{n - s}{2} \bigl(s\, \nabla E(x, s) + n\, \nabla E(x', n)\bigr),$$

    and the last one takes the expected point without its noise, $x \leftarrow x - s^2 \nabla E(x, s)$. A run evaluates `2 * levels - 1`
    gradients; the scalar `evaluations` counts them.

    The draws of one diffusion model follow its density, up to the size of the steps. Those of an expression follow the flow of
    its gradients, which is that of its density only approximately: noised products are not products of noised densities.

    Args:
        levels: The number $N$ of noise levels, at least 2; None takes 30.
        sigma_max: The highest level; None for that of the models.
        sigma_min: The lowest level; None for that of the models.
        rho: $\rho$; see `LevelSampler`.
        mean: The mean of the data, from which chains start; None for the denoised point at the highest level.

    References:
        Elucidating the design space of diffusion-based generative models (Karras et al., 2022), https://arxiv.org/abs/2206.00364
    """

    usual: ClassVar[tuple[int, float, float]] = (30, 0.01, 20.0)

    def step(self, energy: Energy, state: State, noise: Noise) -> tuple[State, Info]:
        step, s = noise.step, self.level(noise.step)
        if step >= self.total_steps:
            return self.finish(energy, self._last(state, s)), Info(scalars={"sigma": s, "evaluations": 2.0 * step - 1})
        n = self.level(step + 1)
        guess = torch.add(state.x, state.grad, alpha=(n - s) * s)
        slope = level_gradient(energy, guess, n).grad
        x = torch.add(state.x, state.grad, alpha=(n - s) / 2 * s).add_(slope, alpha=(n - s) / 2 * n)
        return self.evaluate(energy, x, step + 1), Info(scalars={"sigma": s, "evaluations": 2.0 * step})

    def move(self, state: State, noise: Noise) -> Tensor | None:
        return self._last(state, self.level(noise.step)) if noise.step >= self.total_steps else None

    traits: ClassVar[Traits] = replace(LevelSampler.traits, gradients=2, move=move)

    def _last(self, state: State, s: float) -> Tensor:
        return torch.add(state.x, state.grad, alpha=-(s**2))
