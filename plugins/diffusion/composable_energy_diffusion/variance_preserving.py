"""Variance preserving noise schedules: the mixtures of DDPM and of its continuous limit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from composable_energy.errors import OptionError
from composable_energy.options import check_number, nearest
from composable_energy_diffusion.schedule import Schedule

_FIRST = 1e-3  # the least time of continuous schedules


class _VariancePreserving(Schedule):
    """Schedules with $a^2 + s^2 = 1$."""

    def scale(self, sigma: Tensor) -> Tensor:
        return (1 + sigma.square()).rsqrt()

    def scale_slope(self, sigma: Tensor) -> Tensor:
        return -sigma * self.scale(sigma) ** 3


@dataclass(frozen=True)
class LinearVP(_VariancePreserving):
    r"""The variance preserving process with a linear rate, $\beta(t) = \beta_0 + t (\beta_1 - \beta_0)$, and time from 0 to 1.

    Args:
        beta_min: $\beta_0$.
        beta_max: $\beta_1$.
        time_scale: The model takes `time_scale` times $t$.

    References:
        Score-based generative modeling through stochastic differential equations (Song et al., 2021), https://arxiv.org/abs/2011.13456
    """

    name = "vp"
    beta_min: float = 0.1
    beta_max: float = 20.0
    time_scale: float = 1.0

    def __post_init__(self) -> None:
        check_number("beta_min", self.beta_min, above=0)
        check_number("beta_max", self.beta_max, above=0)
        check_number("time_scale", self.time_scale, above=0)
        if not self.beta_min < self.beta_max:
            raise OptionError(f"beta_min must be below beta_max, got {self.beta_min} and {self.beta_max}.")

    @property
    def sigma_range(self) -> tuple[float, float]:
        totals = (t * self.beta_min + t * t * (self.beta_max - self.beta_min) / 2 for t in (_FIRST, 1.0))
        low, high = (math.sqrt(math.expm1(total)) for total in totals)
        return low, high

    def time(self, sigma: Tensor) -> Tensor:
        return self.time_scale * self._time(sigma)

    def speed(self, sigma: Tensor) -> Tensor:
        beta = self.beta_min + self._time(sigma) * (self.beta_max - self.beta_min)
        return beta * (1 + sigma.square()) / (2 * sigma)

    def _time(self, sigma: Tensor) -> Tensor:
        total, growth = torch.log1p(sigma.square()), self.beta_max - self.beta_min
        return 2 * total / (self.beta_min + (self.beta_min**2 + 2 * growth * total).sqrt())


@dataclass(frozen=True)
class Cosine(_VariancePreserving):
    r"""The variance preserving process with $a(t) \propto \cos\bigl(\tfrac\pi2 \tfrac{t + o}{1 + o}\bigr)$, and time from 0 to 1.

    Args:
        offset: $o$.
        time_scale: The model takes `time_scale` times $t$.

    References:
        Improved denoising diffusion probabilistic models (Nichol & Dhariwal, 2021), https://arxiv.org/abs/2102.09672
    """

    name = "cosine"
    offset: float = 0.008
    time_scale: float = 1.0

    def __post_init__(self) -> None:
        check_number("offset", self.offset, above=0)
        check_number("time_scale", self.time_scale, above=0)

    @property
    def sigma_range(self) -> tuple[float, float]:
        def level(t: float) -> float:
            return math.sqrt((math.cos(self._first) / math.cos(self._angle(t))) ** 2 - 1)

        return level(_FIRST), level(0.9946)  # the last time of common samplers; at 1 the level is infinite

    def time(self, sigma: Tensor) -> Tensor:
        return self.time_scale * (self._angles(sigma) * 2 / math.pi * (1 + self.offset) - self.offset)

    def speed(self, sigma: Tensor) -> Tensor:
        rate = math.pi / 2 / (1 + self.offset)
        slope = -self._angles(sigma).sin() * rate / math.cos(self._first)
        return -slope / (self.scale(sigma) ** 3 * sigma)

    @property
    def _first(self) -> float:
        return self._angle(0.0)

    def _angle(self, t: float) -> float:
        return math.pi / 2 * (t + self.offset) / (1 + self.offset)

    def _angles(self, sigma: Tensor) -> Tensor:
        return torch.acos(math.cos(self._first) * self.scale(sigma))


@dataclass(frozen=True)
class DiscreteVP(_VariancePreserving):
    r"""The variance preserving process of DDPM: $a_k^2 = \prod_{j \le k} (1 - \beta_j)$ at the steps $k = 0, 1, \dots$

    Between two steps $\log \sigma$ is interpolated linearly, and the model takes the fraction.

    Args:
        betas: The numbers $\beta_k$, or `"linear"` (.0001 to .02), `"scaled-linear"` (.00085 to .012, linear in the root) or `"cosine"`,
            with 1,000 steps.

    References:
        Denoising diffusion probabilistic models (Ho et al., 2020), https://arxiv.org/abs/2006.11239
    """

    name = "vp-discrete"
    betas: tuple[float, ...] | str = "linear"

    def __post_init__(self) -> None:
        if isinstance(self.betas, str):
            if self.betas not in _BETAS:
                raise OptionError(f"betas must be numbers or one of {', '.join(_BETAS)}, got {self.betas!r}.{nearest(self.betas, _BETAS)}")
            return
        numbers = torch.as_tensor(self.betas, dtype=torch.float64).flatten()
        if len(numbers) < 2 or not bool(((numbers > 0) & (numbers < 1)).all()):
            raise OptionError(
                "betas must be at least two numbers above 0 and below 1. A schedule whose last one is 1 (no signal at the last step) has "
                "no finite noise level there: leave that step out."
            )
        object.__setattr__(self, "betas", tuple(numbers.tolist()))

    @property
    def sigma_range(self) -> tuple[float, float]:
        return math.exp(self._log_levels[0]), math.exp(self._log_levels[-1])

    def time(self, sigma: Tensor) -> Tensor:
        levels, below = self._find(sigma)
        return below + (sigma.log() - levels[below]) / (levels[below + 1] - levels[below])

    def speed(self, sigma: Tensor) -> Tensor:
        levels, below = self._find(sigma)
        return (levels[below + 1] - levels[below]) * sigma

    def _find(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the logarithms of all levels, and the step below each of the given ones."""
        levels = torch.as_tensor(self._log_levels).to(sigma)
        return levels, (torch.searchsorted(levels, sigma.log().contiguous()) - 1).clamp(0, len(levels) - 2)

    @cached_property
    def _log_levels(self) -> np.ndarray:
        betas = _BETAS[self.betas]() if isinstance(self.betas, str) else np.array(self.betas)
        log_signal = np.log1p(-betas).cumsum()
        return np.log(np.expm1(-log_signal)) / 2


def _cosine_betas() -> np.ndarray:
    signal = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2
    return np.minimum(1 - signal[1:] / signal[:-1], 0.999)


_BETAS = {
    "linear": lambda: np.linspace(1e-4, 0.02, 1000),
    "scaled-linear": lambda: np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2,
    "cosine": _cosine_betas,
}
