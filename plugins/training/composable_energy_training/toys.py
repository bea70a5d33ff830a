r"""Toy data sets on the plane, with points in about $[-2, 2]^2$: what an energy learns of them can be seen."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Generator, Tensor

from composable_energy.options import check_choice, check_integer

__all__ = ["NAMES", "sample"]


def sample(name: str, n: int, *, seed: int = 0) -> Tensor:
    """Draws points of a toy data set, with shape $(n, 2)$; torch's own random state is neither used nor changed.

    Args:
        name: `"two-moons"`, `"eight-gaussians"`, `"checkerboard"`, `"pinwheel"`, `"swiss-roll"` or `"rings"`.

    Example:
        >>> from composable_energy_training import toys
        >>> toys.sample("two-moons", 100, seed=0).shape
        torch.Size([100, 2])
    """
    check_choice("name", name, NAMES)
    return _SETS[name](check_integer("n", n), torch.Generator().manual_seed(check_integer("seed", seed, least=-(2**63))))


def _uniform(n: int, generator: Generator) -> Tensor:
    return torch.rand(n, generator=generator)


def _noise(n: int, generator: Generator, width: float) -> Tensor:
    return width * torch.randn(n, 2, generator=generator)


def _polar(radius: Tensor | float, angle: Tensor) -> Tensor:
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1)


def _two_moons(n: int, generator: Generator) -> Tensor:
    arc, upper = _polar(1.0, math.pi * _uniform(n, generator)), torch.randint(2, (n, 1), generator=generator) == 1
    return 1.2 * (torch.where(upper, arc, torch.tensor([1.0, 0.5]) - arc) - torch.tensor([0.5, 0.25])) + _noise(n, generator, 0.1)


def _checkerboard(n: int, generator: Generator) -> Tensor:
    across, inside = 4 * _uniform(n, generator) - 2, _uniform(n, generator)
    return torch.stack([across, 2 * torch.randint(2, (n,), generator=generator) + across.floor() % 2 - 2 + inside], 1)


def _pinwheel(n: int, generator: Generator) -> Tensor:
    along, across = (torch.randn(n, 2, generator=generator) * torch.tensor([0.3, 0.1])).T
    turned = 2 * math.pi / 5 * torch.randint(5, (n,), generator=generator) + 0.25 * (1 + along).exp()
    return 1.2 * ((1 + along)[:, None] * _polar(1.0, turned) + across[:, None] * _polar(1.0, turned + math.pi / 2))


def _swiss_roll(n: int, generator: Generator) -> Tensor:
    angle = 1.5 * math.pi * (1 + 2 * _uniform(n, generator))
    return _polar(angle / 7, angle) + _noise(n, generator, 0.06)


def _rings(n: int, generator: Generator) -> Tensor:
    radius = 0.6 * (1 + torch.randint(3, (n,), generator=generator))
    return _polar(radius, 2 * math.pi * _uniform(n, generator)) + _noise(n, generator, 0.06)


_SETS: Mapping[str, Callable[[int, Generator], Tensor]] = {
    "two-moons": _two_moons,
    "eight-gaussians": lambda n, generator: (
        _polar(1.7, math.pi / 4 * torch.randint(8, (n,), generator=generator)) + _noise(n, generator, 0.15)
    ),
    "checkerboard": _checkerboard,
    "pinwheel": _pinwheel,
    "swiss-roll": _swiss_roll,
    "rings": _rings,
}
NAMES = tuple(_SETS)
"""The names of the data sets."""
