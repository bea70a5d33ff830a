"""Leaves of random expressions: an energy, and the same energy written anew with NumPy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy import special, stats
from torch import Tensor, nn
from torch.distributions import (
    Beta,
    Categorical,
    Dirichlet,
    Exponential,
    Gamma,
    HalfNormal,
    Laplace,
    LogNormal,
    MixtureSameFamily,
    Normal,
    StudentT,
    Uniform,
    VonMises,
)

import composable_energy as ce
from tests.truth.spaces import Array, Space

Function = Callable[[Array], Array]


@dataclass(frozen=True)
class Known:
    """An expression with its energy by the table of operators: the bases, each once, and the evidence.

    Args:
        energy: The expression.
        evidence: Its evidence; the energy itself where there is no base.
        bases: The energies of its bases, by name.
        is_leaf: Whether the expression is a leaf, so that the rule for its complement is one line.
        draws_known: Whether the leaf is a distribution, whose level is known without sampling.
    """

    energy: ce.Energy
    evidence: Function
    bases: Mapping[str, Function] = field(default_factory=dict)
    is_leaf: bool = False
    draws_known: bool = False

    def total(self, points: Array) -> Array:
        with np.errstate(all="ignore"):
            return sum((base(points) for base in self.bases.values()), self.evidence(points))


class Bowl(nn.Module):
    """A network: waves in a quadratic bowl."""

    def __init__(self, weights: Array, phases: Array, scale: float) -> None:
        super().__init__()
        self.weights, self.phases = nn.Parameter(torch.tensor(weights).float()), nn.Parameter(torch.tensor(phases).float())
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.weights + self.phases).sum(1) + x.square().sum(1) / (2 * self.scale**2)


class Ring(ce.Energy):
    """A user's class: a ring, or two places on a line."""

    def __init__(self, radius: float, size: int) -> None:
        super().__init__()
        self.radius, self.event_shape = radius, torch.Size([size])

    def forward(self, x: Tensor) -> Tensor:
        return 2 * ((x.square().sum(1) + 0.1).sqrt() - self.radius).square()


class Head(nn.Module):
    """Affine logits."""

    def __init__(self, weights: Array, phases: Array) -> None:
        super().__init__()
        self.weights, self.phases = nn.Parameter(torch.tensor(weights).float()), nn.Parameter(torch.tensor(phases).float())

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weights + self.phases


def _of(distribution: torch.distributions.Distribution, energy: Function) -> Known:
    return Known(ce.as_energy(distribution), energy, is_leaf=True, draws_known=True)


def _function(space: Space, f: Callable[[Tensor], Tensor], energy: Function) -> Known:
    lifted = ce.as_energy(f, event_shape=(space.event,))
    return Known(lifted if space.support is None else lifted.on(space.support), energy, is_leaf=True)


def _numbers(values: Array) -> Tensor:
    return torch.tensor(values).float()


def gaussian(rng: np.random.Generator, space: Space) -> Known:
    mean, scale = rng.uniform(-2, 2, space.event), rng.uniform(0.5, 2.0, space.event)
    tensors = _numbers(mean), _numbers(scale)
    return _function(
        space, lambda x: ((x - tensors[0]) / tensors[1]).square().sum(1) / 2, lambda x: ((x - mean) ** 2 / scale**2).sum(1) / 2
    )


def normal(rng: np.random.Generator, space: Space) -> Known:
    mean, scale = rng.uniform(-2, 2, space.event), rng.uniform(0.4, 2.0, space.event)
    return _of(Normal(_numbers(mean), _numbers(scale)), lambda x: -stats.norm.logpdf(x, mean, scale).sum(1))


def laplace(rng: np.random.Generator, space: Space) -> Known:
    mean, scale = rng.uniform(-2, 2, space.event), rng.uniform(0.4, 1.5, space.event)
    return _of(Laplace(_numbers(mean), _numbers(scale)), lambda x: -stats.laplace.logpdf(x, mean, scale).sum(1))


