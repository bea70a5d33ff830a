"""What counts once: copies of a base while their numbers are equal, and an event however its weight of 1 is written."""

import copy
import pickle

import pytest
import torch
from torch import distributions as td
from torch import nn

import composable_energy as ce
from composable_energy.errors import ContradictionError, ExpressionError

X = torch.tensor([[0.3, -1.0], [2.0, 0.5], [-0.7, 0.1]])


def network():
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1), nn.Flatten(0))


def left(x):
    return (x + 1).square().sum(1)


def right(x):
    return (x - 1).square().sum(1)


def pair(base, other):
    """Two relative energies over a base and its copy, and a function of the sum of their energies minus one base."""
    a, b = (ce.as_energy(f, event_shape=(2,)).relative_to(over) for f, over in ((left, base), (right, other)))
    return a, b


def first(energy):
    return next(energy.parameters())


def step(energy):
    optimizer = torch.optim.SGD(energy.parameters(), 0.1)
    energy(X).sum().backward()
    optimizer.step()


CHANGES = {
    "data.copy_": lambda energy: first(energy).data.copy_(torch.ones(4, 2)),
    "numpy": lambda energy: first(energy).detach().numpy().__iadd__(1.0),
    "optimizer": step,
    "a buffer": lambda energy: energy.register_buffer("shift", torch.ones(1)),
    "another layer": lambda energy: next(iter(energy.children())).append(nn.Identity()),
    "load_state_dict": lambda energy: energy.load_state_dict({name: value + 1 for name, value in energy.state_dict().items()}),
}


@pytest.mark.full
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_copy_that_was_changed_in_any_way_is_not_counted_with_its_original(change):
    base = ce.as_energy(network(), event_shape=(2,))
    other = copy.deepcopy(base)
    a, b = pair(base, other)
    both = a & b
    torch.testing.assert_close(both(X), left(X) + right(X) - base(X))
    kept = pickle.loads(pickle.dumps(both)), copy.deepcopy(both)
    change(other)
    for stale in (both, 2 * both, copy.deepcopy(both), pickle.loads(pickle.dumps(both)), copy.deepcopy(both).double()):
        with pytest.raises(ExpressionError, match="counts two copies of one"):
            stale(X.double() if first(stale).dtype == torch.float64 else X)
    with pytest.raises(ExpressionError, match="counts two copies of one"):
        both.sample((4, 2), sampler="langevin", step_size=0.01, steps=1, seed=0)
    torch.testing.assert_close((a & b)(X), left(X) + right(X))  # two bases, each once, and evidence without them
    for same in kept:
        torch.testing.assert_close(same(X), kept[0](X))


def test_copies_that_are_changed_alike_and_one_object_stay_one_base():
    base = ce.as_energy(network(), event_shape=(2,))
    other = copy.deepcopy(base)
    both, shared = (lambda a, b: a & b)(*pair(base, other)), (lambda a, b: a & b)(*pair(base, base))
    for energy in (base, other):
        first(energy).data.copy_(torch.ones(4, 2))
    for energy in (both, shared):
        torch.testing.assert_close(energy(X), left(X) + right(X) - base(X))
    base.to(torch.float64)  # converted, and the same up to rounding
    torch.testing.assert_close((shared(X.double())), left(X.double()) + right(X.double()) - base(X.double()))


def test_copies_of_networks_of_events_buffers_and_distributions_are_compared_too():
    base = ce.as_energy(td.Normal(torch.zeros(2), 1.0))
    logits = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).eval()
    red = ce.ClassifierEnergy(logits, 0, base, labels=3)
    other = copy.deepcopy(red)
    both = red & other
    torch.testing.assert_close(both(X), red(X))
    other.logits[1].running_mean.data.fill_(1.0)
    with pytest.raises(ExpressionError, match="counts two copies of one"):
        both(X)
    moved = copy.deepcopy(base)
    both = (lambda a, b: a & b)(*pair(base, moved))
    both(X)
    moved.distribution.loc.numpy()[:] = 1.0
    with pytest.raises(ExpressionError, match="counts two copies of one"):
        both(X)


BASE = ce.as_energy(td.Normal(torch.zeros(2), 1.0))
RED = ce.ClassifierEnergy(nn.Linear(2, 3), 0, BASE, labels=3)
ONES = {"1 * A": lambda a: 1 * a, "2 * (A / 2)": lambda a: 2 * (a / 2), "twice": lambda a: (1 * a).sharpened(1) / 1}


@pytest.mark.parametrize("weigh", ONES.values(), ids=ONES)
def test_an_event_with_a_weight_of_one_is_the_event(weigh):
    for term in (weigh(RED), copy.deepcopy(weigh(RED)), pickle.loads(pickle.dumps(weigh(RED)))):
        for same in (term & RED, RED & term, term | RED, ~~term, weigh(term)):
            torch.testing.assert_close(same(X), RED(X))
        torch.testing.assert_close((~term)(X), (~RED)(X))
        torch.testing.assert_close((term | ~RED).evidence(X), torch.zeros(3), atol=1e-6, rtol=0)
        with pytest.raises(ContradictionError):
            (term & ~RED)(X)
        with pytest.raises(ContradictionError):
            (term ^ RED)(X)
