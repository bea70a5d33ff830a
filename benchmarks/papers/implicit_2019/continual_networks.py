"""The networks of the continual experiments: a classifier, a conditional energy, heads over codes, and a VAE."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import composable_energy as ce
from composable_energy_training import GaussianNoise

CLASSES, HIDDEN, LATENT = 10, 128, 16


class Classifier(nn.Module):
    """A softmax classifier with two hidden layers."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(size, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(2 * x - 1)


class ConditionalEnergy(ce.Energy):
    """An energy of a picture and its class: a network whose units the class scales (Li et al., 2020), plus the class's quadratic term."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.event_shape = torch.Size([size])
        self.layers = nn.ModuleList([nn.Linear(size, HIDDEN), nn.Linear(HIDDEN, HIDDEN)])
        self.gates = nn.ModuleList(nn.Embedding(CLASSES, HIDDEN) for _ in range(3))
        self.numbers = nn.ModuleDict(
            {"level": nn.Embedding(CLASSES, 1), "mean": nn.Embedding(CLASSES, size), "width": nn.Embedding(CLASSES, size)}
        )
        for table in self.numbers.values():
            nn.init.zeros_(table.weight)  # pyright: ignore[reportArgumentType]
        nn.init.normal_(self.gates[2].weight, std=HIDDEN**-0.5)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = 2 * x - 1
        for layer, gate in zip(self.layers, self.gates, strict=False):
            h = F.silu(layer(h)) * gate(y)
        level, mean, width = (table(y) for table in self.numbers.values())
        quadratic = ((x - 0.3 - 10 * mean) / (0.4 * (5 * width).exp())).square().sum(1) / 2 + 5 * width.sum(1)
        return (h * self.gates[2](y)).sum(1) + level[:, 0] + quadratic


class ClassHeads(ce.Energy):
    r"""A normalized energy for each class over the codes of a frozen base: a quadratic form of its own, and a level."""

    def __init__(self, noise: GaussianNoise) -> None:
        super().__init__()
        size = noise.mean.numel()
        precision = torch.linalg.inv(noise.scale)
        self.means = nn.Parameter(noise.mean.expand(CLASSES, -1).clone())
        self.factors = nn.Parameter(precision.expand(CLASSES, -1, -1).clone())
        level = size * math.log(2 * math.pi) / 2 + float(noise.scale.diagonal().log().sum())
        self.levels = nn.Parameter(torch.full((CLASSES,), level))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        z = torch.einsum("bij,bj->bi", self.factors[y], x - self.means[y])
        return z.square().sum(1) / 2 + self.levels[y]


class VAE(nn.Module):
    """A variational autoencoder with the class as a condition of both parts; it classifies by the bound of the likelihood."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(size + CLASSES, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, 2 * LATENT))
        self.decoder = nn.Sequential(nn.Linear(LATENT + CLASSES, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, size))

    def bound(self, x: Tensor, y: Tensor, xi: Tensor) -> Tensor:
        """Returns the evidence lower bound of Bernoulli pixels at one draw of the code, with shape $(B,)$."""
        condition = F.one_hot(y, CLASSES).to(x)
        mean, log_scale = self.encoder(torch.cat([x, condition], 1)).chunk(2, 1)
        logits = self.decoder(torch.cat([mean + log_scale.exp() * xi, condition], 1))
        fit = -F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1)
        return fit - (mean.square() + (2 * log_scale).exp() - 1 - 2 * log_scale).sum(1) / 2
