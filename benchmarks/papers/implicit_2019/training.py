"""Training of the networks of digits."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.papers.implicit_2019.networks import DenoisingEnergy, DigitEnergy
from composable_energy import Energy
from composable_energy.sampling.noise import Noise
from composable_energy_classification import pgd
from composable_energy_training import DenoisingScoreMatching, JointEnergyClassifier, Optimizer, Trainer

BATCH, RATE = 64, 1e-3


@dataclass(frozen=True)
class Joint:
    """Settings of a joint energy-based model."""

    noise: float  # standard deviation of the noise on the pictures
    step_size: float  # of Langevin at temperature 1
    weight: float = 3.0  # of the cross entropy
    steps: int = 1000  # training steps
    chain: int = 10  # steps of each chain for each training step


def minimise(model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], data: tuple[Tensor, Tensor], steps: int, seed: int) -> None:
    """Trains with Adam; the learning rate falls linearly over the second half."""
    generator, (x, y) = torch.Generator().manual_seed(seed), data
    optimizer = torch.optim.Adam(model.parameters(), RATE)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = RATE * min(1.0, 2 * (1 - step / steps))
        rows = torch.randint(len(x), (BATCH,), generator=generator)
        optimizer.zero_grad()
        loss(x[rows], y[rows]).backward()
        optimizer.step()
    model.eval()


def softmax(data: tuple[Tensor, Tensor], seed: int, noise: float = 0.0, steps: int = 1000) -> DigitEnergy:
    """Returns a network trained by cross entropy, on pictures with noise."""
    torch.manual_seed(seed)
    model, generator = DigitEnergy(), torch.Generator().manual_seed(seed)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model.logits(x + noise * torch.randn(x.shape, generator=generator)), y)

    minimise(model, loss, data, steps, seed)
    return model


def adversarial(data: tuple[Tensor, Tensor], seed: int, radius: float, steps: int = 1000) -> DigitEnergy:
    """Returns a network trained by cross entropy on pictures under attack (Madry et al., 2018)."""
    torch.manual_seed(seed)
    model, seeds = DigitEnergy(), itertools.count()

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model.logits(pgd(model.logits, x, y, radius, steps=7, loss="cross-entropy", seed=next(seeds))), y)

    minimise(model, loss, data, steps, seed)
    return model


def joint(data: tuple[Tensor, Tensor], seed: int, settings: Joint) -> DigitEnergy:
    """Returns a joint energy-based model (Grathwohl et al., 2020), trained by the library's objective."""
    torch.manual_seed(seed)
    model = DigitEnergy()
    objective = JointEnergyClassifier(
        steps=settings.chain, options={"step_size": settings.step_size}, buffer=2000, fresh=0.05, weight=settings.weight
    )

    def add_noise(x: Tensor, noise: Noise) -> Tensor:
        return x + settings.noise * noise.normal(x, 9)

    Trainer(
        model,
        objective,
        (data[0], {"class": data[1]}),
        steps=settings.steps,
        batch_size=BATCH,
        seed=seed,
        optimizer=Optimizer(rate=RATE, warm_up=50, decay=0.5),
        preparation=add_noise,
        monitor=None,
    ).fit()
    return model.eval()


def denoising(x: Tensor, seed: int, level: float, steps: int = 2500) -> Energy:
    """Returns the energy of pictures with noise of one level (Vincent, 2011), trained by the library's objective."""
    torch.manual_seed(seed)
    model, optimizer = DenoisingEnergy(), Optimizer(rate=2 * RATE, betas=(0.9, 0.999), warm_up=50, decay=0.5)
    objective = DenoisingScoreMatching(level, level)
    Trainer(model, objective, x, steps=steps, batch_size=BATCH, seed=seed, optimizer=optimizer, monitor=None).fit()
    return model.eval().at(level)
