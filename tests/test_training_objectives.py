"""Objectives of training, each against a closed form, finite differences, or itself on other processes."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import composable_energy as ce
from composable_energy.errors import OptionError
from composable_energy.noise import Noise
from composable_energy.training import Batch, ContrastiveDivergence, Place

CPU = torch.device("cpu")


def cast(anything: Any) -> Any:
    """What a caller without a type checker may pass."""
    return anything


class Bell(ce.Energy):
    """A Gaussian with a mean and a precision that are learnt."""

    def __init__(self, mean: float = 0.0, precision: float = 1.0, dtype=torch.float64) -> None:
        super().__init__()
        self.event_shape = (1,)
        self.mean = nn.Parameter(torch.tensor(mean, dtype=dtype))
        self.log_precision = nn.Parameter(torch.tensor(math.log(precision), dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return (self.log_precision.exp() * (x - self.mean).square() / 2).sum(1)


class Net(ce.Energy):
    """A small network, with dropout that sampling must not see, for points of two numbers and perhaps a label."""

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


def place(batch_size, shape=(1,), rows=None, dtype=torch.float64):
    return Place(batch_size, rows or range(batch_size), torch.Size(shape), CPU, dtype, seed=0)


def batch_of(x, step=1, rows=None, **labels):
    return Batch(x, labels, Noise(3, rows or range(len(x)), step))


def data(rows, *event, seed=0):
    return torch.randn(rows, *event, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradients(model, loss):
    return torch.autograd.grad(loss.value, list(model.parameters()), allow_unused=True, materialize_grads=True)


# Contrastive divergence ---------------------------------------------------------------------------------------------------------------


def test_with_draws_of_the_model_the_gradient_is_that_of_the_likelihood():
    """At the model N(mean, 1/p): dE/dmean = -p (x - mean) and dE/dlog p = p (x - mean)^2 / 2."""
    rows, model = 20_000, Bell(0.5, 4.0)
    exact = lambda like, noise: 0.5 + noise.normal(like) / 2
    objective = ContrastiveDivergence(steps=2, sampler="mala", options={"step_size": 0.1}, start=exact, persistent=False, l2=0.0)
    objective.begin(model, place(rows))
    x = data(rows, 1) + 1
    by_mean, by_precision = gradients(model, objective.loss(model, batch_of(x)))
    of_data = -4 * (x - 0.5).mean(), 2 * (x - 0.5).square().mean()
    assert abs(by_mean - (of_data[0] - 0)) < 4 * 2 / math.sqrt(rows)  # the standard deviation of p (x' - mean) is 2
    assert abs(by_precision - (of_data[1] - 0.5)) < 4 * math.sqrt(0.5 / rows)


@pytest.mark.parametrize(
    ("sampler", "options", "settings"),
    [
        ("langevin", {"step_size": 0.03}, {"steps": 10}),
        ("mala", {"step_size": 0.5}, {"steps": 3}),
        ("hmc", {"step_size": 0.4, "leapfrogs": 3}, {"steps": 2}),
        ("mala", {"step_size": 0.5}, {"steps": 3, "persistent": False, "start": "data"}),
    ],
)
def test_training_finds_the_mean_and_the_variance_of_the_data(sampler, options, settings):
    rows, model = 256, Bell()
    x = 1.5 + 0.7 * data(rows, 1)
    objective = ContrastiveDivergence(
        sampler=sampler, options=options, buffer=rows, fresh=0.0, start=settings.pop("start", "normal"), l2=0.0, **settings
    )
    objective.begin(model, place(rows))
    optimizer, found = torch.optim.Adam(model.parameters(), 0.03), []
    for step in range(1, 401):
        optimizer.zero_grad()
        objective.loss(model, batch_of(x, step)).value.backward()
        optimizer.step()
        if step > 200:
            found.append(torch.stack([model.mean.detach(), (-model.log_precision.detach()).exp()]))
    mean, variance = torch.stack(found).mean(0)
    assert abs(mean - x.mean()) < 2 * 0.7 / math.sqrt(rows)
    assert abs(variance - x.var()) < 2 * 0.49 * math.sqrt(2 / rows)


LANGEVIN: dict[str, Any] = {"steps": 3, "options": {"step_size": 0.1}}


@pytest.mark.parametrize("settings", [{}, {"condition": "kind"}, {"persistent": False}, {"sampler": "mala"}], ids=str)
def test_two_processes_give_the_gradients_of_one(settings):
    rows, labels = 10, torch.arange(10) % 3
    x = data(rows, 2)
    settings = {**LANGEVIN, "buffer": 43, "fresh": 0.3, **settings}

    def run(share):
        model, objective = Net(labels=3), ContrastiveDivergence(**settings)
        objective.begin(model, place(rows, (2,), share))
        told = []
        for step in (1, 2, 3):
            loss = objective.loss(model, batch_of(x[share.start : share.stop], step, share, kind=labels[share.start : share.stop]))
            told.append([grad * len(share) / rows for grad in gradients(model, loss)])
        return told

    whole, *shares = (run(share) for share in (range(rows), range(4), range(4, rows)))
    for of_all, of_one, of_other in zip(whole, *shares, strict=True):
        for grad, one, other in zip(of_all, of_one, of_other, strict=True):
            torch.testing.assert_close(one + other, grad, rtol=0, atol=1e-12)


def test_a_restored_objective_goes_on_with_the_same_bits():
    x, model = data(6, 2), Net()

    def begun():
        objective = ContrastiveDivergence(**LANGEVIN, buffer=20)
        objective.begin(model, place(6, (2,)))
        return objective

    first, second = begun(), begun()
    for step in (1, 2, 3):
        first.loss(model, batch_of(x, step))
    second.restore({name: value.clone() for name, value in first.state().items()})
    assert torch.equal(first.loss(model, batch_of(x, 4)).value, second.loss(model, batch_of(x, 4)).value)
    assert all(torch.equal(value, second.state()[name]) for name, value in first.state().items())


def test_chains_are_those_of_sample_without_dropout_and_the_model_is_as_before():
    model, x = Net(dropout=0.5), data(4, 2)
    objective = ContrastiveDivergence(**LANGEVIN, buffer=4, fresh=0.0)
    objective.begin(model, place(4, (2,)))
    began, batch = objective.state()["slots"].clone(), batch_of(x)
    loss = objective.loss(model, batch)
    assert model.training and all(part.training for part in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    seed = batch.noise.child("chains 1").seed
    ended = model.sample((4, 2), sampler="langevin", steps=3, step_size=0.1, init=began, seed=seed)
    assert torch.equal(objective.state()["slots"], ended)
    assert not loss.scalars["energy"].requires_grad and loss.value.requires_grad
    assert not torch.equal(objective.loss(model, batch_of(x, 1)).value, objective.loss(model, batch_of(x, 2)).value)


def test_the_loss_and_its_scalars_are_what_they_say():
    model, x = Net(), data(4, 2)
    objective = ContrastiveDivergence(**LANGEVIN, buffer=4, fresh=0.0, l2=0.7)
    objective.begin(model, place(4, (2,)))
    loss = objective.loss(model, batch_of(x))
    here, there = model(x), model(objective.state()["slots"])
    expected = (here - there).mean() + 0.7 * (here.square() + there.square()).mean()
    torch.testing.assert_close(loss.value, expected)
    told = {"energy": here.mean(), "energy_negative": there.mean(), "gap": (there - here).mean()}
    told |= {"magnitude": torch.cat([here, there]).abs().mean(), "diverged": torch.zeros((), dtype=torch.float64)}
    assert loss.scalars.keys() == told.keys()
    for name, value in told.items():
        torch.testing.assert_close(loss.scalars[name], value.detach())


def test_acceptance_is_told_where_there_is_one():
    objective = ContrastiveDivergence(steps=2, sampler="mala", options={"step_size": 0.5}, buffer=4)
    objective.begin(Net(), place(4, (2,)))
    assert 0.5 < objective.loss(Net(), batch_of(data(4, 2))).scalars["acceptance"] <= 1


class Cliff(ce.Energy):
    """Not a number beyond an edge."""

    def __init__(self, edge: float) -> None:
        super().__init__()
        self.slope, self.edge = nn.Parameter(torch.ones((), dtype=torch.float64)), edge

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x[:, 0] < self.edge, self.slope * x.square().sum(1), torch.nan)


@pytest.mark.parametrize("edge", [0.5, -math.inf])
def test_a_chain_that_diverges_starts_again_and_the_rest_goes_on(edge):
    rows, model = 40, Cliff(edge)
    start = lambda like, noise: noise.uniform(like)[:, None] if noise.step == 0 else torch.full_like(like, -0.25)
    objective = ContrastiveDivergence(steps=1, options={"step_size": 1e-12}, buffer=rows, fresh=0.0, start=start)
    objective.begin(model, place(rows))
    lost = objective.state()["slots"][:, 0] >= edge
    loss = objective.loss(model, batch_of(torch.full((rows, 1), -0.1, dtype=torch.float64)))
    assert loss.scalars["diverged"] == lost.double().mean() > 0
    assert torch.equal(objective.state()["slots"][:, 0] == -0.25, lost)
    assert loss.value.isfinite() == (edge > 0)  # with no finite energy anywhere it is for the monitor to act


def test_a_condition_binds_data_and_chains():
    labels, x = torch.tensor([0, 1, 2, 1]), data(4, 2)
    model = Net(labels=3)
    objective = ContrastiveDivergence(**LANGEVIN, buffer=4, fresh=0.0, condition="kind", l2=0.0)
    objective.begin(model, place(4, (2,)))
    loss = objective.loss(model, batch_of(x, kind=labels))
    torch.testing.assert_close(loss.value, (model(x, y=labels) - model(objective.state()["slots"], y=labels)).mean())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ContrastiveDivergence(steps=0), "steps must be at least 1, got 0"),
        (lambda: ContrastiveDivergence(steps=cast(2.5)), "steps must be a whole number, got 2.5"),
        (lambda: ContrastiveDivergence(steps=1, l2=-1), "l2 must be at least 0, got -1"),
        (lambda: ContrastiveDivergence(steps=1, start=cast("gaussian")), "got 'gaussian'"),
        (lambda: ContrastiveDivergence(steps=1, start="data"), "persistent=False"),
        (lambda: began(ContrastiveDivergence(steps=1)), "langevin needs step_size"),
        (lambda: began(ContrastiveDivergence(steps=1, options={"step": 1})), "langevin has no option step"),
        (lambda: began(ContrastiveDivergence(**LANGEVIN, buffer=3)), "capacity is 3, the batch size 4"),
        (lambda: began(ContrastiveDivergence(**LANGEVIN), nn.Linear(2, 1)), "trains an energy, got Linear"),
        (lambda: ContrastiveDivergence(**LANGEVIN).loss(Net(), batch_of(data(4, 2))), "has not begun"),
        (lambda: began(ContrastiveDivergence(**LANGEVIN, condition="hair")).loss(Net(3), labelled(0)), "no attribute hair; they have kind"),
        (lambda: began(ContrastiveDivergence(**LANGEVIN, condition="kind")).loss(Net(3), labelled(-1)), "kind is unknown"),
        (lambda: began(ContrastiveDivergence(**LANGEVIN)).loss(Net(), scattered()), "follow each other"),
    ],
)
def test_bad_input_is_told(make, message):
    with pytest.raises(OptionError, match=message):
        make()


def began(objective, model=None):
    objective.begin(model or Net(3), place(4, (2,)))
    return objective


def labelled(label):
    return batch_of(data(4, 2), kind=torch.tensor([0, 1, 2, label]))


def scattered():
    return Batch(data(2, 2), {}, Noise(0, (1, 3), 1))


def test_an_unknown_sampler_is_told():
    with pytest.raises(ce.errors.PluginNotFound, match="langvin"):
        began(ContrastiveDivergence(steps=1, sampler="langvin"))
