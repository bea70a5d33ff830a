"""Annealed Langevin: corrector steps at falling noise levels."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, cast

import torch
from torch import Tensor

from composable_energy import Energy
from composable_energy.arithmetic import unsqueeze_to
from composable_energy.errors import OptionError
from composable_energy.options import check_flag, check_integer, check_number
from composable_energy.registry import get
from composable_energy.sampling import Info, Noise, Sampler, State, Traits, energy_and_gradient, langevin_step
from composable_energy_mcmc.annealing.ais import Weighted, first_points, log_density_ratio, warn_of_last_level
from composable_energy_mcmc.annealing.path import Gaussian, check_gaussian_options, fit_bulk
from composable_energy_mcmc.annealing.schedule import tune_schedule
from composable_energy_mcmc.batch import finite_rows
from composable_energy_mcmc.hamiltonian import HMC
from composable_energy_mcmc.langevin import Langevin
from composable_energy_mcmc.level_gradient import LevelGradient, check_precise_terms, level_gradient
from composable_energy_mcmc.noise_levels import NoiseLevels
from composable_energy_mcmc.tuning import try_step

_DELTA = 0.1  # in units of the square of the noise level
_WIDER, _SETTLING, _LEAPFROGS, _ACCEPTANCE = 1.3, 200, 4, 0.8  # of tempered energies
GUIDED_STEPS = 1
"""Corrector steps at a level, at most, for an expression with terms without noise levels; see decision record 24."""


@dataclass(frozen=True)
class Annealed(NoiseLevels):
    r"""Annealed Langevin: corrector steps at each noise level, and an ancestral step to the next.

    For an energy with the condition `sigma`, trained on points with noise of level $\sigma$ added. The levels fall geometrically, or by
    `rho`, from `sigma_max` to `sigma_min`; chains start from $N(0, (\sigma_\text{max}^2 + 1) I)$, which fits data of about unit variance.
    One step of the driver is one level $s$; the next level is $n$:

    $$x \leftarrow x - \delta s^2 \nabla E(x, s) + \sqrt{2 \delta T}\, s\, \xi \quad \text{(corrector, several times)}$$
    $$x \leftarrow x - (s^2 - n^2) \nabla E(x, s) + n \sqrt{(s^2 - n^2) T / s^2}\, \xi \quad \text{(ancestral)}$$

    and at the last level $x \leftarrow x - s^2 \nabla E(x, s)$, the expected point without its noise. A run costs
    `levels * (corrector_steps + 1)` gradients.

    Terms without noise levels, such as a network of pictures beside faces, are evaluated at the denoised points
    $\hat x = x - s^2 \nabla E_n(x, s)$ of the other terms $E_n$; see `composable_energy_mcmc.level_gradient`. Such an expression takes
    one corrector step at a level at most, and evaluates these terms once a level, after it.

    An energy without `sigma` is tempered instead: with $f = 1 + s^2$, level $s$ has the energy $E / f T + (1 - 1 / f)\, E_0$, the last one
    $E / T$. Chains start from the Gaussian $E_0$, fitted to pilot chains, so that each level has a density also where $E$ has heavy tails.
    The corrector is `hmc`; a score, or an energy with `delta`, takes `corrector_steps + 1` Langevin steps with $\delta$ in units of $x^2$.

    Any other sampler may be the corrector; one that accepts and rejects adds no error at a level, whatever its step size. It moves points
    in units of the level, $y = x / u$ with $u = s$, or $u = \sqrt{f}$ for a tempered energy and 1 at its last level. So its step size
    $h$ is $h u$ in units of $x$, a Langevin step $\lambda$ is $\lambda u^2$, and options tuned at the first level fit all levels. For a
    tempered energy it is tuned at the last level, and $u$ follows the steps that pilots take at each. It is initialised at each level,
    which costs one more gradient.

    Args:
        levels: The number of noise levels, at least 2; None takes 40, and more for a range above that from .05 to 4.
        sigma_max: The highest level; None for the highest that all models in the expression know, at most 200 or what wide data need, else
            that of its recommendation, else 4 or the first higher one at which points are nearly Gaussian.
        sigma_min: The lowest level; None as above, else .05, or a twentieth of the narrowest coordinate.
        corrector_steps: Steps of the corrector at each level; 0 leaves the ancestral ones.
        delta: $\delta$, the step size of the built-in corrector in units of $s^2$; None is .1, and for a tempered energy half the step size
            that `langevin` tunes.
        temperature: $T$.
        corrector: Another sampler, or its name; None is the Langevin step above, and `hmc` for a tempered energy.
        max_gradient: The largest $s \lVert \nabla E(x, s) \rVert$ of a chain, over the root of the number of coordinates; longer gradients
            are scaled down to it. Its usual size is about 1, so 3 affects only points far out where a term is steep. It is for energies
            with the condition `sigma`; None leaves all gradients as they are.
        mean: The mean of the Gaussian from which chains start, a number or a tensor with the shape of a point; None fits it.
        scale: Its standard deviation, a number or a tensor with the shape of a point.
        units: The tuned $u$ of each level of a tempered energy, in units of `scale`; None tunes them with the corrector.
        averaged: Whether each corrector step adds the mean of its noise and of that of the step before, in place of its own (Leimkuhler &
            Matthews). The steps then keep the variances of a Gaussian at any $\delta$ below 2, in place of $1 / (1 - \delta / 2)$ times
            them at most. So $\delta$ can be .5 or so, and chains mix in fewer steps. It is for energies with the condition `sigma`.
        rho: $\rho$ from .5 to below 100, where the levels to the power $1 / \rho$ are equally spaced (Karras et al., 2022); more levels are
            high for a lower one. None spaces them geometrically.

    References:
        Generative modeling by estimating gradients of the data distribution (Song & Ermon, 2019), https://arxiv.org/abs/1907.05600
        Elucidating the design space of diffusion-based generative models (Karras et al., 2022), https://arxiv.org/abs/2206.00364
        Rational construction of stochastic numerical methods for molecular sampling (Leimkuhler & Matthews, 2013),
        https://arxiv.org/abs/1203.5428
    """

    corrector_steps: int = 3
    delta: float | None = None
    temperature: float = 1.0
    corrector: Sampler | str | None = None
    max_gradient: float | None = None
    mean: float | Tensor | None = None
    scale: float | Tensor | None = None
    units: tuple[float, ...] | None = None
    averaged: bool = False
    rho: float | None = None

    stored_texts: ClassVar[tuple[str, ...]] = ("corrector",)
    usual: ClassVar[tuple[int, float, float]] = (40, 0.05, 4.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_gaussian_options(self.mean, self.scale)
        check_integer("corrector_steps", self.corrector_steps, 0)
        check_number("delta", self.delta, above=0, optional=True)
        check_number("temperature", self.temperature, least=0)
        check_number("max_gradient", self.max_gradient, above=0, optional=True)
        check_flag("averaged", self.averaged)
        check_number("rho", self.rho, least=0.5, below=100, optional=True)
        if self.corrector is not None:
            self._check_corrector()
        if isinstance(self.corrector, Sampler) and self.corrector.traits.values:
            object.__setattr__(self, "traits", replace(self.traits, values=True))

    def level(self, step: int) -> float:
        return super().level(step) if self.rho is None else self.power_level(step, self.rho)

    def start(self, like: Tensor, noise: Noise) -> Tensor:
        if self.mean is None or self.scale is None:
            return noise.normal(like).mul_(math.sqrt(self.sigma_range[1] ** 2 + 1))
        return Gaussian.from_options(self.mean, self.scale, like).from_standard(noise.normal(like))

    traits: ClassVar[Traits] = replace(NoiseLevels.traits, start=start)

    def tune(self, energy: Energy, x: Tensor, noise: Noise) -> tuple[Sampler, Tensor]:
        if self.max_gradient is not None and "sigma" not in energy.conditions:
            raise OptionError(f"max_gradient is in units of the noise level, and {energy} does not depend on sigma: leave it out.")
        if self.averaged and "sigma" not in energy.conditions:
            raise OptionError(f"averaged is for noise levels, and {energy} does not depend on sigma: leave it out.")
        if "sigma" not in energy.conditions:
            return (self, x) if self.temperature == 0 else self._tune_tempered(energy, x, noise)
        low, high, found = self.find_start(energy, x, noise.child("levels"))
        tuned = replace(self, sigma_min=low, sigma_max=high, levels=self.count_between(low, high))
        if self.mean is None and not found.is_standard:
            tuned = replace(tuned, mean=found.mean, scale=found.scale)
        if not isinstance(self.corrector, Sampler):
            return tuned, x
        level = tuned.level_energy(energy, 1)
        start = tuned.start(x, noise.child("start")) / level.unit
        corrector, points = self.corrector.tune(level, start, noise.child("corrector"))
        return replace(tuned, corrector=corrector), x if points is start else points * level.unit

    def _tune_tempered(self, energy: Energy, x: Tensor, noise: Noise) -> tuple[Sampler, Tensor]:
        """Fits the Gaussian at the first level to pilot chains, and tunes the corrector to the last level and its steps to each level."""
        if self.units is not None or (isinstance(self.mean, Tensor) and self.delta is not None):
            return self, x  # tuned before
        if not finite_rows(State(x, *energy_and_gradient(energy, x))).any():
            return self, x  # the driver reports it
        given = None if self.mean is None or self.scale is None else Gaussian.from_options(self.mean, self.scale, x)
        ratios, delta = (1.0,) * self.total_steps, self.delta
        if delta is not None:  # the draws do not depend on values, nor do those of the pilots
            base, points = self._settle(energy, x, noise), x
        elif energy.has_value:
            schedule, points = tune_schedule(energy, x, noise.child("path"), self.mean, self.scale, _LEAPFROGS, _ACCEPTANCE)
            base, steps = schedule.base, [schedule.step_size_at(1 / self._temperature_factor(i + 1)) for i in range(self.total_steps)]
            ratios = tuple(step / steps[-1] for step in steps)
        else:
            langevin, points = Langevin(temperature=self.temperature).tune(energy, x, noise)
            base, delta = fit_bulk(points, _WIDER), (cast(Langevin, langevin).step_size or 0.0) / 2
        base = given or Gaussian(base.mean, base.scale * math.sqrt(self.temperature))
        tuned = replace(self, mean=base.mean, scale=base.scale)
        if self.corrector is None and delta is not None:
            return replace(tuned, delta=delta), points
        tuned = replace(tuned, corrector=self.corrector or HMC(leapfrogs=_LEAPFROGS), units=ratios)
        level = tuned.level_energy(energy, self.total_steps)
        corrector = cast(Sampler, tuned.corrector)
        found, arrived = corrector.tune(level, points / level.unit, noise.child("corrector"))
        if found is corrector:  # its options are the user's, in units of points
            return replace(tuned, units=None), points
        return replace(tuned, corrector=found), arrived * level.unit

    def _settle(self, energy: Energy, x: Tensor, noise: Noise) -> Gaussian:
        """Returns a Gaussian somewhat wider than where Langevin steps of the given size lead."""
        langevin = Langevin(2 * cast(float, self.delta), self.temperature)
        state = langevin.init(energy, x / self._width, noise)
        for step in range(1, _SETTLING + 1):
            state, _ = try_step(langevin, energy, state, noise.at(step))
        return fit_bulk(state.x, _WIDER / math.sqrt(self.temperature))

    def init(self, energy: Energy, x: Tensor, noise: Noise) -> State:
        base = self._base
        if "sigma" not in energy.conditions and base is not None and energy.has_value and self.delta is None:
            return first_points(energy, x, noise.child("first"), base.to(x), 1 / self._temperature_factor(1), self.temperature)
        return self._evaluate(energy, x, 1)

    def step(self, energy: Energy, state: State, noise: Noise) -> tuple[State, Info]:
        if "sigma" not in energy.conditions:
            return self._step_tempered(energy, state, noise)
        step, s, rates = noise.step, self.level(noise.step), None
        if isinstance(self.corrector, Sampler):
            state, rates = self.correct(energy, state, noise)
        delta = _DELTA if self.delta is None else self.delta
        count = 0 if self.corrector else min(self.corrector_steps, GUIDED_STEPS if isinstance(state, _Guided) else self.corrector_steps)
        for i in range(count):
            state = self._evaluate(energy, self._corrected(state, delta, noise, i, count), step)
        if step >= self.total_steps:
            x = torch.add(state.x, state.grad, alpha=-(s**2))
            x = check_precise_terms(energy, x, s, self._width, "annealed")
        else:
            n = self.level(step + 1)
            x = self._langevin_move(state, s**2 - n**2, n * math.sqrt(s**2 - n**2) / s, noise, self.corrector_steps)
        return self._evaluate(energy, x, min(step + 1, self.total_steps), state if count else None), Info(rates, {"sigma": s})

    def _evaluate(self, energy: Energy, x: Tensor, step: int, held: State | None = None) -> State:
        """Returns the state at points; terms without noise levels keep the slope that they have in another state."""
        if "sigma" not in energy.conditions:
            return State(x, *energy_and_gradient(energy, x))
        level = self.level(step)
        found = level_gradient(energy, x, level, held.at_level if isinstance(held, _Guided) else None)
        gradients = found.grad
        if self.max_gradient is not None:
            longest = self.max_gradient * math.sqrt(max(1, x[0].numel())) / level
            gradients = gradients * (longest / unsqueeze_to(gradients.reshape(len(x), -1).norm(dim=1), x)).clamp(max=1)
        if found.plain is None or found.slope is None:
            return State(x, found.energy, gradients)
        return _Guided(x, found.energy, gradients, found.plain, found.slope)

    def _langevin_move(self, state: State, drift: float, scale: float, noise: Noise, stream: int) -> Tensor:
        return langevin_step(state.x, state.grad, noise=noise, drift=drift, scale=scale * math.sqrt(self.temperature), stream=stream)

    def _corrected(self, state: State, delta: float, noise: Noise, i: int, count: int) -> Tensor:
        """Returns the points after one of the corrector steps at a level."""
        s = self.level(noise.step)
        if not self.averaged:
            return self._langevin_move(state, delta * s**2, math.sqrt(2 * delta) * s, noise, i)
        scale = math.sqrt(delta / 2) * s
        before = noise if i else noise.at(noise.step - 1) if noise.step > 1 else noise.child("before")
        x = self._langevin_move(state, delta * s**2, scale, noise, i)
        return before.add_normal_(x, scale * math.sqrt(self.temperature), (i - 1) % count)

    def _step_tempered(self, energy: Energy, state: State, noise: Noise) -> tuple[State, Info]:
        step, factor, base, rates, log_weight = noise.step, self._temperature_factor(noise.step), self._base, None, None
        if isinstance(state, Weighted) and base is not None:
            rise = 0.0 if step == 1 else 1 / factor - 1 / self._temperature_factor(step - 1)
            log_weight = state.log_weight + rise * log_density_ratio(state, base.to(state.x), self.temperature)
        if isinstance(self.corrector, Sampler):
            state, rates = self.correct(energy, state, noise)
        delta = _DELTA if self.delta is None else self.delta
        for i in range(0 if self.corrector else self.corrector_steps + 1):
            if base is None:
                x = self._langevin_move(state, delta, math.sqrt(2 * delta * factor), noise, i)
            else:
                pull = torch.add(state.grad / factor, base.to(state.x).gradient(state.x), alpha=(1 - 1 / factor) * self.temperature)
                x = self._langevin_move(replace(state, grad=pull), delta, math.sqrt(2 * delta), noise, i)
            state = State(x, *energy_and_gradient(energy, x))
        if step >= self.total_steps:
            warn_of_last_level(energy, state, rates, log_weight)
        state = state if log_weight is None else Weighted(state.x, state.energy, state.grad, log_weight)
        return state, Info(rates, {"temperature": factor * self.temperature})

    def _temperature_factor(self, step: int) -> float:
        return 1.0 if step >= self.total_steps else 1 + self.level(step) ** 2

    @property
    def _base(self) -> Gaussian | None:
        return Gaussian(self.mean, self.scale) if isinstance(self.mean, Tensor) and isinstance(self.scale, Tensor) else None

    @property
    def _width(self) -> float:
        """The largest size of points at the start."""
        if self.mean is None or self.scale is None:
            return math.hypot(self.sigma_range[1], 1)
        return (torch.as_tensor(self.mean).abs() + torch.as_tensor(self.scale)).max().item()

    # Another corrector ----------------------------------------------------------------------------------------------------------------

    def _check_corrector(self) -> None:
        if isinstance(self.corrector, str):
            try:
                object.__setattr__(self, "corrector", get("sampler", self.corrector)())
            except TypeError as error:
                raise OptionError(f"The corrector {self.corrector!r} needs options: give an instance that has them.") from error
        corrector = self.corrector
        if not isinstance(corrector, Sampler):
            raise OptionError(f"corrector must be a sampler or the name of one, got {corrector!r}.")
        if corrector.total_steps is not None or corrector.traits.couple is not None:
            raise OptionError(f"{corrector} has a last step or couples chains; a corrector must be able to stop after any step.")
        if getattr(corrector, "clamp", None) is not None:
            raise OptionError("A corrector moves points in units of the level, so that `clamp` would be another box at each: leave it out.")
        if self.corrector_steps == 0 or self.temperature == 0:
            raise OptionError("A corrector needs corrector_steps and a temperature above 0.")
        if self.max_gradient is not None:
            raise OptionError("max_gradient is for the built-in corrector; another one has rules of its own for steep energies.")
        if self.averaged:
            raise OptionError("averaged is for the built-in corrector; another one draws noise by rules of its own: leave it out.")

    def level_energy(self, energy: Energy, step: int) -> LevelEnergy:
        """Returns the energy that another corrector follows at a step, counted from 1."""
        if "sigma" in energy.conditions:
            return LevelEnergy(energy, self.level(step), self.temperature, sigma=self.level(step))
        factor = self._temperature_factor(step)
        base = self._base
        unit = math.sqrt(factor) if self.units is None or base is None else self.units[min(step, len(self.units)) - 1] * base.scale
        return LevelEnergy(energy, unit, factor * self.temperature, base, 1 - 1 / factor)

    def correct(self, energy: Energy, state: State, noise: Noise) -> tuple[State, Tensor | None]:
        """Takes the steps of another corrector at a level; returns the state, and the mean acceptance of each chain, if it rejects."""
        level, corrector, rates = self.level_energy(energy, noise.step), cast(Sampler, self.corrector), []
        inner = corrector.init(level, state.x / level.unit, noise.child("corrector starts"))
        own = noise.child("corrector")
        for i in range(self.corrector_steps):
            inner, info = corrector.step(level, inner, own.at((noise.step - 1) * self.corrector_steps + i + 1))
            rates.append(info.acceptance)
        return level.to_points(inner), None if rates[0] is None else torch.stack(rates).mean(0)


@dataclass(frozen=True)
class _Guided(State):
    """A state with the energies and the gradients of terms without noise levels, as in `LevelGradient`."""

    plain: Tensor
    slope: Tensor

    @property
    def at_level(self) -> LevelGradient:
        return LevelGradient(self.energy, self.grad, self.plain, self.slope)


class LevelEnergy(Energy):
    r"""The energy $E(u y, c) / T + r E_0(u y)$ of points $y$ in units $u$ of a level, with a Gaussian $E_0$ as its base."""

    def __init__(
        self, energy: Energy, unit: float | Tensor, temperature: float, base: Gaussian | None = None, rest: float = 0.0, **bound: float
    ) -> None:
        super().__init__()
        self.energy, self.unit, self.temperature, self.base, self.rest, self.bound = energy, unit, temperature, base, rest, bound
        self.event_shape, self.has_value = energy.event_shape, energy.has_value

    def forward(self, x: Tensor) -> Tensor:
        x = self.unit * x
        energies = self.energy(x, **self.bound) / self.temperature
        return energies if self.base is None or not self.rest else energies + self.rest * self.base.to(x).energy(x)

    def to_points(self, state: State) -> State:
        """Returns a state of this energy as one of $E$."""
        x, energies, grad = self.unit * state.x, state.energy, state.grad / self.unit
        if self.base is not None and self.rest:
            base = self.base.to(x)
            energies, grad = energies - self.rest * base.energy(x), grad - self.rest * base.gradient(x)
        return State(x, self.temperature * energies, self.temperature * grad)

    def __str__(self) -> str:
        return str(self.energy)
