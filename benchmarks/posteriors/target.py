"""What a target of the suite knows about itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Points = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ClosedForm:
    """Moments that are known without sampling, in float64.

    Args:
        mean: The means of the statistics, with shape $(k,)$.
        sd: Their standard deviations, with shape $(k,)$.
        center: The means of the coordinates, with shape $(d,)$.
        scale: Their standard deviations, with shape $(d,)$.
        source: Where the moments come from, in words.
    """

    mean: Tensor
    sd: Tensor
    center: Tensor
    scale: Tensor
    source: str


@dataclass(frozen=True)
class Target:
    r"""A density on $\mathbb R^d$ and the quantities that are compared.

    Args:
        name: Its name on the command line and of its reference.
        title: Its name in tables.
        dimension: $d$.
        log_density: The log density up to a constant: points of shape $(B, d)$ to shape $(B,)$, in the dtype of the points.
        names: The names of the $k$ statistics.
        statistics: The statistics, constrained where that is natural: $(B, d)$ to $(B, k)$.
        solved: Whether NUTS with its own defaults solves it.
        closed_form: Returns the moments, where they are known without sampling.
        reference: The name of the target whose draws `from_reference` maps to draws of this one; the target itself if empty.
        from_reference: The map, $(B, d)$ to $(B, d)$.
        origin: The start that stands for zeros, where the log density is not defined at 0.
    """

    name: str
    title: str
    dimension: int
    log_density: Points
    names: tuple[str, ...]
    statistics: Points
    solved: bool = True
    closed_form: Callable[[], ClosedForm] | None = None
    reference: str = ""
    from_reference: Points | None = None
    origin: tuple[float, ...] = ()

    def energy(self, x: Tensor) -> Tensor:
        """Returns minus the log density, with shape $(B,)$."""
        return -self.log_density(x)


def numbered(name: str, count: int) -> tuple[str, ...]:
    """Returns `name[0]`, `name[1]`, ..."""
    return tuple(f"{name}[{i}]" for i in range(count))


def log_normal(x: Tensor, mean: Tensor | float = 0.0, sd: Tensor | float = 1.0) -> Tensor:
    """Returns the log density of a normal, without the constant $-\\log\\sqrt{2\\pi}$."""
    return -((x - mean) / sd).square() / 2 - torch.as_tensor(sd).to(x).log()
