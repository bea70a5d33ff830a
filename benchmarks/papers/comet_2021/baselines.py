r"""Baselines for factors: a beta-VAE, an autoencoder, principal components, and untrained networks.

All have the encoder of COMET: three convolutions of 4 x 4 with stride 2 and 32, 64, 64 channels, a layer of 256, and 64 numbers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.papers.comet_2021.training import Budget, fit

CODES = 64
BATCH, RATE = 16, 2e-3


def encoder(outputs: int = CODES, channels: int = 3) -> nn.Sequential:
    """Returns a network from pictures with shape $(B, C, 32, 32)$ to numbers with shape $(B, D)$."""
    return nn.Sequential(
        *(nn.Conv2d(channels, 32, 4, 2, 1), nn.SiLU(), nn.Conv2d(32, 64, 4, 2, 1), nn.SiLU(), nn.Conv2d(64, 64, 4, 2, 1), nn.SiLU()),
        *(nn.Flatten(), nn.Linear(1024, 256), nn.SiLU(), nn.Linear(256, outputs)),
    )


def decoder(codes: int = CODES, channels: int = 3) -> nn.Sequential:
    """Returns the mirror image of `encoder`; its pictures are not clipped to [0, 1]."""
    return nn.Sequential(
        *(nn.Linear(codes, 256), nn.SiLU(), nn.Linear(256, 1024), nn.SiLU(), nn.Unflatten(1, (64, 4, 4))),
        *(nn.ConvTranspose2d(64, 64, 4, 2, 1), nn.SiLU(), nn.ConvTranspose2d(64, 32, 4, 2, 1), nn.SiLU()),
        nn.ConvTranspose2d(32, channels, 4, 2, 1),
    )


class Autoencoder(nn.Module):
    r"""An autoencoder, or a beta-VAE (Higgins et al., 2017), whose loss is the squared error summed over pixels and
    $\beta \operatorname{KL}(q(z \mid x) \,\Vert\, \mathcal N(0, 1))$.
    """

    def __init__(
        self, beta: float | None = None, reconstruction: Callable[[Tensor, Tensor], Tensor] | None = None, codes: int = CODES
    ) -> None:
        super().__init__()
        self.beta, self.reconstruction, self.codes = beta, reconstruction, codes
        self.encoder = encoder(codes if beta is None else 2 * codes)
        self.decoder = decoder(codes)

    def encode(self, x: Tensor) -> Tensor:
        """Returns codes, the means of $q(z | x)$, with shape $(B, D)$."""
        return self.encoder(x)[:, : self.codes]

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z)

    def loss(self, x: Tensor) -> Tensor:
        if self.reconstruction is not None:
            return self.reconstruction(self.decoder(self.encoder(x)), x).mean()
        if self.beta is None:
            return (self.decoder(self.encoder(x)) - x).square().sum((1, 2, 3)).mean()
        mean, log_variance = self.encoder(x).chunk(2, 1)
        z = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        kl = (mean.square() + log_variance.exp() - 1 - log_variance).sum(1) / 2
        return ((self.decoder(z) - x).square().sum((1, 2, 3)) + self.beta * kl).mean()


def train_autoencoder(model: Autoencoder, images: Tensor, steps: int, seed: int) -> dict[str, float]:
    """Trains a model by `fit` on batches of 16 with no clip, and returns the figures of `fit`."""
    torch.manual_seed(seed)
    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            layer.reset_parameters()
    budget = Budget(steps=steps, batch=BATCH, rate=RATE, cosine=True, clip=float("inf"))
    return fit(lambda rows, _: model.loss(images[rows]), model.parameters(), len(images), budget, seed)


def pixels(x: Tensor) -> Tensor:
    """Returns raw pixels as codes: pictures averaged to 16 x 16, with shape $(B, 768)$."""
    return nn.functional.avg_pool2d(x, 2).flatten(1)


def codes_of(encode: Callable[[Tensor], Tensor], images: Tensor, size: int = 256) -> Tensor:
    """Returns the codes of many pictures, with shape $(N, D)$."""
    with torch.no_grad():
        return torch.cat([encode(some).flatten(1) for some in images.split(size)])


def fit_principal_components(codes: Tensor, most: int = CODES) -> Callable[[Tensor], Tensor]:
    """Returns the map to the principal components of some codes: they are centred and turned, but not scaled."""
    mean = codes.double().mean(0)
    values, axes = torch.linalg.eigh(torch.cov((codes.double() - mean).T))
    chosen = axes[:, values.argsort(descending=True)[:most]]
    return lambda some: ((some.double() - mean) @ chosen).to(some)
