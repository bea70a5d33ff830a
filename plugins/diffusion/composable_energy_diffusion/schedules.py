r"""Noise schedules: how a diffusion model mixes data and noise, $x_t = a(t)\, x_0 + s(t)\, \epsilon$.

All are described by the noise level $\sigma = s / a$ of the rescaled point $y = x_t / a = x_0 + \sigma \epsilon$, which is the condition
`sigma` of energies. A schedule says which scale $a$ and which time $t$ belong to a noise level.

References:
    Elucidating the design space of diffusion-based generative models (Karras et al., 2022), https://arxiv.org/abs/2206.00364
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property, partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from composable_energy.errors import OptionError
from composable_energy.options import check_flag, check_number, nearest

_FIRST = 1e-3  # the least time of continuous schedules


class Schedule(ABC):
    r"""Abstract noise schedule, as functions of the noise level $\sigma$ with any shape, by operations of torch.

    Attributes:
        name: The name in `SCHEDULES`.
        time_scale: The model takes `time_scale` times $t$.
    """

    name: ClassVar[str]
    time_scale: float = 1.0

    def __post_init__(self) -> None:
        for option, value in self._options.items():
            (check_flag if option == "data_last" else partial(check_number, above=0))(option, value)

    @property
    def _options(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}  # pyright: ignore[reportArgumentType]

    def _check_order(self, low: str, high: str) -> None:
        if not self._options[low] < self._options[high]:
            raise OptionError(f"{low} must be below {high}, got {self._options[low]} and {self._options[high]}.")

    @property
    @abstractmethod
    def sigma_range(self) -> tuple[float, float]:
        """The least and the greatest noise level that the model knows."""

    @abstractmethod
    def scale(self, sigma: Tensor) -> Tensor:
        """Returns $a$, by which the model's points are scaled."""

    @abstractmethod
    def time(self, sigma: Tensor) -> Tensor:
        """Returns the time that the model takes."""

    def rates(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the derivatives $a'(t)$ and $s'(t)$, with $t$ in the schedule's own unit."""
        with torch.inference_mode(False), torch.enable_grad():
            level = sigma.detach().clone().requires_grad_()
            a, t = self.scale(level) + 0 * level, self.time(level) / self.time_scale
            (slope,), (pace,) = (torch.autograd.grad(values.sum(), level) for values in (a, t))
        return slope / pace, (self.scale(sigma) + sigma * slope) / pace

    def config(self) -> dict[str, Any]:
        """Returns the name and the options, for `schedule_of`."""
        return {"name": self.name, **self._options}


class _VariancePreserving(Schedule):
    """Schedules with $a^2 + s^2 = 1$."""

    def scale(self, sigma: Tensor) -> Tensor:
        return (1 + sigma.square()).rsqrt()


@dataclass(frozen=True)
class LinearVP(_VariancePreserving):
    r"""The variance preserving process with a linear rate, $\beta(t) = \beta_0 + t (\beta_1 - \beta_0)$, and time from 0 to 1.

    References:
        Score-based generative modeling through stochastic differential equations (Song et al., 2021), https://arxiv.org/abs/2011.13456
    """

    name = "vp"
    beta_min: float = 0.1
    beta_max: float = 20.0
    time_scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_order("beta_min", "beta_max")

    @property
    def sigma_range(self) -> tuple[float, float]:
        totals = (t * self.beta_min + t * t * (self.beta_max - self.beta_min) / 2 for t in (_FIRST, 1.0))
        low, high = (math.sqrt(math.expm1(total)) for total in totals)
        return low, high

    def time(self, sigma: Tensor) -> Tensor:
        total, growth = torch.log1p(sigma.square()), self.beta_max - self.beta_min
        return 2 * self.time_scale * total / (self.beta_min + (self.beta_min**2 + 2 * growth * total).sqrt())


@dataclass(frozen=True)
class Cosine(_VariancePreserving):
    r"""The variance preserving process with $a(t) \propto \cos\bigl(\tfrac\pi2 \tfrac{t + o}{1 + o}\bigr)$, offset $o$ and $t$ from 0 to 1.

    References:
        Improved denoising diffusion probabilistic models (Nichol & Dhariwal, 2021), https://arxiv.org/abs/2102.09672
    """

    name = "cosine"
    offset: float = 0.008
    time_scale: float = 1.0

    @property
    def sigma_range(self) -> tuple[float, float]:
        def level(t: float) -> float:
            return math.sqrt((math.cos(self._angle(0.0)) / math.cos(self._angle(t))) ** 2 - 1)

        return level(_FIRST), level(0.9946)  # the last time of common samplers; at 1 the level is infinite

    def time(self, sigma: Tensor) -> Tensor:
        angle = torch.acos(math.cos(self._angle(0.0)) * self.scale(sigma))
        return self.time_scale * (angle * 2 / math.pi * (1 + self.offset) - self.offset)

    def _angle(self, t: float) -> float:
        return math.pi / 2 * (t + self.offset) / (1 + self.offset)


@dataclass(frozen=True)
class DiscreteVP(_VariancePreserving):
    r"""The variance preserving process of DDPM: $a_k^2 = \prod_{j \le k} (1 - \beta_j)$ at the steps $k = 0, 1, \dots$

    Between two steps $\log \sigma$ is interpolated linearly, and the model takes the fraction.

    Args:
        betas: $\beta_k$, or 1,000 by `"linear"` (.0001 to .02), `"scaled-linear"` (.00085 to .012, linear in the root) or `"cosine"`.

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
            way = "A schedule whose last one is 1 (no signal at the last step) has no finite noise level there: leave that step out."
            raise OptionError(f"betas must be at least two numbers above 0 and below 1. {way}")
        object.__setattr__(self, "betas", tuple(numbers.tolist()))

    @property
    def sigma_range(self) -> tuple[float, float]:
        return math.exp(self._log_levels[0]), math.exp(self._log_levels[-1])

    def time(self, sigma: Tensor) -> Tensor:
        levels = torch.as_tensor(self._log_levels).to(sigma)
        below = (torch.searchsorted(levels, sigma.log().contiguous()) - 1).clamp(0, len(levels) - 2)
        return below + (sigma.log() - levels[below]) / (levels[below + 1] - levels[below])

    @cached_property
    def _log_levels(self) -> np.ndarray:
        betas = _BETAS[self.betas]() if isinstance(self.betas, str) else np.array(self.betas)
        return np.log(np.expm1(-np.log1p(-betas).cumsum())) / 2


def _cosine_betas() -> np.ndarray:
    signal = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2
    return np.minimum(1 - signal[1:] / signal[:-1], 0.999)


_BETAS = {
    "linear": lambda: np.linspace(1e-4, 0.02, 1000),
    "scaled-linear": lambda: np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2,
    "cosine": _cosine_betas,
}


class _OwnRange(Schedule):
    """Schedules whose range is an option."""

    sigma_min: float
    sigma_max: float

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_order("sigma_min", "sigma_max")

    @property
    def sigma_range(self) -> tuple[float, float]:
        return self.sigma_min, self.sigma_max


@dataclass(frozen=True)
class VarianceExploding(_OwnRange):
    r"""Noise is added and nothing is scaled: $a = 1$, and the time is $\sigma$, from a least to a greatest level."""

    name = "ve"
    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def scale(self, sigma: Tensor) -> Tensor:
        return torch.ones_like(sigma)

    def time(self, sigma: Tensor) -> Tensor:
        return sigma


@dataclass(frozen=True)
class EDM(_OwnRange):
    r"""The schedule of Karras et al. (2022): points of unit variance, $a = 1 / \sqrt{\sigma^2 + d^2}$, and the time $\tfrac14 \log \sigma$.

    The data have the standard deviation $d$. These are the inputs of the raw network $F$, whose parametrisation is `edm`. A preconditioned
    network, which takes $y$ and $\sigma$ and returns the clean point, has the schedule `ve` and the parametrisation `x0`.
    """

    name = "edm"
    data_std: float = 0.5
    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def scale(self, sigma: Tensor) -> Tensor:
        return (sigma.square() + self.data_std**2).rsqrt()

    def time(self, sigma: Tensor) -> Tensor:
        return sigma.log() / 4


@dataclass(frozen=True)
class RectifiedFlow(Schedule):
    r"""The straight path $x_t = (1 - t)\, x_0 + t\, \epsilon$.

    Args:
        data_last: Whether the model's time runs from noise at 0 to data at 1; its velocity then points to the data.

    References:
        Flow straight and fast: learning to generate and transfer data with rectified flow (Liu et al., 2023),
        https://arxiv.org/abs/2209.03003
    """

    name = "flow"
    data_last: bool = False
    time_scale: float = 1.0

    @property
    def sigma_range(self) -> tuple[float, float]:
        return _FIRST / (1 - _FIRST), 99.0

    def scale(self, sigma: Tensor) -> Tensor:
        return 1 / (1 + sigma)

    def time(self, sigma: Tensor) -> Tensor:
        return self.time_scale * (1 if self.data_last else sigma) / (1 + sigma)


SCHEDULES: Mapping[str, type[Schedule]] = {cls.name: cls for cls in (LinearVP, Cosine, DiscreteVP, VarianceExploding, EDM, RectifiedFlow)}


def schedule_of(schedule: Schedule | str | Mapping[str, Any]) -> Schedule:
    """Returns a schedule: itself, that of a name, or that of a mapping with `name` and options."""
    if isinstance(schedule, Schedule):
        return schedule
    options = dict(schedule) if isinstance(schedule, Mapping) else {"name": schedule}
    name = options.pop("name", None)
    if not isinstance(name, str) or name not in SCHEDULES:
        raise OptionError(f"schedule must be one of {', '.join(SCHEDULES)}, got {name!r}.{nearest(str(name), SCHEDULES)}")
    cls = SCHEDULES[name]
    known = [f.name for f in fields(cls)]  # pyright: ignore[reportArgumentType]
    if unknown := sorted(options.keys() - set(known)):
        raise OptionError(f"The schedule {name} takes {', '.join(known)}, got {', '.join(unknown)}.")
    return cls(**options)
