"""Energies of every kind on the plane, in float64, and random expressions of them."""

from collections import Counter
from collections.abc import Mapping

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal, Normal
from torch.utils._python_dispatch import TorchDispatchMode

import composable_energy as ce

DTYPE = torch.float64
COMPILES = " " not in torch.__file__  # torch.compile hands this path to the C++ compiler without quotes
needs_compiler = pytest.mark.skipif(not COMPILES, reason="torch.compile fails where torch is installed in a path with a space")


class Affine(nn.Module):
    """Logits or head outputs that are affine in the point; a module, so that copies and pickles of its leaves include it."""

    def __init__(self, outputs: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(2, outputs, generator=generator, dtype=DTYPE))
        self.bias = nn.Parameter(torch.randn(outputs, generator=generator, dtype=DTYPE))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class Network(nn.Module):
    """A small network with one output."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.inner = nn.Parameter(torch.randn(2, 8, generator=generator, dtype=DTYPE))
        self.outer = nn.Parameter(torch.randn(8, generator=generator, dtype=DTYPE))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.inner) @ self.outer + x.square().sum(1) / 2


class Ring(ce.Energy):
    """An energy of a user-defined class."""

    def __init__(self, radius: float, size: int = 2, weight: float = 1.0) -> None:
        super().__init__()
        self.event_shape = torch.Size([size])
        self.radius, self.weight = radius, weight

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x.square().sum(1) + 0.1).sqrt().sub(self.radius).square()


class Noisy(ce.Energy):
    """A Gaussian plus noise, with the condition `sigma`."""

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return x.square().sum(1) / (2 * (1 + sigma.to(x).square()))


class Tilt(ce.energies.RelativeEnergy):
    """A relative energy of a user-defined class."""

    def __init__(self, base: ce.Energy, slope: float) -> None:
        super().__init__()
        self.base, self.bases = base, (ce.energies.WeightedBase(base),)
        self.slope = slope

    def forward_evidence(self, x: Tensor) -> Tensor:
        return self.slope * x[:, 0].sin()


class Operations(TorchDispatchMode):
    """Counts the operations that compute, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func._schema.name] += not func.is_view
        return func(*args, **(kwargs or {}))


def normal(mean: float, scale: float) -> MultivariateNormal:
    return MultivariateNormal(torch.full((2,), mean, dtype=DTYPE), scale * torch.eye(2, dtype=DTYPE))


def leaves() -> dict[str, ce.Energy]:
    """Returns one leaf of each kind; they share bases and heads, as trained energies do."""
    base = ce.as_energy(normal(0.0, 2.0), name="base")
    other = ce.as_energy(Network(), name="network")
    colours, male, head = Affine(4, 1), Affine(1, 2), ce.GaussianHead(Affine(4, 3), base, dims=2, name="position")
    mixture = MixtureSameFamily(
        Categorical(torch.tensor([0.3, 0.7], dtype=DTYPE)),
        MultivariateNormal(torch.tensor([[-1.0, 0.0], [1.0, 1.0]], dtype=DTYPE), torch.eye(2, dtype=DTYPE).expand(2, 2, 2)),
    )
    return {
        "distribution": base,
        "independent": ce.as_energy(Normal(torch.zeros(2, dtype=DTYPE), torch.ones(2, dtype=DTYPE))),
        "mixture": ce.as_energy(mixture),
        "network": other,
        "ring": Ring(1.5),
        "event": ce.ClassifierEnergy(male, 1, base, name="male"),
        "red": ce.ClassifierEnergy(colours, 0, base, name="red"),
        "warm": ce.ClassifierEnergy(colours, {0, 2}, base, name="warm"),
        "near": head.near(torch.tensor([0.3, -0.2], dtype=DTYPE), 0.8),
        "density": head(torch.tensor([0.5, 0.5], dtype=DTYPE)),
        "relative": ce.as_energy(normal(1.0, 0.7)).relative_to(base),
        "tilt": Tilt(base, 0.8),
        "noisy": Noisy().at(0.5),
        "foreign": ce.ClassifierEnergy(Affine(3, 9), 2, other, name="foreign"),
    }


LEAVES = leaves()


def complement(a: ce.Energy) -> ce.Energy:
    """Returns `~a`; with a given level where it would need draws, which take a second each and which random trees may not have."""
    found = ~a
    todo = [found]
    while todo:
        part = todo.pop()
        if isinstance(part, ce.Negation) and part.mode == "level" and part.level is None:
            return ce.negate(a, mode="level", level=2.0)
        todo += part.terms
    return found


_OPERATIONS = {
    "and": lambda a, b, weight: a & b,
    "or": lambda a, b, weight: a | b,
    "implies": lambda a, b, weight: complement(a) | b,
    "minus": lambda a, b, weight: a - b,
    "not": lambda a, b, weight: complement(a),
    "weigh": lambda a, b, weight: weight * a,
    "sharpen": lambda a, b, weight: a.sharpened(weight),
    "weighted or": lambda a, b, weight: ce.any_of(a, b, weights=[1.0, weight]),
}


def _built(operation: str, a: ce.Energy, b: ce.Energy, weight: float) -> ce.Energy:
    try:
        energy = _OPERATIONS[operation](a, b, weight)
        return a if energy.unsatisfiable else energy
    except ce.errors.ExpressionError as error:  # a point of a density has no complement
        if "complement" in str(error) or "near" in str(error):
            return a
        raise


def _join(children: st.SearchStrategy[ce.Energy]) -> st.SearchStrategy[ce.Energy]:
    return st.builds(_built, st.sampled_from(list(_OPERATIONS)), children, children, st.floats(0.3, 2.0))


def expressions(max_leaves: int = 5, leaves: Mapping[str, ce.Energy] = LEAVES) -> st.SearchStrategy[ce.Energy]:
    """Returns a strategy for leaves and trees with every operator."""
    return st.recursive(st.sampled_from(sorted(leaves)).map(leaves.__getitem__), _join, max_leaves=max_leaves)


def points(count: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(seed), dtype=DTYPE)


def t(*values: float) -> Tensor:
    return torch.tensor(values, dtype=DTYPE)


@pytest.fixture
def base() -> ce.Energy:
    """A wide normal as the base of relative energies."""
    return ce.as_energy(normal(0.0, 2.0), name="base")


def network(seed: int = 0, width: int = 8) -> nn.Sequential:
    """Returns a network with one output, in float32."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 1), nn.Flatten(0))


def quadratic(x: Tensor) -> Tensor:
    return x.square().sum(1) / 2