def student(rng: np.random.Generator, space: Space) -> Known:
    df, mean = rng.uniform(3, 8), rng.uniform(-2, 2, space.event)
    return _of(StudentT(_numbers(np.full(space.event, df)), _numbers(mean)), lambda x: -stats.t.logpdf(x, df, mean).sum(1))


def mixture(rng: np.random.Generator, space: Space) -> Known:
    share, means, scales = rng.uniform(0.2, 0.8), rng.uniform(-3, 3, (2, space.event)), rng.uniform(0.4, 1.2, (2, space.event))
    weights = np.array([share, 1 - share])
    parts = torch.distributions.Independent(Normal(_numbers(means), _numbers(scales)), 1)

    def energy(x: Array) -> Array:
        logs = [np.log(w) + stats.norm.logpdf(x, m, s).sum(1) for w, m, s in zip(weights, means, scales, strict=True)]
        return -np.logaddexp(*logs)

    return _of(MixtureSameFamily(Categorical(_numbers(weights)), parts), energy)


def network(rng: np.random.Generator, space: Space) -> Known:
    weights, phases, scale = rng.normal(size=(space.event, 4)), rng.normal(size=4), rng.uniform(1, 2)
    module = ce.as_energy(Bowl(weights, phases, scale), event_shape=(space.event,))
    energy = module if space.support is None else module.on(space.support)
    return Known(energy, lambda x: np.tanh(x @ weights + phases).sum(1) + (x**2).sum(1) / (2 * scale**2), is_leaf=True)


def ring(rng: np.random.Generator, space: Space) -> Known:
    radius = rng.uniform(1, 2.5)
    return Known(Ring(radius, space.event), lambda x: 2 * (np.sqrt((x**2).sum(1) + 0.1) - radius) ** 2, is_leaf=True)


def gamma(rng: np.random.Generator, space: Space) -> Known:
    a, b = rng.uniform(0.6, 4, space.event), rng.uniform(0.5, 2, space.event)
    return _of(Gamma(_numbers(a), _numbers(b)), lambda x: -stats.gamma.logpdf(x, a, scale=1 / b).sum(1))


def log_normal(rng: np.random.Generator, space: Space) -> Known:
    m, s = rng.uniform(-1, 1, space.event), rng.uniform(0.3, 1, space.event)
    return _of(LogNormal(_numbers(m), _numbers(s)), lambda x: -stats.lognorm.logpdf(x, s, scale=np.exp(m)).sum(1))


def half_normal(rng: np.random.Generator, space: Space) -> Known:
    scale = rng.uniform(0.5, 2, space.event)
    return _of(HalfNormal(_numbers(scale)), lambda x: -stats.halfnorm.logpdf(x, scale=scale).sum(1))


def exponential(rng: np.random.Generator, space: Space) -> Known:
    rate = rng.uniform(0.5, 2, space.event)
    return _of(Exponential(_numbers(rate)), lambda x: -stats.expon.logpdf(x, scale=1 / rate).sum(1))


def beta(rng: np.random.Generator, space: Space) -> Known:
    a, b = rng.uniform(0.6, 4, space.event), rng.uniform(0.6, 4, space.event)
    return _of(Beta(_numbers(a), _numbers(b)), lambda x: -stats.beta.logpdf(x, a, b).sum(1))


def uniform(rng: np.random.Generator, space: Space) -> Known:
    ends = torch.full((space.event,), -1.0), torch.full((space.event,), 2.0)
    return _of(Uniform(*ends), lambda x: np.full(len(x), space.event * np.log(3.0)))


def von_mises(rng: np.random.Generator, space: Space) -> Known:
    mean, k = rng.uniform(-3, 3), rng.uniform(0.3, 4)
    return _of(VonMises(torch.tensor([mean]).float(), torch.tensor([k]).float()), lambda x: -stats.vonmises.logpdf(x, k, mean).sum(1))


