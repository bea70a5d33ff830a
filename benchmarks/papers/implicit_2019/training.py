"""scikit-learn's digits and Fashion-MNIST, networks, and their training."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import composable_energy as ce
from benchmarks.handwritten import load_digits, load_real
from composable_energy.sampling.noise import Noise
from composable_energy_classification import Classifier, pgd
from composable_energy_training import JointEnergyClassifier, Monitor, Optimizer, Prepared, Trainer

TRAINING, HELD_OUT, SIZE = 1197, 200, 8


@dataclass(frozen=True)
class Split:
    """Pictures with shape $(n, 1, S, S)$ in [0, 1], and their classes, in three parts."""

    training: tuple[Tensor, Tensor]
    held_out: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def split(seed: int) -> Split:
    """Returns the 1,797 digits, divided at random into 1,197, 200 and 400."""
    digits = load_digits(seed, test=0)
    x, y = digits.train.view(-1, 1, SIZE, SIZE), digits.train_labels
    ends = (0, TRAINING, TRAINING + HELD_OUT, len(x))
    first, second, third = ((x[a:b], y[a:b]) for a, b in itertools.pairwise(ends))
    return Split(first, second, third)


def split_fashion(seed: int) -> Split:
    """Returns Fashion-MNIST; of its train file 2,000 pictures, divided by the seed, are held out."""
    found = load_real("fashion", seed)
    train, test = found.train.unflatten(1, (1, 28, 28)), found.test.unflatten(1, (1, 28, 28))
    return Split((train[2000:], found.train_labels[2000:]), (train[:2000], found.train_labels[:2000]), (test, found.test_labels))


WIDTH, DIGITS = 128, 10


class DigitEnergy(ce.Energy):
    r"""The energy $-\log \sum_y e^{f_y(x)}$ of a classifier with two hidden layers."""

    def __init__(self, size: int = SIZE) -> None:
        super().__init__()
        self.event_shape = (1, size, size)
        hidden = (nn.Linear(size**2, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH), nn.SiLU())
        self.net = ce.shared(nn.Sequential(nn.Flatten(), _Centred(), *hidden, nn.Linear(WIDTH, DIGITS)))

    def forward(self, x: Tensor) -> Tensor:
        return -self.net(x).logsumexp(1)

    def logits(self, x: Tensor) -> Tensor:
        """Returns $f(x)$, with shape $(B, 10)$."""
        return self.net(x)

    def classifier(self) -> Classifier:
        """Returns the classifier whose refinement moves on the energy."""
        return Classifier(ce.ClassifierEnergy(self.net, base=self, labels=DIGITS))


class _Centred(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x - 1


SEEDS = (0, 1, 2)  # settings were chosen on the split of seed 100


def summary(rows: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Returns the mean and the standard deviation of each figure over seeds."""
    return {
        key: {"mean": mean(row[key] for row in rows), "deviation": stdev(row[key] for row in rows) if len(rows) > 1 else 0.0}
        for key in rows[0]
    }


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
    model, generator = DigitEnergy(data[0].shape[-1]), torch.Generator().manual_seed(seed)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model.logits(x + noise * torch.randn(x.shape, generator=generator)), y)

    minimise(model, loss, data, steps, seed)
    return model


def adversarial(data: tuple[Tensor, Tensor], seed: int, radius: float, steps: int = 1000) -> DigitEnergy:
    """Returns a network trained by cross entropy on pictures under attack (Madry et al., 2018)."""
    torch.manual_seed(seed)
    model, seeds = DigitEnergy(data[0].shape[-1]), itertools.count()

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model.logits(pgd(model.logits, x, y, radius, steps=7, loss="cross-entropy", seed=next(seeds))), y)

    minimise(model, loss, data, steps, seed)
    return model


def joint(data: tuple[Tensor, Tensor], seed: int, settings: Joint) -> DigitEnergy:
    """Returns a joint energy-based model (Grathwohl et al., 2020), trained by the library's objective."""
    torch.manual_seed(seed)
    model = DigitEnergy(data[0].shape[-1])
    objective = JointEnergyClassifier(
        steps=settings.chain, options={"step_size": settings.step_size}, buffer=2000, fresh=0.05, weight=settings.weight
    )

    def add_noise(x: Tensor, noise: Noise) -> Tensor:
        return x + settings.noise * noise.normal(x, 9)

    noisy, optimizer = Prepared((data[0], {"class": data[1]}), add_noise), Optimizer(rate=RATE, warm_up=50, decay=0.5)
    options: dict[str, Any] = {"batch_size": BATCH, "seed": seed, "optimizer": optimizer, "callbacks": [Monitor(None)]}
    Trainer(model, objective, noisy, steps=settings.steps, **options).fit()
    return model.eval()
