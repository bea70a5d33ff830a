"""Samplers along falling noise levels: the probability flow by the method of Heun, and ancestral sampling."""

from __future__ import annotations

import math
from abc import ABC
from dataclasses import dataclass, replace
from typing import ClassVar, cast

import torch
from torch import Tensor

from composable_energy import Energy
from composable_energy.errors import ExpressionError, OptionError
from composable_energy.options import check_integer, check_number
from composable_energy.sampling import Info, Noise, State, Traits
from composable_energy_mcmc.level_gradient import check_precise_terms, level_gradient
from composable_energy_mcmc.noise_levels import NoiseLevels


@dataclass(frozen=True)
class LevelSampler(NoiseLevels, ABC):
    r"""Abstract sampler along noise levels $\sigma_1 > \dots > \sigma_N$, for energies with the condition `sigma`.

    The levels are $\sigma_i = \bigl(\sigma_\text{max}^{1/\rho} + \tfrac{i - 1}{N - 1} (\sigma_\text{min}^{1/\rho} -
    \sigma_\text{max}^{1/\rho})\bigr)^\rho$ (Karras et al., 2022). One step of the driver is one level, and the last one ends without noise.
    Chains start from a Gaussian that is fitted to denoised points at the highest level, unless `mean` and `scale` give it.
    """

    rho: float = 7.0
    mean: Tensor | float | None = None
    scale: Tensor | float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("rho", self.rho, least=0.5, below=100)
        for name in ("mean", "scale"):
            if getattr(self, name) is not None and not isinstance(getattr(self, name), Tensor):
                check_number(name, getattr(self, name), above=0 if name == "scale" else None)

    def level(self, step: int) -> float:
        return self.power_level(step, self.rho)

    def start(self, like: Tensor, noise: Noise) -> Tensor:
        scale = math.sqrt(self.sigma_range[1] ** 2 + 1) if self.scale is None else torch.as_tensor(self.scale).to(like)
        x = noise.normal(like) * scale
        return x if self.mean is None else x + torch.as_tensor(self.mean).to(x)

    traits: ClassVar[Traits] = replace(NoiseLevels.traits, start=start)

    def tune(self, energy: Energy, x: Tensor, noise: Noise) -> tuple[LevelSampler, Tensor]:
        self._check(energy)
        low, high, found = self.find_start(energy, x, noise.child("levels"))
        mean, scale = found.mean if self.mean is None else self.mean, found.scale if self.scale is None else self.scale
        return replace(self, sigma_min=low, sigma_max=high, mean=mean, scale=scale), x

    def init(self, energy: Energy, x: Tensor, noise: Noise) -> State:
        self._check(energy)
        return self.evaluate(energy, x, 1)

    def evaluate(self, energy: Energy, x: Tensor, step: int) -> State:
        """Returns the state at points at the level of a step."""
        return State(x, *level_gradient(energy, x, self.level(min(step, self.total_steps)))[:2])

    def finish(self, energy: Energy, x: Tensor) -> State:
        """Returns the state at the draws, and warns if a term is more precise than the last level."""
        scale = math.hypot(self.sigma_range[1], 1)
        if self.mean is not None:
            scale += torch.as_tensor(self.mean).abs().max().item()
        x = check_precise_terms(energy, x, self.level(self.total_steps), scale, type(self).__name__.lower())
        return self.evaluate(energy, x, self.total_steps)

    def _check(self, energy: Energy) -> None:
        if "sigma" not in energy.conditions:
            raise ExpressionError(
                f"The sampler {type(self).__name__.lower()} follows noise levels, and {energy} does not depend on sigma: use another one, "
                "such as `annealed`, `langevin` or `chees`."
            )


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
        sigma_max: The highest level; None for the highest that all models in the expression know, at most 200 or what wide data need, else
            that of its recommendation, else 20 or the first higher one at which points are nearly Gaussian.
        sigma_min: The lowest level; None as above, else .01, or a hundredth of the narrowest coordinate.
        rho: $\rho$ from .5 to below 100; more levels are low for a higher one.
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
        slope = level_gradient(energy, torch.add(state.x, state.grad, alpha=(n - s) * s), n).grad
        x = torch.add(state.x, state.grad, alpha=(n - s) / 2 * s).add_(slope, alpha=(n - s) / 2 * n)
        return self.evaluate(energy, x, step + 1), Info(scalars={"sigma": s, "evaluations": 2.0 * step})

    def move(self, state: State, noise: Noise) -> Tensor | None:
        return self._last(state, self.level(noise.step)) if noise.step >= self.total_steps else None

    traits: ClassVar[Traits] = replace(LevelSampler.traits, gradients=2, move=move)

    def _last(self, state: State, s: float) -> Tensor:
        return torch.add(state.x, state.grad, alpha=-(s**2))


