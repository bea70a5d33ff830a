"""What samplers that follow falling noise levels share: the levels, the start, and what they check of an energy."""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from composable_energy import Energy
from composable_energy.diagnostics import SamplingWarning
from composable_energy.errors import ExpressionError, OptionError
from composable_energy.options import check_integer, check_number
from composable_energy.sampling import (
    Noise,
    Sampler,
    State,
    check_precise_terms,
    emit_warnings,
    has_rows,
    level_gradient,
    warn_of_weak_evidence,
)

__all__ = ["LevelSampler"]

_SIGMA_MIN, _SIGMA_MAX = 0.01, 20.0
_HIGHEST = 200.0  # some schedules end at a level of thousands, where float32 has no digits left for the data
_TOLERANCE = 0.2
_COORDINATES = 1024


@dataclass(frozen=True)
class LevelSampler(Sampler, ABC):
    r"""Abstract sampler along noise levels $\sigma_1 > \dots > \sigma_N$, for energies with the condition `sigma`.

    The levels are $\sigma_i = \bigl(\sigma_\text{max}^{1/\rho} + \tfrac{i - 1}{N - 1} (\sigma_\text{min}^{1/\rho} -
    \sigma_\text{max}^{1/\rho})\bigr)^\rho$ (Karras et al., 2022). One step of the driver is one level, and the last one ends without noise.
    Chains start from $N(m, (\sigma_\text{max}^2 + 1) I)$, which fits data with the mean $m$ and about unit variance.

    Args:
        levels: $N$, at least 2.
        sigma_max: The highest level; None for the highest that all diffusion models in the expression know, at most 200, else that of
            its recommendation, else 20.
        sigma_min: The lowest level; None as above, else .01.
        rho: $\rho$ from .5 to below 100; more levels are low for a higher one.
        mean: $m$, a number or a tensor with the shape of one point; None for the denoised point at the highest level.
    """

    levels: int = 40
    sigma_max: float | None = None
    sigma_min: float | None = None
    rho: float = 7.0
    mean: Tensor | float | None = None

    binds: ClassVar[frozenset[str]] = frozenset({"sigma"})
    needs_values: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_integer("levels", self.levels, 2)
        check_number("rho", self.rho, least=0.5, below=100)
        for name in ("sigma_min", "sigma_max"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), above=0)
        if self.mean is not None and not isinstance(self.mean, Tensor):
            check_number("mean", self.mean)
        low, high = self.sigma_range
        if not low < high:
            raise OptionError(f"sigma_min must be below sigma_max, got {low:g} and {high:g}.")

    @property
    def total_steps(self) -> int:
        return self.levels

    @property
    def sigma_range(self) -> tuple[float, float]:
        """The lowest and the highest level."""
        low = _SIGMA_MIN if self.sigma_min is None else self.sigma_min
        return low, _SIGMA_MAX if self.sigma_max is None else self.sigma_max

    def level(self, step: int) -> float:
        """Returns the noise level at a step, counted from 1."""
        low, high = (end ** (1 / self.rho) for end in self.sigma_range)
        return (high + (step - 1) / (self.levels - 1) * (low - high)) ** self.rho

    def start(self, like: Tensor, noise: Noise) -> Tensor:
        x = noise.normal(like).mul_(math.sqrt(self.sigma_range[1] ** 2 + 1))
        return x if self.mean is None else x + torch.as_tensor(self.mean).to(x)

    def final_conditions(self, energy: Energy) -> Mapping[str, Any]:
        return {"sigma": self._with_range(energy).sigma_range[0]}

    def middle_conditions(self, energy: Energy) -> Mapping[str, Any]:
        return {"sigma": math.sqrt(math.prod(self._with_range(energy).sigma_range))}

    def tune(self, energy: Energy, x: Tensor, noise: Noise) -> tuple[LevelSampler, Tensor]:
        self._check(energy)
        warn_of_weak_evidence(energy, type(self).__name__.lower())
        tuned = self._with_range(energy)
        mean = tuned._mean_of_data(energy, tuned.start(x, noise))
        return replace(tuned, mean=mean) if self.mean is None else tuned, x

    def _with_range(self, energy: Energy) -> LevelSampler:
        """Returns the sampler with the levels that the models of an expression know."""
        if self.sigma_min is not None and self.sigma_max is not None:
            return self
        low, high = _known_range(energy)
        return replace(self, sigma_min=self.sigma_min or low, sigma_max=self.sigma_max or high)

    def _mean_of_data(self, energy: Energy, x: Tensor) -> Tensor:
        """Returns the mean of the denoised points at the highest level; warns if the gradient there is not that of a wide Gaussian."""
        if not has_rows(energy):
            x = x[: max(1, _COORDINATES // max(1, x[0].numel()))]  # a batch of many pictures may be large
        top = self.level(1)
        gradient = level_gradient(energy, x, top).grad
        slope = ((x * gradient).sum() / x.square().sum()).item() * (top**2 + 1)
        if abs(slope - 1) < _TOLERANCE:
            return torch.add(x, gradient, alpha=-(top**2)).mean(0)
        seen = f"At the highest noise level, {top:g}, the gradient of {energy} is {slope:.2g} times that of the Gaussian of the start."
        advice = (
            "So the draws do not follow its density. If its terms count a base more than once, express concepts relative to one base: "
            "`A.relative_to(base) & B.relative_to(base)`. If the data are wide, raise sigma_max, or scale them."
        )
        emit_warnings([SamplingWarning("start", seen, advice)])
        return torch.zeros_like(x[0])

    def init(self, energy: Energy, x: Tensor, noise: Noise) -> State:
        self._check(energy)
        return self.evaluate(energy, x, 1)

    def evaluate(self, energy: Energy, x: Tensor, step: int) -> State:
        """Returns the state at points at the level of a step."""
        return State(x, *level_gradient(energy, x, self.level(min(step, self.levels)))[:2])

    def finish(self, energy: Energy, x: Tensor) -> State:
        """Returns the state at the draws, and warns if a term is more precise than the last level."""
        scale = math.hypot(self.sigma_range[1], 1)
        x = check_precise_terms(energy, x, self.level(self.levels), scale, type(self).__name__.lower())
        return self.evaluate(energy, x, self.levels)

    def _check(self, energy: Energy) -> None:
        if "sigma" not in energy.conditions:
            raise ExpressionError(
                f"The sampler {type(self).__name__.lower()} follows noise levels, and {energy} does not depend on sigma: use another one, "
                "such as `annealed`, `langevin` or `chees`."
            )


def _known_range(energy: Energy) -> tuple[float, float]:
    """Returns the noise levels that all diffusion models in an expression know, else those of a recommendation."""
    known = [found for part in energy.modules() if (found := getattr(part, "sigma_range", None)) is not None]
    if not known:
        options: dict[str, Any] = {}
        for part in _energies(energy):
            options = {**(part.recommended.options if part.recommended else {}), **options}
        return float(options.get("sigma_min", _SIGMA_MIN)), float(options.get("sigma_max", _SIGMA_MAX))
    low, high = max(low for low, _ in known), min(high for _, high in known)
    if not low < high:
        raise OptionError(f"The diffusion models of {energy} have no noise level in common: their ranges are {known}.")
    return low, min(high, _HIGHEST)


def _energies(energy: Energy) -> Iterator[Energy]:
    return (part for part in energy.modules() if isinstance(part, Energy))
