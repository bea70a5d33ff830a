"""A small run for the tests of resumption."""

import torch
from torch import nn

from composable_energy_training import Loss, Objective, Trainer
from plugins.training.tests.run_helpers import DATA


class Fit(Objective):
    """Mean squared error, with settings of several kinds: a number, a function, an object, another objective."""

    def __init__(self, penalty=1.0, start=None, part=None):
        self.penalty, self.start, self.part = penalty, start, part

    def loss(self, model, batch):
        return Loss((model(batch.x) - batch.x).square().mean() * self.penalty)


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3))


def trainer(out, objective=None, model=None, data=DATA, **options):
    options = {"steps": 12, "batch_size": 8, "checkpoint_every": 4, **options}
    return Trainer(network() if model is None else model, objective or Fit(), data, out=out, **options)


def same(one, other):
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
