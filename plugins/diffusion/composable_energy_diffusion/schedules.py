r"""Noise schedules by name, and those that do not preserve the variance.

References:
    Elucidating the design space of diffusion-based generative models (Karras et al., 2022), https://arxiv.org/abs/2206.00364
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from composable_energy.errors import OptionError
from composable_energy.options import check_flag, check_number, nearest
from composable_energy_diffusion.schedule import Schedule
from composable_energy_diffusion.variance_preserving import Cosine, DiscreteVP, LinearVP

_FIRST = 1e-3  # the least time of the straight path


@dataclass(frozen=True)
class VarianceExploding(Schedule):
    r"""Noise is added and nothing is scaled: $a = 1$, and the time is $\sigma$.

    Args:
        sigma_min: The least level.
        sigma_max: The greatest level.
    """

    name = "ve"
    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        _check_range(self.sigma_min, self.sigma_max)

    @property
    def sigma_range(self) -> tuple[float, float]:
        return self.sigma_min, self.sigma_max

    def scale(self, sigma: Tensor) -> Tensor:
        return torch.ones_like(sigma)

    def scale_slope(self, sigma: Tensor) -> Tensor:
        return torch.zeros_like(sigma)

    def time(self, sigma: Tensor) -> Tensor:
        return sigma

    def speed(self, sigma: Tensor) -> Tensor:
        return torch.ones_like(sigma)


@dataclass(frozen=True)
class EDM(Schedule):
    r"""The schedule of Karras et al. (2022): points of unit variance, $a = 1 / \sqrt{\sigma^2 + d^2}$, and the time $\tfrac14 \log \sigma$.

    These are the inputs of the raw network $F$, whose parametrisation is `edm`. A preconditioned network, which takes $y$ and $\sigma$ and
    returns the clean point, has the schedule `ve` and the parametrisation `x0`.

    Args:
        data_std: $d$, the standard deviation of the data.
        sigma_min: The least level.
        sigma_max: The greatest level.
    """

    name = "edm"
    data_std: float = 0.5
    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        check_number("data_std", self.data_std, above=0)
        _check_range(self.sigma_min, self.sigma_max)

    @property
    def sigma_range(self) -> tuple[float, float]:
        return self.sigma_min, self.sigma_max

    def scale(self, sigma: Tensor) -> Tensor:
        return (sigma.square() + self.data_std**2).rsqrt()

    def scale_slope(self, sigma: Tensor) -> Tensor:
        return -sigma * self.scale(sigma) ** 3

    def time(self, sigma: Tensor) -> Tensor:
        return sigma.log() / 4

    def speed(self, sigma: Tensor) -> Tensor:
        return 4 * sigma


@dataclass(frozen=True)
class RectifiedFlow(Schedule):
    r"""The straight path $x_t = (1 - t)\, x_0 + t\, \epsilon$.

    Args:
        data_last: Whether the model's time runs from noise at 0 to data at 1; its velocity then points to the data.
        time_scale: The model takes `time_scale` times $t$.

    References:
        Flow straight and fast: learning to generate and transfer data with rectified flow (Liu et al., 2023),
        https://arxiv.org/abs/2209.03003
    """

    name = "flow"
    data_last: bool = False
    time_scale: float = 1.0

    def __post_init__(self) -> None:
        check_flag("data_last", self.data_last)
        check_number("time_scale", self.time_scale, above=0)

    @property
    def sigma_range(self) -> tuple[float, float]:
        return _FIRST / (1 - _FIRST), 99.0

    def scale(self, sigma: Tensor) -> Tensor:
        return 1 / (1 + sigma)

    def scale_slope(self, sigma: Tensor) -> Tensor:
        return -1 / (1 + sigma).square()

    def time(self, sigma: Tensor) -> Tensor:
        return self.time_scale * (1 if self.data_last else sigma) / (1 + sigma)

    def speed(self, sigma: Tensor) -> Tensor:
        return (1 + sigma).square() * (-1 if self.data_last else 1)


def _check_range(least: float, greatest: float) -> None:
    check_number("sigma_min", least, above=0)
    check_number("sigma_max", greatest, above=0)
    if not least < greatest:
        raise OptionError(f"sigma_min must be below sigma_max, got {least} and {greatest}.")


SCHEDULES: Mapping[str, type[Schedule]] = {cls.name: cls for cls in (LinearVP, Cosine, DiscreteVP, VarianceExploding, EDM, RectifiedFlow)}


def schedule_of(schedule: Schedule | str | Mapping[str, Any]) -> Schedule:
    """Returns a schedule: itself, that of a name, or that of a mapping with `name` and options.

    Raises:
        OptionError: The name or an option is unknown, or an option is out of range.
    """
    if isinstance(schedule, Schedule):
        return schedule
    options = dict(schedule) if isinstance(schedule, Mapping) else {"name": schedule}
    name = options.pop("name", None)
    if not isinstance(name, str) or name not in SCHEDULES:
        raise OptionError(f"schedule must be one of {', '.join(SCHEDULES)}, got {name!r}.{nearest(str(name), SCHEDULES)}")
    cls = SCHEDULES[name]
    known = [f.name for f in fields(cls)]  # pyright: ignore[reportArgumentType]
    unknown = sorted(options.keys() - set(known))
    if unknown:
        raise OptionError(f"The schedule {name} takes {', '.join(known)}, got {', '.join(unknown)}.")
    return cls(**options)
