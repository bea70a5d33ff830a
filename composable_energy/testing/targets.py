"""Energies whose density is known."""

from __future__ import annotations

import torch
from torch import Tensor

from composable_energy.energy import Energy

__all__ = ["Gaussian"]


class Gaussian(Energy):
    r"""$E(x, \sigma) = \lVert x - \mu \rVert^2 / 2 (s^2 + \sigma^2)$: a Gaussian, with noise added at a level $\sigma$.

    Args:
        mean: $\mu$, with the shape of one point.
        scale: $s$.
    """

    mean: Tensor

    def __init__(self, mean: Tensor, scale: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.scale = scale
        self.event_shape = mean.shape

    def forward(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        square = (x - self.mean).flatten(1).square().sum(1)
        return square / (2 * (self.scale**2 + torch.as_tensor(sigma).to(x).square()))
