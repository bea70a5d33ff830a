"""What samplers that follow falling noise levels share: the levels, the start, and what they check of an energy."""

from __future__ import annotations

import math
from abc import ABC
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from composable_energy import Energy
from composable_energy.errors import ExpressionError
from composable_energy.options import check_number
from composable_energy.sampling import (
    Noise,
    State,
    Traits,
)
from composable_energy_mcmc.level_gradient import check_precise_terms, level_gradient
from composable_energy_mcmc.noise_levels import NoiseLevels


@dataclass(frozen=True)
class LevelSampler(NoiseLevels, ABC):
    r"""Abstract sampler along noise levels $\sigma_1 > \dots > \sigma_N$, for energies with the condition `sigma`.

    The levels are $\sigma_i = \bigl(\sigma_\text{max}^{1/\rho} + \tfrac{i - 1}{N - 1} (\sigma_\text{min}^{1/\rho} -
    \sigma_\text{max}^{1/\rho})\bigr)^\rho$ (Karras et al., 2022). One step of the driver is one level, and the last one ends without noise.
    Chains start from a Gaussian that is fitted to denoised points at the highest level.

    Args:
        levels: $N$, at least 2; None takes 40.
        sigma_max: The highest level; None for the highest that all diffusion models in the expression know, at most 200 or what wide data
            need, else that of its recommendation, else 20 or the first higher one at which points are nearly Gaussian.
        sigma_min: The lowest level; None as above, else .01, or a hundredth of the narrowest coordinate.
        rho: $\rho$ from .5 to below 100; more levels are low for a higher one.
        mean: The mean of the Gaussian from which chains start, a number or a tensor with the shape of one point; None fits it.
        scale: Its standard deviation, a number or a tensor with the shape of one point.
    """

    rho: float = 7.0
    mean: Tensor | float | None = None
    scale: Tensor | float | None = None

    usual: ClassVar[tuple[int, float, float]] = (40, 0.01, 20.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("rho", self.rho, least=0.5, below=100)
        for name in ("mean", "scale"):
            if getattr(self, name) is not None and not isinstance(getattr(self, name), Tensor):
                check_number(name, getattr(self, name))

    def level(self, step: int) -> float:
        """Returns the noise level at a step, counted from 1."""
        low, high = (end ** (1 / self.rho) for end in self.sigma_range)
        return (high + (step - 1) / (self.total_steps - 1) * (low - high)) ** self.rho

    def start(self, like: Tensor, noise: Noise) -> Tensor:
        scale = math.sqrt(self.sigma_range[1] ** 2 + 1) if self.scale is None else torch.as_tensor(self.scale).to(like)
        x = noise.normal(like) * scale
        return x if self.mean is None else x + torch.as_tensor(self.mean).to(x)

    traits: ClassVar[Traits] = Traits(values=False, binds={"sigma": NoiseLevels.levels_of}, start=start)

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
