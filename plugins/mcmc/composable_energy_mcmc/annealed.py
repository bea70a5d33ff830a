"""Annealed sampling, from much noise to little."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from composable_energy import Energy, get_sampler
from composable_energy.errors import OptionError
from composable_energy.kernels import langevin_step
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

    Another sampler may be the corrector: one that accepts and rejects brings no error of its own to a level, whatever its step. It sees
    points in units of the level, $y = x / u$ with $u = s$, or $u = \sqrt{1 + s^2}$ for a tempered energy and 1 at its last level. So its
    step $h$ is $h u$ in units of $x$, a Langevin step $\lambda$ is $\lambda u^2$, and what pilot chains tune at the first level serves all.
    It begins anew at each level, with a gradient more.

    Args:
        levels: How many, at least 2.
        sigma_max: The highest level.
        sigma_min: The lowest level.
        corrector_steps: Steps of the corrector at each level; 0 leaves the ancestral ones.
        delta: $\delta$, the step of the built-in corrector in units of $s^2$.
        temperature: $T$.
        corrector: Another sampler, or its name; None is Langevin's step above.
        max_gradient: The longest that $s \lVert \nabla E(x, s) \rVert$ may be, over the root of the number of coordinates; a longer
            gradient is cut to it, chain by chain. About 1 is usual, so that 3 changes nothing but what a steep term does far from where it
            holds. It is for energies that know `sigma`; None leaves every gradient as it is.

    References:
        Generative modeling by estimating gradients of the data distribution (Song & Ermon, 2019), https://arxiv.org/abs/1907.05600
    """

    levels: int = 40
    sigma_max: float = 4.0
    sigma_min: float = 0.05
    corrector_steps: int = 3
    delta: float = 0.1
    temperature: float = 1.0
    corrector: Sampler | str | None = None
    max_gradient: float | None = None

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
        if self.max_gradient is not None:
            positive("max_gradient", self.max_gradient)
        if self.corrector is not None:
            self._check_corrector()

    @property
    def default_steps(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.levels

    @property
    def total_steps(self) -> int:
        return self.levels

    @property
    def needs_values(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return isinstance(self.corrector, Sampler) and self.corrector.needs_values

    def level(self, step: int) -> float:
        """Returns the noise level at a step, counted from 1."""
        return self.sigma_max * (self.sigma_min / self.sigma_max) ** ((step - 1) / (self.levels - 1))

    def start(self, like: Tensor, noise: Noise) -> Tensor:
        return noise.normal(like).mul_(math.sqrt(self.sigma_max**2 + 1))

    def final_conditions(self, energy: Energy) -> Mapping[str, Any]:
        return {"sigma": self.sigma_min} if "sigma" in energy.conditions else {}

    def tune(self, energy: Energy, x: Tensor, noise: Noise) -> Sampler:
        if not isinstance(self.corrector, Sampler):
            return self
        level = self._seen(energy, 1)
        return replace(self, corrector=self.corrector.tune(level, x / level.unit, noise.child("corrector")))

    def init(self, energy: Energy, x: Tensor, noise: Noise) -> State:
        if self.max_gradient is not None and "sigma" not in energy.conditions:
            raise OptionError(f"max_gradient is in units of the noise level, and {energy} does not depend on sigma: leave it out.")
        return self._at(energy, x, 1)

    def step(self, energy: Energy, state: State, noise: Noise) -> tuple[State, Info]:
        step, s, rates = noise.step, self.level(noise.step), None
        if isinstance(self.corrector, Sampler):
            state, rates = self._corrected(energy, state, noise)
        if "sigma" not in energy.conditions:
            return self._tempered(energy, state, noise, rates)
        for i in range(0 if self.corrector else self.corrector_steps):
            state = self._at(energy, self._move(state, self.delta * s**2, math.sqrt(2 * self.delta) * s, noise, i), step)
        if step >= self.levels:
            x = torch.add(state.x, state.grad, alpha=-(s**2))
        else:
            n = self.level(step + 1)
            x = self._move(state, s**2 - n**2, n * math.sqrt(s**2 - n**2) / s, noise, self.corrector_steps)
        return self._at(energy, x, min(step + 1, self.levels)), Info(rates, {"sigma": s})

    def _at(self, energy: Energy, x: Tensor, step: int) -> State:
        if "sigma" not in energy.conditions:
            return State(x, *energy_and_gradient(energy, x))
        level = self.level(step)
        energies, gradients = energy_and_gradient(energy, x, sigma=level)
        if self.max_gradient is None:
            return State(x, energies, gradients)
        longest = self.max_gradient * math.sqrt(max(1, x[0].numel())) / level
        lengths = gradients.reshape(len(x), -1).norm(dim=1).view(-1, *[1] * (x.ndim - 1))
        return State(x, energies, gradients * (longest / lengths).clamp(max=1))

    def _move(self, state: State, drift: float, scale: float, noise: Noise, stream: int) -> Tensor:
        return langevin_step(state.x, state.grad, noise=noise, drift=drift, scale=scale * math.sqrt(self.temperature), stream=stream)

    def _tempered(self, energy: Energy, state: State, noise: Noise, rates: Tensor | None) -> tuple[State, Info]:
        heat = self._heat(noise.step)
        for i in range(0 if self.corrector else self.corrector_steps + 1):
            x = self._move(state, self.delta, math.sqrt(2 * self.delta * heat), noise, i)
            state = State(x, *energy_and_gradient(energy, x))
        return state, Info(rates, {"temperature": heat * self.temperature})

    def _heat(self, step: int) -> float:
        return 1.0 if step >= self.levels else 1 + self.level(step) ** 2

    # Another corrector ----------------------------------------------------------------------------------------------------------------

    def _check_corrector(self) -> None:
        if isinstance(self.corrector, str):
            try:
                object.__setattr__(self, "corrector", get_sampler(self.corrector)())
            except TypeError as error:
                raise OptionError(f"The corrector {self.corrector!r} needs options: give an instance that has them.") from error
        corrector = self.corrector
        if not isinstance(corrector, Sampler):
            raise OptionError(f"corrector must be a sampler or the name of one, got {corrector!r}.")
        if corrector.total_steps is not None or type(corrector).couple is not Sampler.couple:
            raise OptionError(f"{corrector} goes its own way from a start to an end: a corrector may stop after any step.")
        if getattr(corrector, "clamp", None) is not None:
            raise OptionError("A corrector sees points in units of the level, so that `clamp` would be another box at each: leave it out.")
        if self.corrector_steps == 0 or self.temperature == 0:
            raise OptionError("A corrector needs corrector_steps and a temperature above 0.")
        if self.max_gradient is not None:
            raise OptionError("max_gradient is for the built-in corrector; another one has rules of its own for steep energies.")

    def _seen(self, energy: Energy, step: int) -> _Level:
        """What a corrector sees at a step."""
        if "sigma" in energy.conditions:
            return _Level(energy, self.level(step), self.temperature, sigma=self.level(step))
        heat = self._heat(step)
        return _Level(energy, math.sqrt(heat), heat * self.temperature)

    def _corrected(self, energy: Energy, state: State, noise: Noise) -> tuple[State, Tensor | None]:
        """Takes the steps of the corrector; and how likely it accepted, with shape (B,), if it may reject."""
        level, corrector, rates = self._seen(energy, noise.step), cast(Sampler, self.corrector), []
        inner = corrector.init(level, state.x / level.unit, noise.child("corrector starts"))
        own = noise.child("corrector")
        for i in range(self.corrector_steps):
            inner, info = corrector.step(level, inner, own.at((noise.step - 1) * self.corrector_steps + i + 1))
            rates.append(info.acceptance)
        state = State(level.unit * inner.x, level.heat * inner.energy, level.heat / level.unit * inner.grad)
        return state, None if rates[0] is None else torch.stack(rates).mean(0)


class _Level(Energy):
    """An energy at a level, of points in its units, and over its temperature."""

    def __init__(self, energy: Energy, unit: float, heat: float, **conditions: float) -> None:
        super().__init__()
        self.energy, self.unit, self.heat, self.known = energy, unit, heat, conditions
        self.event_shape, self.has_value = energy.event_shape, energy.has_value

    def forward(self, x: Tensor) -> Tensor:
        return self.energy(self.unit * x, **self.known) / self.heat

    def __str__(self) -> str:
        return str(self.energy)