@dataclass(frozen=True)
class AncestralState(State):
    """A state with the denoised points of the level before, with shape $(B, *)$."""

    denoised: Tensor


@dataclass(frozen=True)
class SDE(LevelSampler):
    r"""Ancestral sampling: each step denoises to the next level and adds part of its noise anew.

    For an energy with the condition `sigma`. With the denoised point $D = x - s^2 \nabla E(x, s)$, a step from level $s$ to the next level
    $n$ is

    $$x \leftarrow r\, x + (1 - r)\, \hat D + n \sqrt{1 - (n / s)^{2 \eta}}\; \xi, \qquad r = (n / s)^{1 + \eta},$$

    and the last one takes $x \leftarrow D$. The first order has $\hat D = D$: with $\eta = 1$ it is the sampler of DDPM, with $\eta = 0$
    that of DDIM, without noise. The second order extrapolates from the denoised point $D'$ of the level $s'$ before, $\hat D = D + \tfrac12
    \tfrac{\log(s / n)}{\log(s' / s)} (D - D')$. A run takes `levels` gradients; the scalar `evaluations` counts them.

    `sigma_max`, `sigma_min`, `rho` and `mean` are those of `ODE`.

    Args:
        levels: The number $N$ of noise levels, at least 2; None takes 60.
        eta: $\eta$, from 0 to 1.
        order: 1 or 2.

    References:
        Denoising diffusion implicit models (Song et al., 2021), https://arxiv.org/abs/2010.02502;
        DPM-Solver++ (Lu et al., 2022), https://arxiv.org/abs/2211.01095
    """

    usual: ClassVar[tuple[int, float, float]] = (60, 0.01, 20.0)
    eta: float = 1.0
    order: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("eta", self.eta, least=0, below=math.nextafter(1, 2))
        if check_integer("order", self.order) > 2:
            raise OptionError(f"order must be 1 or 2, got {self.order}.")

    def init(self, energy: Energy, x: Tensor, noise: Noise) -> State:
        state = super().init(energy, x, noise)
        return AncestralState(state.x, state.energy, state.grad, torch.zeros_like(x))

    def step(self, energy: Energy, state: State, noise: Noise) -> tuple[State, Info]:
        s = self.level(noise.step)
        x = self.move(state, noise)
        new = self.finish(energy, x) if noise.step >= self.total_steps else self.evaluate(energy, x, noise.step + 1)
        denoised = torch.add(state.x, state.grad, alpha=-(s**2))
        return AncestralState(new.x, new.energy, new.grad, denoised), Info(scalars={"sigma": s, "evaluations": float(noise.step)})

    def move(self, state: State, noise: Noise) -> Tensor:
        s = self.level(noise.step)
        denoised = torch.add(state.x, state.grad, alpha=-(s**2))
        if noise.step >= self.total_steps:
            return denoised
        n = self.level(noise.step + 1)
        kept = (n / s) ** (1 + self.eta)
        target = denoised
        if self.order == 2 and noise.step > 1:
            ahead = math.log(s / n) / math.log(self.level(noise.step - 1) / s) / 2
            target = torch.add(denoised, denoised - cast(AncestralState, state).denoised, alpha=ahead)
        return noise.add_normal_(torch.lerp(target, state.x, kept), n * math.sqrt(1 - (n / s) ** (2 * self.eta)))

    traits: ClassVar[Traits] = replace(LevelSampler.traits, gradients=1, move=move)
