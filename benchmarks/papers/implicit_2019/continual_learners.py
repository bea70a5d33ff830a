"""The learners of the continual experiments: energies, heads over a frozen base, softmax, and a VAE.

A learner is a model, an objective for the present classes, and a rule that classifies by one number for each class. All are trained by
`Trainer`, on the data of the present task alone.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import composable_energy as ce
from composable_energy_training import (
    Batch,
    Checkpoints,
    CombinedObjective,
    ContrastiveDivergence,
    GaussianNoise,
    LabelContrast,
    Loss,
    Monitor,
    NoiseContrastive,
    Objective,
    Optimizer,
    Trainer,
)

CLASSES, HIDDEN, LATENT, CODE = 10, 128, 16, 16


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


class CrossEntropy(Objective):
    """The cross entropy of a classifier."""

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        return Loss(F.cross_entropy(model(batch.x), batch.labels["digit"]))


class NegativeBound(Objective):
    """The negative evidence lower bound."""

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        xi = batch.noise.child("code").normal(batch.x.new_empty(len(batch.x), LATENT))
        return Loss(-model.bound(batch.x, batch.labels["digit"], xi).mean())  # pyright: ignore[reportCallIssue]


class Learner(ABC):
    """A learner of classes that come one after the other."""

    rate = 1e-3

    def __init__(self, size: int, seed: int) -> None:
        torch.manual_seed(seed)
        self.seed, self.size, self.seen, self.model = seed, size, set[int](), self.build(size)

    @abstractmethod
    def build(self, size: int) -> nn.Module:
        """Returns the network for a number of pixels."""

    @abstractmethod
    def objective(self, classes: Sequence[int] | None) -> Objective:
        """Returns the objective for the classes of a task; None where tasks have no boundaries."""

    def prepare(self, x: Tensor) -> Tensor:
        """Returns what the model gets of pictures."""
        return x

    def learn(self, data: object, steps: int, classes: Sequence[int] | None = None) -> None:
        """Trains on the data of a task, or on a stream of batches."""
        self.seen |= set(classes or range(CLASSES))
        optimizer = Optimizer(rate=self.rate, betas=(0.9, 0.99), clip=10.0)
        options = {"batch_size": 32, "seed": self.seed, "optimizer": optimizer, "callbacks": [Monitor(None), Checkpoints(every=10**6)]}
        Trainer(self.model, self.objective(classes), data, steps=steps, **options).fit()

    @torch.no_grad()
    def scores(self, x: Tensor) -> Tensor:
        """Returns a number for each class, with shape $(N, 10)$; the largest is the answer."""
        labels = torch.arange(CLASSES).repeat(len(x))
        return -self.model(self.prepare(x).repeat_interleave(CLASSES, 0), y=labels).view(len(x), CLASSES)

    def accuracy(self, x: Tensor, labels: Tensor) -> float:
        """Returns the share of correct answers among all classes that came so far."""
        unseen = [c for c in range(CLASSES) if c not in self.seen]
        return (self.scores(x).index_fill(1, torch.tensor(unseen, dtype=torch.long), -math.inf).argmax(1) == labels).float().mean().item()


class Softmax(Learner):
    def build(self, size: int) -> nn.Module:
        return Classifier(size)

    def objective(self, classes: Sequence[int] | None) -> Objective:
        return CrossEntropy()

    @torch.no_grad()
    def scores(self, x: Tensor) -> Tensor:
        return self.model(x)


class Contrast(Learner):
    """One conditional energy; the classes that contrast are those of the batch, so that no boundary need be known."""

    def build(self, size: int) -> nn.Module:
        return ConditionalEnergy(size)

    def objective(self, classes: Sequence[int] | None) -> Objective:
        return LabelContrast("digit")


class ContrastOfBoth(Contrast):
    """One conditional energy; the classes of the batch contrast, and pictures contrast with noise under the same classes.

    The noise is a wide Gaussian that no picture determines, so that energies of all classes are normalized in the same way.
    """

    def objective(self, classes: Sequence[int] | None) -> Objective:
        noise = GaussianNoise(torch.full((self.size,), 0.3), 0.45 * torch.eye(self.size))
        return CombinedObjective(LabelContrast("digit"), NoiseContrastive(noise, ratio=2, condition="digit"))


class ContrastOfSeen(Contrast):
    """One conditional energy; all classes that came so far contrast."""

    def objective(self, classes: Sequence[int] | None) -> Objective:
        return LabelContrast("digit", classes=sorted(self.seen))


class Divergence(Learner):
    """One conditional energy trained by contrastive divergence: chains under the classes of the batch, as in the slides."""

    options = {"step_size": 0.02, "temperature": 0.01, "clamp": (0.0, 1.0)}

    def build(self, size: int) -> nn.Module:
        return ConditionalEnergy(size)

    def objective(self, classes: Sequence[int] | None) -> Objective:
        return ContrastiveDivergence(steps=10, options=self.options, buffer=1000, l2=0.1, condition="digit")


class ConditionalVAE(Learner):
    draws = 10

    def build(self, size: int) -> nn.Module:
        return VAE(size)

    def objective(self, classes: Sequence[int] | None) -> Objective:
        return NegativeBound()

    @torch.no_grad()
    def scores(self, x: Tensor) -> Tensor:
        points, labels = x.repeat_interleave(CLASSES, 0), torch.arange(CLASSES).repeat(len(x))
        generator = torch.Generator().manual_seed(0)
        bounds = [self._bound(points, labels, torch.randn(len(points), LATENT, generator=generator)) for _ in range(self.draws)]
        return torch.stack(bounds).mean(0).view(len(x), CLASSES)

    def _bound(self, x: Tensor, y: Tensor, xi: Tensor) -> Tensor:
        return self.model.bound(x, y, xi)  # pyright: ignore[reportCallIssue]


@dataclass
class Base:
    """A frozen autoencoder: codes of pictures, and the Gaussian that fits the codes of its training pictures."""

    encoder: nn.Module
    noise: GaussianNoise = field(repr=False)


def fit_base(x: Tensor, seed: int, steps: int = 1500) -> Base:
    """Trains an autoencoder on pictures without labels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        size = x.shape[1]
        encoder = nn.Sequential(nn.Linear(size, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, CODE))
        decoder = nn.Sequential(nn.Linear(CODE, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, size))
        optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], 2e-3)
        for _ in range(steps):
            rows = x[torch.randint(len(x), (128,))]
            optimizer.zero_grad()
            (decoder(encoder(rows + 0.1 * torch.randn_like(rows))) - rows).square().sum(1).mean().backward()
            optimizer.step()
        codes = encoder.requires_grad_(False)(x)
    return Base(encoder, GaussianNoise.fit(codes, widen=1.5, jitter=0.1))


class Heads(Learner):
    """A head for each class over a frozen base, each trained against the same noise, so that heads compare without a common training."""

    rate = 1e-2

    def __init__(self, size: int, seed: int, base: Base) -> None:
        self.base = base
        super().__init__(size, seed)

    def build(self, size: int) -> nn.Module:
        return ClassHeads(self.base.noise)

    def objective(self, classes: Sequence[int] | None) -> Objective:
        return NoiseContrastive(self.base.noise, ratio=4, condition="digit")

    def prepare(self, x: Tensor) -> Tensor:
        return self.base.encoder(x)


LEARNERS: dict[str, type[Learner]] = {
    "softmax": Softmax,
    "VAE": ConditionalVAE,
    "energy, contrast of classes and noise": ContrastOfBoth,
    "energy, contrast of present classes": Contrast,
    "energy, contrast of classes so far": ContrastOfSeen,
    "energy, contrastive divergence": Divergence,
}
