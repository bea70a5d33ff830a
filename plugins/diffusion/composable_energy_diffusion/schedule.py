r"""The interface of noise schedules: how a diffusion model mixes data and noise, $x_t = a(t)\, x_0 + s(t)\, \epsilon$.

All are described by the noise level $\sigma = s / a$ of the rescaled point $y = x_t / a = x_0 + \sigma \epsilon$, which is the condition
`sigma` of energies. A schedule says which scale $a$ and which time $t$ belong to a noise level.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import fields
from typing import Any, ClassVar

from torch import Tensor


class Schedule(ABC):
    r"""Abstract noise schedule, as functions of the noise level $\sigma$ with any shape.

    Attributes:
        name: The name in `SCHEDULES`.
    """

    name: ClassVar[str]

    @property
    @abstractmethod
    def sigma_range(self) -> tuple[float, float]:
        """The least and the greatest noise level that the model knows."""

    @abstractmethod
    def scale(self, sigma: Tensor) -> Tensor:
        """Returns $a$, by which the model's points are scaled."""

    @abstractmethod
    def scale_slope(self, sigma: Tensor) -> Tensor:
        r"""Returns $da / d\sigma$."""

    @abstractmethod
    def time(self, sigma: Tensor) -> Tensor:
        """Returns the time that the model takes."""

    @abstractmethod
    def speed(self, sigma: Tensor) -> Tensor:
        r"""Returns $d\sigma / dt$, with $t$ in the schedule's own unit."""

    def rates(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the derivatives $a'(t)$ and $s'(t)$."""
        slope, speed = self.scale_slope(sigma), self.speed(sigma)
        return slope * speed, (self.scale(sigma) + sigma * slope) * speed

    def config(self) -> dict[str, Any]:
        """Returns the name and the options, for `schedule_of`."""
        return {"name": self.name, **{f.name: getattr(self, f.name) for f in fields(self)}}  # pyright: ignore[reportArgumentType]
