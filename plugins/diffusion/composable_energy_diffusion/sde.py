"""Ancestral sampling."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, cast

import torch
from torch import Tensor

from composable_energy import Energy
from composable_energy.errors import OptionError
from composable_energy.options import check_integer, check_number
from composable_energy.sampling import Info, Noise, State, Traits
from composable_energy_diffusion.levels import LevelSampler


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
    that of DDIM, without noise. The second order extrapolates from the denoised point $D'$ of the level $s'$ before,
    $\hat D = D + \tfrac12 \tfrac{\log(s / n)}{\log(s' / s)} (D - D')$. A run evaluates `levels` gradients; the scalar `evaluations`
    counts them.

    Args:
        levels: The number $N$ of noise levels, at least 2; None takes 60.
        sigma_max: The highest level; None for that of the models.
        sigma_min: The lowest level; None for that of the models.
        rho: $\rho$; see `LevelSampler`.
        mean: The mean of the data, from which chains start; None for the denoised point at the highest level.
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
