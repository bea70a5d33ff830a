"""Energies for tests of the driver."""

from typing import ClassVar

import torch
from torch import Tensor, nn

import composable_energy as ce

F64 = torch.float64


class Bowl(ce.Energy):
    """A unit Gaussian; at a noise level, with the noise added. Elementwise, so chunks change no bit."""

    def forward(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        return x.square().reshape(len(x), -1).sum(1) / (2 * (1 + sigma**2))


class Network(ce.Energy):
    def __init__(self, dtype: torch.dtype = F64) -> None:
        super().__init__()
        self.event_shape = torch.Size([12])
        generator = torch.Generator().manual_seed(0)
        self.net = nn.Sequential(nn.Linear(12, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1)).to(dtype)
        for parameter in self.net.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=dtype) / 3

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(1) + x.square().sum(1) / 2


class Decoder(nn.Module):
    seen: ClassVar[list[int]] = []  # of all copies: sampling decodes with one

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 12), nn.BatchNorm1d(12), nn.Dropout(0.5))

    def forward(self, z: Tensor) -> Tensor:
        self.seen.append(len(z))
        return self.net(z).view(-1, 3, 2, 2)


class Latent(ce.Energy):
    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.event_shape = torch.Size([4])
        self.decoder = decoder

    def forward(self, z: Tensor) -> Tensor:
        return z.square().sum(1) / 2
