r"""The inner descent: $x_n = x_{n-1} - \nabla_x \sum_k E(x_{n-1}, z_k)$, cut to [0, 1], from a start that knows no picture."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import torch
from torch import Tensor

from composable_energy_comet.conv import ConvEnergy

__all__ = ["SPREAD", "descended", "descents", "stepped"]

SPREAD = 0.1
"""The deviation of the noise on the image to start at."""


def descents(energy: ConvEnergy, z: Tensor, x: Tensor, iterations: int) -> Iterator[Tensor]:
    """Yields the pictures after 0, 1, ... steps, without graphs.

    Args:
        energy: The energy.
        z: Latents, with shape $(B, K, D)$.
        x: Where to start, with shape $(B, C, S, S)$.
        iterations: Steps.
    """
    z, x = z.detach(), x.detach()
    yield x
    for _ in range(iterations):
        x = stepped(energy, z, x).detach().clamp(0, 1)
        yield x


def descended(energy: ConvEnergy, z: Tensor, x: Tensor, iterations: int) -> Tensor:
    """Returns the pictures after the last step, without a graph; arguments as those of `descents`."""
    return deque(descents(energy, z, x, iterations), maxlen=1).pop()


def stepped(energy: ConvEnergy, z: Tensor, x: Tensor, *, graph: bool = False) -> Tensor:
    """Returns the pictures after one step, before they are cut to [0, 1].

    Args:
        energy: The energy.
        z: Latents, with shape $(B, K, D)$.
        x: Pictures, with shape $(B, C, S, S)$.
        graph: Whether the step is to have a graph of weights, latents and, if they ask for one, pictures.
    """
    with torch.enable_grad():
        point = x if x.requires_grad else x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(energy.energies(point, z).sum(), point, create_graph=graph)
    return point - gradient if graph else point.detach() - gradient
