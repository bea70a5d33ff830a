r"""The inner descent: $x_n = x_{n-1} - \nabla_x \sum_k E(x_{n-1}, z_k)$, clamped to [0, 1], from one start for all pictures."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import torch
from torch import Tensor

from composable_energy_comet.conv import ConvEnergy
from composable_energy_training.second_derivatives import differentiable_gradient

SPREAD = 0.1
"""Standard deviation of the noise that is added to the start image."""


def descent_iterates(energy: ConvEnergy, z: Tensor, x: Tensor, iterations: int) -> Iterator[Tensor]:
    """Yields the pictures after 0, 1, ... steps, without graphs.

    Args:
        energy: The energy.
        z: Latents, with shape $(B, K, D)$.
        x: The start, with shape $(B, C, S, S)$.
        iterations: Number of steps.
    """
    z, x = z.detach(), x.detach()
    yield x
    for _ in range(iterations):
        x = descent_step(energy, z, x).detach().clamp(0, 1)
        yield x


def descend(energy: ConvEnergy, z: Tensor, x: Tensor, iterations: int) -> Tensor:
    """Returns the pictures after the last step, without a graph.

    Args:
        energy: The energy.
        z: Latents, with shape $(B, K, D)$.
        x: The start, with shape $(B, C, S, S)$.
        iterations: Number of steps.
    """
    return deque(descent_iterates(energy, z, x, iterations), maxlen=1).pop()


def descent_step(energy: ConvEnergy, z: Tensor, x: Tensor, *, graph: bool = False) -> Tensor:
    """Returns the pictures after one step, before they are clamped to [0, 1].

    Args:
        energy: The energy.
        z: Latents, with shape $(B, K, D)$.
        x: Pictures, with shape $(B, C, S, S)$.
        graph: Whether the step keeps a graph of weights, latents and, if they require a gradient, pictures.
    """
    if graph:
        return x - differentiable_gradient(energy.energies, x, z=z)[1]
    with torch.enable_grad():
        point = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(energy.energies(point, z).sum(), point)
    return point.detach() - gradient
