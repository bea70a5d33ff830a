"""The family `plane`: energies of points $(x_1, x_2)$ to draw. Four members are densities, the others events over a wide Gaussian."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

import composable_energy as ce
from composable_energy.errors import PluginNotFound

_SPREAD = 1.4


class Plane(ce.EnergyFamily):
    """Shapes and regions of the plane, in closed form.

    Example:
        >>> import composable_energy as ce
        >>> str(ce.load("plane/ring") & ~ce.load("plane/right"))
        'ring & ~right'
    """

    def __init__(self) -> None:
        self._base = ce.as_energy(lambda x: x.square().sum(1) / (2 * _SPREAD**2), event_shape=(2,), name="plane")

    def members(self) -> tuple[str, ...]:
        return (*_SHAPES, *_REGIONS)

    def load(self, member: str | None) -> ce.Energy:
        if member is None:
            return self._base
        if member in _SHAPES:
            return ce.as_energy(_SHAPES[member], event_shape=(2,), name=member)
        if member in _REGIONS:
            return ce.ClassifierEnergy(_REGIONS[member], 1, self._base, name=member)
        raise PluginNotFound(f"The plane has no {member!r}, only {', '.join(self.members())}.")


def _bar(x: Tensor) -> Tensor:
    along, across = (x[:, 0] + x[:, 1]) / math.sqrt(2), (x[:, 0] - x[:, 1]) / math.sqrt(2)
    return along.square() / (2 * 1.6**2) + across.square() / (2 * 0.5**2)


def _moons(x: Tensor) -> Tensor:
    """Two half circles that interlock."""
    return -torch.logaddexp(-_arc(x - x.new_tensor([-0.8, -0.4]), 1.0), -_arc(x - x.new_tensor([0.8, 0.4]), -1.0))


def _arc(x: Tensor, side: float) -> Tensor:
    return 12 * ((x.square().sum(1) + 1e-6).sqrt() - 1.6).square() + 6 * torch.relu(-side * x[:, 1]).square()


def _spots(x: Tensor) -> Tensor:
    """Nine small Gaussians on a lattice."""
    return -torch.logsumexp(-12 * (x[:, None] - torch.cartesian_prod(*2 * [x.new_tensor([-2.0, 0.0, 2.0])])).square().sum(2), 1)


_SHAPES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "ring": lambda x: 8 * ((x.square().sum(1) + 1e-6).sqrt() - 1.8).square(),
    "bar": _bar,
    "moons": _moons,
    "spots": _spots,
}
_REGIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "right": lambda x: 5 * x[:, :1],
    "top": lambda x: 5 * x[:, 1:],
    "near": lambda x: 7 * (1.3 - (x.square().sum(1, keepdim=True) + 1e-6).sqrt()),
    "stripes": lambda x: 4 * torch.sin(3 * (x[:, :1] + x[:, 1:])),
}
