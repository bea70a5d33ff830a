"""Leaves of random expressions: an energy, and the same energy written anew with NumPy."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy import special, stats
from torch import Tensor, nn
from torch import distributions as td

import composable_energy as ce
from tests.factories import Ring
from tests.truth.spaces import Array, Space

Function = Callable[[Array], Array]
Leaf = Callable[[np.random.Generator, Space], "Known"]


@dataclass(frozen=True)
class Known:
    """An expression with its energy by the table of operators: evidence, and bases by name, each once. The complement of a leaf has a rule
    of one line; a leaf that is a distribution has a level that is known without sampling."""

    energy: ce.Energy
    evidence: Function
    bases: Mapping[str, Function] = field(default_factory=dict)
    is_leaf: bool = False
    draws_known: bool = False

    def total(self, points: Array) -> Array:
        with np.errstate(all="ignore"):
            return sum((base(points) for base in self.bases.values()), self.evidence(points))


class Head(nn.Module):
    """Affine logits."""

    def __init__(self, weights: Array, phases: Array) -> None:
        super().__init__()
        self.weights, self.phases = nn.Parameter(_numbers(weights)), nn.Parameter(_numbers(phases))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weights + self.phases


class Bowl(Head):
    """A network: waves in a quadratic bowl."""

    scale = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(super().forward(x)).sum(1) + x.square().sum(1) / (2 * self.scale**2)


def _numbers(values: Array) -> Tensor:
    return torch.tensor(values).float()


def _law(build: Callable[..., td.Distribution], logpdf: Callable[..., Array], *ranges: tuple[float, float]) -> Leaf:
    """Returns a leaf of independent coordinates, whose parameters are drawn from ranges."""

    def leaf(rng: np.random.Generator, space: Space) -> Known:
        values = [rng.uniform(*ends, space.event) for ends in ranges]
        return Known(ce.as_energy(build(*map(_numbers, values))), lambda x: -logpdf(x, *values).sum(1), is_leaf=True, draws_known=True)

    return leaf


def _function(space: Space, f: Callable[[Tensor], Tensor], energy: Function) -> Known:
    lifted = ce.as_energy(f, event_shape=(space.event,))
    return Known(lifted if space.support is None else lifted.on(space.support), energy, is_leaf=True)


def gaussian(rng: np.random.Generator, space: Space) -> Known:
    mean, scale = rng.uniform(-2, 2, space.event), rng.uniform(0.5, 2.0, space.event)
    tensors = _numbers(mean), _numbers(scale)
    of_tensors = lambda x: ((x - tensors[0]) / tensors[1]).square().sum(1) / 2
    return _function(space, of_tensors, lambda x: ((x - mean) ** 2 / scale**2).sum(1) / 2)


def student(rng: np.random.Generator, space: Space) -> Known:
    df, mean = rng.uniform(3, 8), rng.uniform(-2, 2, space.event)
    energy = ce.as_energy(td.StudentT(_numbers(np.full(space.event, df)), _numbers(mean)))
    return Known(energy, lambda x: -stats.t.logpdf(x, df, mean).sum(1), is_leaf=True, draws_known=True)


def mixture(rng: np.random.Generator, space: Space) -> Known:
    share, means, scales = rng.uniform(0.2, 0.8), rng.uniform(-3, 3, (2, space.event)), rng.uniform(0.4, 1.2, (2, space.event))
    weights = np.array([share, 1 - share])
    parts = td.Independent(td.Normal(_numbers(means), _numbers(scales)), 1)

    def energy(x: Array) -> Array:
        return -np.logaddexp(*[np.log(w) + stats.norm.logpdf(x, m, s).sum(1) for w, m, s in zip(weights, means, scales, strict=True)])

    return Known(ce.as_energy(td.MixtureSameFamily(td.Categorical(_numbers(weights)), parts)), energy, is_leaf=True, draws_known=True)


def network(rng: np.random.Generator, space: Space) -> Known:
    weights, phases, scale = rng.normal(size=(space.event, 4)), rng.normal(size=4), rng.uniform(1, 2)
    bowl = Bowl(weights, phases)
    bowl.scale = scale
    return _function(space, bowl, lambda x: np.tanh(x @ weights + phases).sum(1) + (x**2).sum(1) / (2 * scale**2))


def ring(rng: np.random.Generator, space: Space) -> Known:
    radius = rng.uniform(1, 2.5)
    return Known(Ring(radius, space.event, 2.0), lambda x: 2 * (np.sqrt((x**2).sum(1) + 0.1) - radius) ** 2, is_leaf=True)


def uniform(rng: np.random.Generator, space: Space) -> Known:
    energy = ce.as_energy(td.Uniform(torch.full((space.event,), -1.0), torch.full((space.event,), 2.0)))
    return Known(energy, lambda x: np.full(len(x), space.event * np.log(3.0)), is_leaf=True, draws_known=True)


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
    energy = ce.as_energy(td.Dirichlet(_numbers(a)))
    return Known(energy, lambda x: -constant - ((a - 1) * np.log(np.maximum(x, 1e-300))).sum(1), is_leaf=True, draws_known=True)


normal = _law(td.Normal, stats.norm.logpdf, (-2, 2), (0.4, 2.0))
laplace = _law(td.Laplace, stats.laplace.logpdf, (-2, 2), (0.4, 1.5))
gamma = _law(td.Gamma, lambda x, a, b: stats.gamma.logpdf(x, a, scale=1 / b), (0.6, 4), (0.5, 2))
log_normal = _law(td.LogNormal, lambda x, m, s: stats.lognorm.logpdf(x, s, scale=np.exp(m)), (-1, 1), (0.3, 1))
half_normal = _law(td.HalfNormal, lambda x, s: stats.halfnorm.logpdf(x, scale=s), (0.5, 2))
exponential = _law(td.Exponential, lambda x, r: stats.expon.logpdf(x, scale=1 / r), (0.5, 2))
beta = _law(td.Beta, stats.beta.logpdf, (0.6, 4), (0.6, 4))
von_mises = _law(td.VonMises, lambda x, m, k: stats.vonmises.logpdf(x, k, m), (-3, 3), (0.3, 4))
_REAL = (gaussian, normal, laplace, student, mixture, network, ring)
_POSITIVE = (gamma, log_normal, half_normal, exponential, gaussian, network)
LEAVES: Mapping[str, tuple[Leaf, ...]] = {
    **dict.fromkeys(("line", "plane"), _REAL),
    **dict.fromkeys(("half-line", "quadrant"), _POSITIVE),
    "unit": (beta, gaussian, network),
    "box": (uniform, gaussian, network),
    "circle": (von_mises, cosine),
    "sphere": (linear,),
    "simplex": (dirichlet, linear, gaussian),
}


def tilt(rng: np.random.Generator, space: Space, base: Known) -> Known:
    """Returns evidence over a base: a leaf relative to it."""
    other = LEAVES[space.name][int(rng.integers(len(LEAVES[space.name])))](rng, space)
    energy = other.energy.relative_to(base.energy)
    return Known(energy, lambda x: other.evidence(x) - base.evidence(x), {"base": base.evidence}, is_leaf=True)


def ratio(rng: np.random.Generator, space: Space) -> tuple[ce.Energy, Function]:
    """Returns a bounded energy, whose difference from another stays a density."""
    slope, phase = rng.normal(size=space.event), rng.uniform(-3, 3)
    tensor = _numbers(slope)
    return ce.as_energy(lambda x: torch.cos(x @ tensor - phase), event_shape=(space.event,)), lambda x: np.cos(x @ slope - phase)


def event(rng: np.random.Generator, space: Space, base: Known) -> Known:
    """Returns a random formula of events over a base: two classifiers with three labels and two, and every Boolean operator. Its evidence
    is minus the logarithm of the sum over all labels for which the formula holds."""
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
