"""The learners of the continual experiments: energies, heads over a frozen base, softmax with and without EWC, and a VAE.

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

from benchmarks.papers.implicit_2019.continual_networks import CLASSES, HIDDEN, LATENT, VAE, ClassHeads, Classifier, ConditionalEnergy
from composable_energy_training import (
    Batch,
    CombinedObjective,
    ContrastiveDivergence,
    GaussianNoise,
    LabelContrast,
    Loss,
    NoiseContrastive,
    Objective,
    Optimizer,
    Trainer,
)

CODE = 16
FISHER = 500  # pictures of a task for the Fisher information; a task of scikit-learn's digits has fewer


class CrossEntropy(Objective):
    r"""Cross entropy plus the quadratic penalty of elastic weight consolidation, $\tfrac\lambda2 \sum_i F_i (\theta_i - \theta^*_i)^2$."""

    def __init__(self, penalty: float = 0.0, fisher: dict[str, Tensor] | None = None, anchor: dict[str, Tensor] | None = None) -> None:
        self.penalty, self.fisher, self.anchor = penalty, fisher or {}, anchor or {}

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        value = F.cross_entropy(model(batch.x), batch.labels["digit"])
        for name, parameter in model.named_parameters():
            if name in self.fisher:
                value = value + self.penalty / 2 * (self.fisher[name] * (parameter - self.anchor[name]).square()).sum()
        return Loss(value)


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
        options = {"batch_size": 32, "seed": self.seed, "optimizer": optimizer, "monitor": None, "checkpoint_every": 10**6}
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


class EWC(Softmax):
    """Elastic weight consolidation with one accumulated Fisher matrix (Kirkpatrick et al., 2017; Schwarz et al., 2018)."""

    penalty = 1000.0

    def __init__(self, size: int, seed: int) -> None:
        super().__init__(size, seed)
        self.fisher: dict[str, Tensor] = {}
        self.anchor: dict[str, Tensor] = {}

    def objective(self, classes: Sequence[int] | None) -> Objective:
        return CrossEntropy(self.penalty, dict(self.fisher), dict(self.anchor))

    def learn(self, data: object, steps: int, classes: Sequence[int] | None = None) -> None:
        super().learn(data, steps, classes)
        x, labels = data[0][:FISHER], data[1]["digit"][:FISHER]  # pyright: ignore[reportIndexIssue]
        parameters = {name: value.detach() for name, value in self.model.named_parameters()}

        def log_likelihood(weights: dict[str, Tensor], point: Tensor, label: Tensor) -> Tensor:
            return F.cross_entropy(torch.func.functional_call(self.model, weights, (point[None],)), label[None])

        found = torch.func.vmap(torch.func.grad(log_likelihood), (None, 0, 0))(parameters, x, labels)
        self.fisher = {name: self.fisher.get(name, 0) + value.square().mean(0) for name, value in found.items()}
        self.anchor = {name: value.clone() for name, value in parameters.items()}


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
    "EWC": EWC,
    "VAE": ConditionalVAE,
    "energy, contrast of classes and noise": ContrastOfBoth,
    "energy, contrast of present classes": Contrast,
    "energy, contrast of classes so far": ContrastOfSeen,
    "energy, contrastive divergence": Divergence,
}
ENERGIES = tuple(name for name in LEARNERS if name.startswith("energy"))
