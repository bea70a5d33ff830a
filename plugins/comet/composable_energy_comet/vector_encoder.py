r"""The encoder of global factors: one vector for a picture, split into the latents of its components."""

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from composable_energy.options import check_choice, check_integer
from composable_energy_comet.coordinates import check_picture_size


class VectorEncoder(nn.Module):
    r"""Convolutions, then a vector of $K D$ numbers, for factors without a position such as light, camera or expression.

    Args:
        network: `"plain"`, three convolutions and a linear layer over all positions; or `"residual"`, the paper's residual blocks with mean
            pooling.

    References:
        Unsupervised learning of compositional energy concepts (Du et al., 2021), https://arxiv.org/abs/2111.03042, appendix A.
    """

    def __init__(
        self,
        size: int = 32,
        channels: int = 3,
        *,
        components: int = 4,
        latent: int = 16,
        network: Literal["plain", "residual"] = "plain",
        filters: int = 32,
    ) -> None:
        super().__init__()
        size, filters, channels = check_picture_size(size), check_integer("filters", filters), check_integer("channels", channels)
        self.components, self.latent = check_integer("components", components), check_integer("latent", latent)
        self.size, self.channels, self.network, self.filters = size, channels, network, filters
        numbers = self.components * self.latent
        if check_choice("network", network, ("plain", "residual")) == "plain":
            self.net = nn.Sequential(
                *halving_layers(channels, filters, 64, 64), nn.Linear(64 * (size // 8) ** 2, 256), nn.SiLU(), nn.Linear(256, numbers)
            )
        else:
            self.net = nn.Sequential(
                nn.Conv2d(channels, filters, 3, 1, 1),
                nn.ReLU(),
                *(_Halving(filters) for _ in range(3)),
                _MeanPool(),
                nn.Linear(filters, 64),
                nn.ReLU(),
                nn.Linear(64, numbers),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Returns latents with shape $(B, K, D)$ of pictures with shape $(B, C, S, S)$."""
        return self.net(x).view(len(x), self.components, self.latent)

    @property
    def numbers(self) -> int:
        """$D$, the numbers in a component."""
        return self.latent


class _Halving(nn.Module):
    def __init__(self, filters: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(filters, filters, 3, 1, 1), nn.Conv2d(filters, filters, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(torch.relu(x + self.second(torch.relu(self.first(x)))), 2)


class _MeanPool(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def halving_layers(*channels: int) -> list[nn.Module]:
    """Returns convolutions that halve height and width, each with an activation, and a flattening layer."""
    layers = (layer for pair in pairwise(channels) for layer in (nn.Conv2d(*pair, 4, 2, 1), nn.SiLU()))
    return [*layers, nn.Flatten()]
