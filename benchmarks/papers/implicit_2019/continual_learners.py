"""The learners of the continual experiments: energies, heads over a frozen base, softmax, and a VAE.

A learner is a model, an objective for the classes so far, and a rule that classifies by one number for each class. All are trained by
`Trainer`, on the data of the present task alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

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
        widths = {"level": 1, "mean": size, "width": size}
        self.numbers = nn.ModuleDict({name: nn.Embedding(CLASSES, width) for name, width in widths.items()})
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


class Learner:
    """A learner of classes that come one after the other."""

    def __init__(
        self,
        seed: int,
        model: Callable[[], nn.Module],
        objective: Callable[[set[int]], Objective],
        scores: Callable[[nn.Module, Tensor], Tensor] | None = None,
        rate: float = 1e-3,
        prepare: Callable[[Tensor], Tensor] = lambda x: x,
    ) -> None:
        torch.manual_seed(seed)
        self.seed, self.model, self.seen = seed, model(), set[int]()
        self.objective, self.rate = objective, rate  # the objective for the classes so far
        self.scores, self.prepare = scores or energy_scores, prepare

    def learn(self, data: object, steps: int, classes: Sequence[int] | None = None) -> None:
        """Trains on the data of a task, or on a stream of batches."""
        self.seen |= set(classes or range(CLASSES))
        optimizer = Optimizer(rate=self.rate, betas=(0.9, 0.99), clip=10.0)
        options = {"batch_size": 32, "seed": self.seed, "optimizer": optimizer, "callbacks": [Monitor(None), Checkpoints(every=10**6)]}
        Trainer(self.model, self.objective(self.seen), data, steps=steps, **options).fit()

    @torch.no_grad()
    def accuracy(self, x: Tensor, labels: Tensor) -> float:
        """Returns the share of correct answers among all classes that came so far."""
        unseen = [c for c in range(CLASSES) if c not in self.seen]
        scores = self.scores(self.model, self.prepare(x))
        return (scores.index_fill(1, torch.tensor(unseen, dtype=torch.long), -math.inf).argmax(1) == labels).float().mean().item()


def energy_scores(model: nn.Module, x: Tensor) -> Tensor:
    """Returns a number for each class, with shape $(N, 10)$; the largest is the answer."""
    return -model(x.repeat_interleave(CLASSES, 0), y=torch.arange(CLASSES).repeat(len(x))).view(len(x), CLASSES)


def bound_scores(model: nn.Module, x: Tensor) -> Tensor:
    """Returns the mean bound of each class over ten draws of the code."""
    points, labels, generator = x.repeat_interleave(CLASSES, 0), torch.arange(CLASSES).repeat(len(x)), torch.Generator().manual_seed(0)
    draws = [torch.randn(len(points), LATENT, generator=generator) for _ in range(10)]
    return torch.stack([model.bound(points, labels, xi) for xi in draws]).mean(0).view(len(x), CLASSES)  # pyright: ignore[reportCallIssue]


def contrast_of_both(size: int) -> Objective:
    """The classes of the batch contrast, and pictures contrast with noise under the same classes.

    The noise is a wide Gaussian that no picture determines, so that energies of all classes are normalized in the same way.
    """
    noise = GaussianNoise(torch.full((size,), 0.3), 0.45 * torch.eye(size))
    return CombinedObjective(LabelContrast("digit"), NoiseContrastive(noise, ratio=2, condition="digit"))


def divergence(size: int, seed: int) -> Learner:
    """One conditional energy trained by contrastive divergence: chains under the classes of the batch, as in the slides."""
    objective = partial(ContrastiveDivergence, steps=10, options=CHAINS, buffer=1000, l2=0.1, condition="digit")
    return Learner(seed, lambda: ConditionalEnergy(size), lambda _: objective())


CHAINS = {"step_size": 0.02, "temperature": 0.01, "clamp": (0.0, 1.0)}
Base = tuple[nn.Module, GaussianNoise]
"""A frozen encoder of pictures, and the Gaussian that fits the codes of its training pictures."""


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
    return encoder, GaussianNoise.fit(codes, widen=1.5, jitter=0.1)


def heads(seed: int, base: Base) -> Learner:
    """A head for each class over a frozen base, each trained against the same noise, so that heads compare without a common training."""
    encoder, noise = base
    contrast = NoiseContrastive(noise, ratio=4, condition="digit")
    return Learner(seed, lambda: ClassHeads(noise), lambda _: contrast, rate=1e-2, prepare=encoder)


LEARNERS: dict[str, Callable[[int, int], Learner]] = {
    "softmax": lambda size, seed: Learner(seed, lambda: Classifier(size), lambda _: CrossEntropy(), lambda model, x: model(x)),
    "VAE": lambda size, seed: Learner(seed, lambda: VAE(size), lambda _: NegativeBound(), bound_scores),
    "energy, contrast of classes and noise": lambda size, seed: Learner(
        seed, lambda: ConditionalEnergy(size), lambda _: contrast_of_both(size)
    ),
    "energy, contrast of present classes": lambda size, seed: Learner(
        seed, lambda: ConditionalEnergy(size), lambda _: LabelContrast("digit")
    ),
    "energy, contrast of classes so far": lambda size, seed: Learner(
        seed, lambda: ConditionalEnergy(size), lambda seen: LabelContrast("digit", classes=sorted(seen))
    ),
    "energy, contrastive divergence": divergence,
}
"""Functions of the number of pixels and a seed."""
