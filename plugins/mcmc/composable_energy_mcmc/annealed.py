"""Annealed Langevin, from much noise to little."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from composable_energy import Energy
from composable_energy.errors import OptionError
from composable_energy.sampling import Info, Noise, Sampler, State, energy_and_gradient
from composable_energy_mcmc.options import at_least, positive, whole

__all__ = ["Annealed"]


@dataclass(frozen=True)
class Annealed(Sampler):
    r"""Annealed Langevin: corrector steps at each noise level, and an ancestral step to the next.

    For an energy with the condition `sigma`, trained on points with noise of level $\sigma$ added. The levels fall geometrically from
    `sigma_max` to `sigma_min`; the start is $N(0, (\sigma_\text{max}^2 + 1) I)$, which fits data of about unit variance. One step of the
    driver is one level $s$ with the next level $n$:

    $$x \leftarrow x - \delta s^2 \nabla E(x, s) + \sqrt{2 \delta T}\, s\, \xi \quad \text{(corrector, several times)}$$
    $$x \leftarrow x - (s^2 - n^2) \nabla E(x, s) + n \sqrt{(s^2 - n^2) T / s^2}\, \xi \quad \text{(ancestral)}$$

    and at the last level $x \leftarrow x - s^2 \nabla E(x, s)$, the expected point without its noise. It costs
    `levels * (corrector_steps + 1)` gradients.

    An energy without `sigma` is tempered instead: level $s$ is the temperature $(1 + s^2) T$, the last one $T$ itself, and each takes
    `corrector_steps + 1` Langevin steps $x \leftarrow x - \delta \nabla E(x) + \sqrt{2 \delta (1 + s^2) T}\, \xi$.

    Args:
        levels: How many, at least 2.
        sigma_max: The highest level.
        sigma_min: The lowest level.
        corrector_steps: Langevin steps at each level; 0 leaves the ancestral ones.
        delta: $\delta$, the step of the corrector in units of $s^2$.
        temperature: $T$.

    References:
        Generative modeling by estimating gradients of the data distribution (Song & Ermon, 2019), https://arxiv.org/abs/1907.05600
    """

    levels: int = 40
    sigma_max: float = 4.0
    sigma_min: float = 0.05
    corrector_steps: int = 3
    delta: float = 0.1
    temperature: float = 1.0

    binds: ClassVar[frozenset[str]] = frozenset({"sigma"})

    def __post_init__(self) -> None:
        whole("levels", self.levels, 2)
        positive("sigma_min", self.sigma_min)
        positive("sigma_max", self.sigma_max)
        if not self.sigma_min < self.sigma_max:
            raise OptionError(f"sigma_min must be below sigma_max, got {self.sigma_min} and {self.sigma_max}.")
        whole("corrector_steps", self.corrector_steps, 0)
        positive("delta", self.delta)
        at_least("temperature", self.temperature, 0)

    @property
    def default_steps(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.levels

    @property
    def total_steps(self) -> int:
        return self.levels

    def level(self, step: int) -> float:
        """Returns the noise level at a step, counted from 1."""
        return self.sigma_max * (self.sigma_min / self.sigma_max) ** ((step - 1) / (self.levels - 1))

    def start(self, like: Tensor, noise: Noise) -> Tensor:
        return noise.normal(like).mul_(math.sqrt(self.sigma_max**2 + 1))

    def final_conditions(self, energy: Energy) -> Mapping[str, Any]:
        return {"sigma": self.sigma_min} if "sigma" in energy.conditions else {}

    def init(self, energy: Energy, x: Tensor, noise: Noise) -> State:
        return self._at(energy, x, 1)

    def step(self, energy: Energy, state: State, noise: Noise) -> tuple[State, Info]:
        if "sigma" not in energy.conditions:
            return self._tempered(energy, state, noise)
        step, s = noise.step, self.level(noise.step)
        for i in range(self.corrector_steps):
            state = self._at(energy, self._move(state, self.delta * s**2, math.sqrt(2 * self.delta) * s, noise, i), step)
        if step >= self.levels:
            x = torch.add(state.x, state.grad, alpha=-(s**2))
        else:
            n = self.level(step + 1)
            x = self._move(state, s**2 - n**2, n * math.sqrt(s**2 - n**2) / s, noise, self.corrector_steps)
        return self._at(energy, x, min(step + 1, self.levels)), Info(scalars={"sigma": s})

    def _at(self, energy: Energy, x: Tensor, step: int) -> State:
        if "sigma" not in energy.conditions:
            return State(x, *energy_and_gradient(energy, x))
        return State(x, *energy_and_gradient(energy, x, sigma=self.level(step)))

    def _move(self, state: State, drift: float, scale: float, noise: Noise, stream: int) -> Tensor:
        x = torch.add(state.x, state.grad, alpha=-drift)
        if self.temperature > 0:
            x.add_(noise.normal(x, stream), alpha=scale * math.sqrt(self.temperature))
        return x

    def _tempered(self, energy: Energy, state: State, noise: Noise) -> tuple[State, Info]:
        heat = 1.0 if noise.step >= self.levels else 1 + self.level(noise.step) ** 2
        for i in range(self.corrector_steps + 1):
            x = self._move(state, self.delta, math.sqrt(2 * self.delta * heat), noise, i)
            state = State(x, *energy_and_gradient(energy, x))
        return state, Info(scalars={"temperature": heat * self.temperature})
