"""Objectives, callbacks and trainers for the tests of runs; models, batches and settings for the tests of objectives."""

import csv
import math
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import composable_energy as ce
from composable_energy.sampling.noise import Noise
from composable_energy_training import Batch, Callback, Checkpoints, Loss, Monitor, Objective, Optimizer, RankContext, Trainer

DATA = torch.rand(40, 3, generator=torch.Generator().manual_seed(0))


class Stop(Exception):  # noqa: N818
    """Ends a run from outside."""


class StopAt(Callback):
    """Ends a run at a step."""

    def __init__(self, step):
        self.at = step

    def on_step(self, trainer, scalars):
        if trainer.step == self.at:
            raise Stop


class StopAfter(Callback):
    """Ends a run after a number of steps, counted over all attempts."""

    def __init__(self, steps):
        self.left = steps

    def on_step(self, trainer, scalars):
        self.left -= 1
        if not self.left:
            raise Stop


def fit_until_stopped(trainer):
    with pytest.raises(Stop):
        trainer.fit()


class At(Callback):
    """Calls a function after a step."""

    def __init__(self, step, call):
        self.step, self.call = step, call

    def on_step(self, trainer, scalars):
        if trainer.step == self.step:
            self.call()


class Noted(Callback):
    """Records steps, scalars, rates, the first weights and alerts."""

    def __init__(self):
        self.steps, self.seen, self.rates, self.weights, self.alerts = [], [], [], [], []

    def on_step(self, trainer, scalars):
        self.steps.append((trainer.attempt, trainer.step))
        self.seen.append(scalars)
        self.rates.append(trainer.rate)
        self.weights.append(next(trainer.model.parameters()).detach().clone())

    def on_alert(self, trainer, alert):
        self.alerts.append(alert)


class Scripted(Objective):
    """A quadratic loss with scalars by functions of (step, seed); its state counts the steps."""

    def __init__(self, script, fail=None):
        self.script, self.fail = script, fail or (lambda step, seed: None)

    def begin(self, model, context):
        self.count = torch.zeros(1)

    def loss(self, model, batch):
        self.count += 1
        value = sum(parameter.square().sum() for parameter in model.parameters()) + 0 * batch.noise.normal(batch.x).sum()
        if (what := self.fail(batch.step, batch.noise.seed)) is not None:
            if not isinstance(what, float):
                raise what
            value = value * what
        return Loss(value, {name: torch.tensor(float(scalar(batch.step, batch.noise.seed))) for name, scalar in self.script.items()})

    def state(self):
        return {"count": self.count}

    def restore(self, state):
        self.count.copy_(state["count"])


def read_log(folder):
    """Returns the rows of `log.csv`."""
    with (folder / "log.csv").open() as file:
        return list(csv.DictReader(file))


def last(folder):
    """Returns the tensors of the last checkpoint."""
    return safetensors.torch.load_file(sorted((folder / "checkpoints").iterdir())[-1])


def network():
    torch.manual_seed(1)
    return nn.Linear(3, 3)


def trainer(objective, monitor=None, *, out=None, checkpoint_every=5, callbacks=(), steps=20, **optimizer):
    callbacks = [Checkpoints(out, checkpoint_every), monitor or Monitor(None), *callbacks]
    return Trainer(network(), objective, DATA, steps=steps, batch_size=8, optimizer=Optimizer(rate=0.01, **optimizer), callbacks=callbacks)


def same(one, other, **tolerance):
    """Checks that two models have the same weights, to the bit by default."""
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=name, **(tolerance or {"rtol": 0, "atol": 0}))


def train_in_float32(patch: pytest.MonkeyPatch, *modules: ModuleType) -> None:
    """Makes the trainers that some modules set up compute in float32: bfloat16 takes ten times as long where the processor has none."""

    def trainer(*arguments: Any, **options: Any) -> Trainer:
        return Trainer(*arguments, **{**options, "optimizer": replace(options["optimizer"], precision="float32")})

    for module in modules:
        patch.setattr(module, "Trainer", trainer)


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