def cosine(rng: np.random.Generator, space: Space) -> Known:
    phase, k, order = rng.uniform(-3, 3), rng.uniform(0.3, 3), int(rng.integers(1, 3))
    return _function(space, lambda x: k * torch.cos(order * x - phase).sum(1), lambda x: k * np.cos(order * x - phase).sum(1))


def linear(rng: np.random.Generator, space: Space) -> Known:
    slope = rng.normal(size=space.event) * 1.5
    tensor = _numbers(slope)
    return _function(space, lambda x: x @ tensor, lambda x: x @ slope)


def dirichlet(rng: np.random.Generator, space: Space) -> Known:
    a = rng.uniform(0.7, 4, 3)
    constant = special.gammaln(a.sum()) - special.gammaln(a).sum()
    return _of(Dirichlet(_numbers(a)), lambda x: -constant - ((a - 1) * np.log(np.maximum(x, 1e-300))).sum(1))


_REAL = (gaussian, normal, laplace, student, mixture, network, ring)
LEAVES: Mapping[str, tuple[Callable[[np.random.Generator, Space], Known], ...]] = {
    "line": _REAL,
    "plane": _REAL,
    "half-line": (gamma, log_normal, half_normal, exponential, gaussian, network),
    "quadrant": (gamma, log_normal, half_normal, exponential, gaussian, network),
    "unit": (beta, gaussian, network),
    "box": (uniform, gaussian, network),
    "circle": (von_mises, cosine),
    "sphere": (linear,),
    "simplex": (dirichlet, linear, gaussian),
}


def tilt(rng: np.random.Generator, space: Space, base: Known) -> Known:
    """Returns evidence over a base: a leaf relative to it."""
    other = LEAVES[space.name][int(rng.integers(len(LEAVES[space.name])))](rng, space)
    return Known(
        other.energy.relative_to(base.energy), lambda x: other.evidence(x) - base.evidence(x), {"base": base.evidence}, is_leaf=True
    )


def ratio(rng: np.random.Generator, space: Space) -> tuple[ce.Energy, Function]:
    """Returns a bounded energy, whose difference from another stays a density."""
    slope, phase = rng.normal(size=space.event), rng.uniform(-3, 3)
    tensor = _numbers(slope)
    wave = ce.as_energy(lambda x: torch.cos(x @ tensor - phase), event_shape=(space.event,))
    return wave, lambda x: np.cos(x @ slope - phase)


def event(rng: np.random.Generator, space: Space, base: Known) -> Known:
    """Returns a random formula of events over a base: two classifiers with three labels and two, and every Boolean operator.

    Its evidence is minus the logarithm of the sum over all labels for which the formula holds.
    """
    weights = [rng.normal(size=(space.event, columns)) for columns in (3, 2)]
    phases = [rng.normal(size=columns) for columns in (3, 2)]
    heads = [Head(*pair) for pair in zip(weights, phases, strict=True)]
    labels = np.array([(i, j) for i in range(3) for j in range(2)])

    def literal() -> tuple[ce.Energy, Array]:
        head = int(rng.integers(2))
        label = int(rng.integers(3 - head))
        return ce.ClassifierEnergy(heads[head], label, base.energy, name=f"{'ab'[head]}{label}"), labels[:, head] == label

    def formula(depth: int) -> tuple[ce.Energy, Array]:
        if depth == 0:
            return literal()
        (a, p), (b, q) = formula(depth - 1), formula(depth - 1)
        both = [(a & b, p & q), (a | b, p | q), (~a, ~p), (a >> b, ~p | q), (a ^ b, p ^ q)]
        return both[int(rng.integers(len(both)))]

    energy, holds = formula(int(rng.integers(3)))
    while not holds.any() or holds.all():
        energy, holds = formula(int(rng.integers(3)))

    def evidence(x: Array) -> Array:
        logs = [special.log_softmax(x @ w + b, axis=1) for w, b in zip(weights, phases, strict=True)]
        return -special.logsumexp(np.stack([logs[0][:, i] + logs[1][:, j] for i, j in labels[holds]]), axis=0)

    return Known(energy, evidence, {"base": base.evidence}, is_leaf=True)
