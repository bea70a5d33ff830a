"""What a target of the suite knows about itself."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Points = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ClosedForm:
    """Moments that are known without sampling, in float64."""

    mean: Tensor  # means of the statistics, with shape $(k,)$
    sd: Tensor  # their standard deviations, with shape $(k,)$
    center: Tensor  # means of the coordinates, with shape $(d,)$
    scale: Tensor  # their standard deviations, with shape $(d,)$
    source: str  # where the moments come from, in words


@dataclass(frozen=True)
class Target:
    r"""A density on $\mathbb R^d$ and the quantities that are compared."""

    name: str  # its name on the command line and of its reference
    title: str  # its name in tables
    dimension: int  # $d$
    log_density: Points  # log density up to a constant: points of shape $(B, d)$ to shape $(B,)$, in the dtype of the points
    names: tuple[str, ...]  # names of the $k$ statistics
    statistics: Points  # statistics, constrained where that is natural: $(B, d)$ to $(B, k)$
    closed_form: Callable[[], ClosedForm] | None = None  # returns the moments, where they are known without sampling
    reference: str = ""  # name of the target whose draws `from_reference` maps to draws of this one; the target itself if empty
    from_reference: Points | None = None  # map, $(B, d)$ to $(B, d)$
    origin: tuple[float, ...] = ()  # start that stands for zeros, where the log density is not defined at 0

    def energy(self, x: Tensor) -> Tensor:
        """Returns minus the log density, with shape $(B,)$."""
        return -self.log_density(x)


def numbered(name: str, count: int) -> tuple[str, ...]:
    """Returns `name[0]`, `name[1]`, ..."""
    return tuple(f"{name}[{i}]" for i in range(count))


def log_normal(x: Tensor, mean: Tensor | float = 0.0, sd: Tensor | float = 1.0) -> Tensor:
    """Returns the log density of a normal, without the constant $-\\log\\sqrt{2\\pi}$."""
    return -((x - mean) / sd).square() / 2 - torch.as_tensor(sd).to(x).log()
