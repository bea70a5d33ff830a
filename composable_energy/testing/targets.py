"""Energies with a known density, the targets of checks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from composable_energy.energies.energy import Energy
from composable_energy.sampling.noise import Noise


class Gaussian(Energy):
    r"""A Gaussian with noise of level $\sigma$: $E(x, \sigma) = \lVert x - \mu \rVert^2 / 2 (s^2 + \sigma^2)$.

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


class Banana(Energy):
    r"""A curved density with large gradients in its tails: $x_1 \sim N(0, 1)$, $x_2 \mid x_1 \sim N(x_1^2, 1/4)$."""

    def __init__(self) -> None:
        super().__init__()
        self.event_shape = (2,)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.whitened(x).T
        return (first.square() + second.square()) / 2

    def exact(self, noise: Noise, dtype: torch.dtype = torch.float64) -> Tensor:
        """Returns independent exact draws, with shape $(B, 2)$, one for each chain of the noise."""
        first, second = noise.normal(torch.zeros(len(noise.chains), 2, dtype=dtype)).T
        return torch.stack([first, first.square() + second / 2], 1)

    def whitened(self, x: Tensor) -> Tensor:
        """Returns $x_1$ and $2 (x_2 - x_1^2)$, with shape $(B, 2)$; of exact draws they are standard normal."""
        return torch.stack([x[:, 0], 2 * (x[:, 1] - x[:, 0].square())], 1)


class NetworkEnergy(Gaussian):
    """A Gaussian plus a bounded network, which noise blurs."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(torch.zeros(2, dtype=torch.float64))
        self.network = network

    def forward(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        return super().forward(x, sigma) + self.network(x).squeeze(-1).tanh() / (1 + torch.as_tensor(sigma) ** 2)
