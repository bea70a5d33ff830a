"""Annealed Langevin: corrector steps at falling noise levels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from composable_energy import Energy, get_sampler
from composable_energy.arithmetic import unsqueeze_to
from composable_energy.errors import OptionError
from composable_energy.kernels import langevin_step
from composable_energy.options import check_integer, check_number
from composable_energy.sampling import (
    Info,
    LevelGradient,
    Noise,
    Sampler,
    State,
    check_precise_terms,
    energy_and_gradient,
    level_gradient,
    warn_of_weak_evidence,
)
from composable_energy_mcmc.langevin import Langevin

__all__ = ["GUIDED_STEPS", "Annealed"]

_DELTA = 0.1  # in units of the square of the noise level
GUIDED_STEPS = 1
"""Corrector steps at a level, at most, for an expression with terms without noise levels; see decision record 24."""


@dataclass(frozen=True)
class Annealed(Sampler):
    r"""Annealed Langevin: corrector steps at each noise level, and an ancestral step to the next.

    For an energy with the condition `sigma`, trained on points with noise of level $\sigma$ added. The levels fall geometrically from
    `sigma_max` to `sigma_min`; chains start from $N(0, (\sigma_\text{max}^2 + 1) I)$, which fits data of about unit variance. One step of
    the driver is one level $s$; the next level is $n$:

    $$x \leftarrow x - \delta s^2 \nabla E(x, s) + \sqrt{2 \delta T}\, s\, \xi \quad \text{(corrector, several times)}$$
    $$x \leftarrow x - (s^2 - n^2) \nabla E(x, s) + n \sqrt{(s^2 - n^2) T / s^2}\, \xi \quad \text{(ancestral)}$$

    and at the last level $x \leftarrow x - s^2 \nabla E(x, s)$, the expected point without its noise. A run costs
    `levels * (corrector_steps + 1)` gradients.

    Terms without noise levels, such as a network of pictures beside faces, are evaluated at the denoised points
    $\hat x = x - s^2 \nabla E_n(x, s)$ of the other terms $E_n$; see `composable_energy.sampling.level_gradient`. Such an expression takes
    one corrector step at a level at most, and evaluates these terms once a level, after it.

    An energy without `sigma` is tempered instead: level $s$ is the temperature $(1 + s^2) T$, the last one $T$ itself, and each takes
    `corrector_steps + 1` Langevin steps $x \leftarrow x - \delta \nabla E(x) + \sqrt{2 \delta (1 + s^2) T}\, \xi$.

    Any other sampler may be the corrector; one that accepts and rejects adds no error at a level, whatever its step size. It moves points
    in units of the level, $y = x / u$ with $u = s$, or $u = \sqrt{1 + s^2}$ for a tempered energy and 1 at its last level. So its step size
    $h$ is $h u$ in units of $x$, a Langevin step $\lambda$ is $\lambda u^2$, and options tuned at the first level fit all levels. It is
    initialised at each level, which costs one more gradient.

    Args:
        levels: The number of noise levels, at least 2.
        sigma_max: The highest level.
        sigma_min: The lowest level.
        corrector_steps: Steps of the corrector at each level; 0 leaves the ancestral ones.
        delta: $\delta$, the step size of the built-in corrector in units of $s^2$; None is .1, and for a tempered energy half the step size
            that `langevin` tunes.
        temperature: $T$.
        corrector: Another sampler, or its name; None is the Langevin step above.
        max_gradient: The largest $s \lVert \nabla E(x, s) \rVert$ of a chain, over the root of the number of coordinates; longer gradients
            are scaled down to it. Its usual size is about 1, so 3 affects only points far out where a term is steep. It is for energies
            with the condition `sigma`; None leaves all gradients as they are.

    References:
        Generative modeling by estimating gradients of the data distribution (Song & Ermon, 2019), https://arxiv.org/abs/1907.05600
    """

    levels: int = 40
    sigma_max: float = 4.0
    sigma_min: float = 0.05
    corrector_steps: int = 3
    delta: float | None = None
    temperature: float = 1.0
    corrector: Sampler | str | None = None
    max_gradient: float | None = None

    binds: ClassVar[frozenset[str]] = frozenset({"sigma"})
    stored_texts: ClassVar[tuple[str, ...]] = ("corrector",)

    def __post_init__(self) -> None:
        check_integer("levels", self.levels, 2)
        check_number("sigma_min", self.sigma_min, above=0)
        check_number("sigma_max", self.sigma_max, above=0)
        if not self.sigma_min < self.sigma_max:
            raise OptionError(f"sigma_min must be below sigma_max, got {self.sigma_min} and {self.sigma_max}.")
        check_integer("corrector_steps", self.corrector_steps, 0)
        if self.delta is not None:
            check_number("delta", self.delta, above=0)
        check_number("temperature", self.temperature, least=0)
        if self.max_gradient is not None:
            check_number("max_gradient", self.max_gradient, above=0)
        if self.corrector is not None:
            self._check_corrector()

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

    def tune(self, energy: Energy, x: Tensor, noise: Noise) -> tuple[Sampler, Tensor]:
        warn_of_weak_evidence(energy, "annealed")
        if not isinstance(self.corrector, Sampler):
            if self.delta is not None or "sigma" in energy.conditions or self.temperature == 0:
                return self, x
            langevin, points = Langevin(temperature=self.temperature).tune(energy, x, noise)
            return replace(self, delta=(cast(Langevin, langevin).step_size or 0.0) / 2), points
        level = self.level_energy(energy, 1)
        start = x / level.unit
        corrector, points = self.corrector.tune(level, start, noise.child("corrector"))
        return replace(self, corrector=corrector), x if points is start else points * level.unit

    def init(self, energy: Energy, x: Tensor, noise: Noise) -> State:
        if self.max_gradient is not None and "sigma" not in energy.conditions:
            raise OptionError(f"max_gradient is in units of the noise level, and {energy} does not depend on sigma: leave it out.")
        return self._evaluate(energy, x, 1)

    def step(self, energy: Energy, state: State, noise: Noise) -> tuple[State, Info]:
        step, s, rates = noise.step, self.level(noise.step), None
        if isinstance(self.corrector, Sampler):
            state, rates = self.correct(energy, state, noise)
        if "sigma" not in energy.conditions:
            return self._step_tempered(energy, state, noise, rates)
        delta = _DELTA if self.delta is None else self.delta
        count = 0 if self.corrector else min(self.corrector_steps, GUIDED_STEPS if isinstance(state, _Guided) else self.corrector_steps)
        for i in range(count):
            state = self._evaluate(energy, self._langevin_move(state, delta * s**2, math.sqrt(2 * delta) * s, noise, i), step)
        if step >= self.levels:
            x = torch.add(state.x, state.grad, alpha=-(s**2))
            x = check_precise_terms(energy, x, s, math.hypot(self.sigma_max, 1), "annealed")
        else:
            n = self.level(step + 1)
            x = self._langevin_move(state, s**2 - n**2, n * math.sqrt(s**2 - n**2) / s, noise, self.corrector_steps)
        return self._evaluate(energy, x, min(step + 1, self.levels), state if count else None), Info(rates, {"sigma": s})

    def _evaluate(self, energy: Energy, x: Tensor, step: int, held: State | None = None) -> State:
        """Returns the state at points; terms without noise levels keep the slope that they have in another state."""
        if "sigma" not in energy.conditions:
            return State(x, *energy_and_gradient(energy, x))
        level = self.level(step)
        found = level_gradient(energy, x, level, held.at_level if isinstance(held, _Guided) else None)
        gradients = found.grad
        if self.max_gradient is not None:
            longest = self.max_gradient * math.sqrt(max(1, x[0].numel())) / level
            lengths = unsqueeze_to(gradients.reshape(len(x), -1).norm(dim=1), x)
            gradients = gradients * (longest / lengths).clamp(max=1)
        if found.plain is None or found.slope is None:
            return State(x, found.energy, gradients)
        return _Guided(x, found.energy, gradients, found.plain, found.slope)

    def _langevin_move(self, state: State, drift: float, scale: float, noise: Noise, stream: int) -> Tensor:
        return langevin_step(state.x, state.grad, noise=noise, drift=drift, scale=scale * math.sqrt(self.temperature), stream=stream)

    def _step_tempered(self, energy: Energy, state: State, noise: Noise, rates: Tensor | None) -> tuple[State, Info]:
        factor, delta = self._temperature_factor(noise.step), _DELTA if self.delta is None else self.delta
        for i in range(0 if self.corrector else self.corrector_steps + 1):
            x = self._langevin_move(state, delta, math.sqrt(2 * delta * factor), noise, i)
            state = State(x, *energy_and_gradient(energy, x))
        return state, Info(rates, {"temperature": factor * self.temperature})

    def _temperature_factor(self, step: int) -> float:
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
            raise OptionError(f"{corrector} has a last step or couples chains; a corrector must be able to stop after any step.")
        if getattr(corrector, "clamp", None) is not None:
            raise OptionError("A corrector moves points in units of the level, so that `clamp` would be another box at each: leave it out.")
        if self.corrector_steps == 0 or self.temperature == 0:
            raise OptionError("A corrector needs corrector_steps and a temperature above 0.")
        if self.max_gradient is not None:
            raise OptionError("max_gradient is for the built-in corrector; another one has rules of its own for steep energies.")

    def level_energy(self, energy: Energy, step: int) -> LevelEnergy:
        """Returns the energy that another corrector follows at a step, counted from 1."""
        if "sigma" in energy.conditions:
            return LevelEnergy(energy, self.level(step), self.temperature, sigma=self.level(step))
        factor = self._temperature_factor(step)
        return LevelEnergy(energy, math.sqrt(factor), factor * self.temperature)

    def correct(self, energy: Energy, state: State, noise: Noise) -> tuple[State, Tensor | None]:
        """Takes the steps of another corrector at one level.

        Args:
            energy: The energy.
            state: The state; only its points count.
            noise: The noise of the step, whose number selects the level.

        Returns:
            The state, and the mean acceptance of each chain, with shape $(B,)$; None if the corrector never rejects.
        """
        level, corrector, rates = self.level_energy(energy, noise.step), cast(Sampler, self.corrector), []
        inner = corrector.init(level, state.x / level.unit, noise.child("corrector starts"))
        own = noise.child("corrector")
        for i in range(self.corrector_steps):
            inner, info = corrector.step(level, inner, own.at((noise.step - 1) * self.corrector_steps + i + 1))
            rates.append(info.acceptance)
        state = State(level.unit * inner.x, level.temperature * inner.energy, level.temperature / level.unit * inner.grad)
        return state, None if rates[0] is None else torch.stack(rates).mean(0)


@dataclass(frozen=True)
class _Guided(State):
    """A state with the energies and the gradients of terms without noise levels, as in `LevelGradient`."""

    plain: Tensor
    slope: Tensor

    @property
    def at_level(self) -> LevelGradient:
        return LevelGradient(self.energy, self.grad, self.plain, self.slope)


class LevelEnergy(Energy):
    r"""The energy $E(u y, c) / T$ of points $y$ in units of a level.

    Args:
        energy: $E$.
        unit: $u$.
        temperature: $T$.
        **bound: The conditions $c$.
    """

    def __init__(self, energy: Energy, unit: float, temperature: float, **bound: float) -> None:
        super().__init__()
        self.energy, self.unit, self.temperature, self.bound = energy, unit, temperature, bound
        self.event_shape, self.has_value = energy.event_shape, energy.has_value

    def forward(self, x: Tensor) -> Tensor:
        return self.energy(self.unit * x, **self.bound) / self.temperature

    def __str__(self) -> str:
        return str(self.energy)
