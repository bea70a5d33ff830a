"""Models, batches and settings for the tests of objectives."""

import math
from typing import Any

import torch
from torch import Tensor, nn

import composable_energy as ce
from composable_energy.sampling.noise import Noise
from composable_energy_training import Batch, RankContext


def cast(anything: Any) -> Any:
    """Hides the type of a value from type checkers."""
    return anything


class Bell(ce.Energy):
    """A Gaussian with learnable mean and precision."""

    def __init__(self, mean: float = 0.0, precision: float = 1.0, dtype=torch.float64) -> None:
        super().__init__()
        self.event_shape = (1,)
        self.mean = nn.Parameter(torch.tensor(mean, dtype=dtype))
        self.log_precision = nn.Parameter(torch.tensor(math.log(precision), dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return (self.log_precision.exp() * (x - self.mean).square() / 2).sum(1)


class NoisyBell(ce.Energy):
    """The energy of a Gaussian with learnable mean and variance, with noise of any level."""

    def __init__(self, mean: float = 0.0, variance: float = 1.0) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(mean, dtype=torch.float64))
        self.log_variance = nn.Parameter(torch.tensor(math.log(variance), dtype=torch.float64))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return (x - self.mean).square().sum(1) / (2 * (self.log_variance.exp() + sigma.square()))


class Net(ce.Energy):
    """A small network of two coordinates and an optional label, with dropout that sampling must not use."""

    def __init__(self, labels: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        self.event_shape = (2,)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 1)).double()
            self.table = nn.Embedding(max(1, labels), 2).double()

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        x = x if y is None else x + self.table(y)
        return self.layers(x)[:, 0] + x.square().sum(1) / 2


def context(batch_size, shape=(1,), rows=None, dtype=torch.float64):
    return RankContext(batch_size, rows or range(batch_size), torch.Size(shape), torch.device("cpu"), dtype, seed=0)


def batch_of(x, step=1, rows=None, **labels):
    return Batch(x, labels, Noise(3, rows or range(len(x)), step))


def data(rows, *event, seed=0):
    return torch.randn(rows, *event, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradients(model, loss) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss.value, list(model.parameters()), allow_unused=True, materialize_grads=True)


class Heads(nn.Module):
    """A linear layer of points and levels."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.linear = nn.Linear(3, columns).double()

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.linear(torch.cat([x, sigma[:, None]], 1))


class Joint(ce.Energy):
    """An energy and classifier of three classes."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Heads(3)

    def logits(self, x: Tensor) -> Tensor:
        return self.net(x, x.square().sum(1) / 2)

    def forward(self, x: Tensor) -> Tensor:
        return -self.logits(x).logsumexp(1)


LANGEVIN: dict[str, Any] = {"steps": 3, "options": {"step_size": 0.1}}
IMPROVED: dict[str, Any] = {
    "steps": 3,
    "options": {"step_size": 0.3, "temperature": 0.5, "clamp": (-0.8, 0.8)},
    "fresh": 0.0,
    "start": "normal",
}


def prepare(objective, model=None):
    objective.begin(Net(3) if model is None else model, context(4, (2,)))
    return objective


def labelled(label):
    return batch_of(data(4, 2), kind=torch.tensor([0, 1, 2, label]))


def scattered():
    return Batch(data(2, 2), {}, Noise(0, (1, 3), 1))
