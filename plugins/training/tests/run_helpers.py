"""Objectives, callbacks and trainers for the tests of runs."""

import csv

import pytest
import safetensors.torch
import torch
from torch import nn

from composable_energy_training import Callback, Checkpoints, Loss, Monitor, Objective, Optimizer, Trainer

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


class Noted(Callback):
    """Records steps, rates and alerts."""

    def __init__(self):
        self.steps, self.rates, self.alerts = [], [], []

    def on_step(self, trainer, scalars):
        self.steps.append((trainer.attempt, trainer.step))
        self.rates.append(trainer.rate)

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
        what = self.fail(batch.step, batch.noise.seed)
        if what is not None:
            value = value * what if isinstance(what, float) else raise_error(what)
        return Loss(value, {name: torch.tensor(float(scalar(batch.step, batch.noise.seed))) for name, scalar in self.script.items()})

    def state(self):
        return {"count": self.count}

    def restore(self, state):
        self.count.copy_(state["count"])


def raise_error(error):
    raise error


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
