"""Contrastive divergence, plain and improved: gradients against closed forms and formulas, and equality between numbers of processes."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import composable_energy as ce
from composable_energy.errors import OptionError
from composable_energy_training import ContrastiveDivergence, ImprovedContrastiveDivergence
from plugins.training.tests.objective_helpers import IMPROVED, LANGEVIN, Bell, Net, batch_of, context, data, gradients


def test_with_draws_of_the_model_the_gradient_is_that_of_the_likelihood():
    """At the model N(mean, 1/p): dE/dmean = -p (x - mean) and dE/dlog p = p (x - mean)^2 / 2."""
    rows, model = 20_000, Bell(0.5, 4.0)
    exact = lambda like, noise: 0.5 + noise.normal(like) / 2
    objective = ContrastiveDivergence(steps=2, sampler="mala", options={"step_size": 0.1}, start=exact, persistent=False, l2=0.0)
    objective.begin(model, context(rows))
    x = data(rows, 1) + 1
    by_mean, by_precision = gradients(model, objective.loss(model, batch_of(x)))
    of_data = -4 * (x - 0.5).mean(), 2 * (x - 0.5).square().mean()
    assert abs(by_mean - (of_data[0] - 0)) < 4 * 2 / math.sqrt(rows)  # the standard deviation of p (x' - mean) is 2
    assert abs(by_precision - (of_data[1] - 0.5)) < 4 * math.sqrt(0.5 / rows)


def test_chains_are_those_of_sample_without_dropout_and_the_model_is_as_before():
    model, x = Net(dropout=0.5), data(4, 2)
    objective = ContrastiveDivergence(**LANGEVIN, buffer=4, fresh=0.0)
    objective.begin(model, context(4, (2,)))
    began, batch = objective.state()["slots"].clone(), batch_of(x)
    loss = objective.loss(model, batch)
    assert model.training and all(part.training for part in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    seed = batch.noise.child("chains 1").seed
    ended = model.sample((4, 2), sampler="langevin", steps=3, step_size=0.1, init=began, seed=seed)
    assert torch.equal(objective.state()["slots"], ended)
    assert not loss.scalars["energy"].requires_grad and loss.value.requires_grad
    assert not torch.equal(objective.loss(model, batch_of(x, 1)).value, objective.loss(model, batch_of(x, 2)).value)


def test_the_loss_and_its_scalars_are_those_of_the_formula():
    model, x = Net(), data(4, 2)
    objective = ContrastiveDivergence(**LANGEVIN, buffer=4, fresh=0.0, l2=0.7)
    objective.begin(model, context(4, (2,)))
    loss = objective.loss(model, batch_of(x))
    here, there = model(x), model(objective.state()["slots"])
    expected = (here - there).mean() + 0.7 * (here.square() + there.square()).mean()
    torch.testing.assert_close(loss.value, expected)
    results = {"energy": here.mean(), "energy_negative": there.mean(), "gap": (there - here).mean()}
    results |= {"magnitude": torch.cat([here, there]).abs().mean(), "diverged": torch.zeros((), dtype=torch.float64)}
    results |= {"spread": torch.stack([here, there]).var(1, correction=0).mean().sqrt()}
    assert loss.scalars.keys() == results.keys()
    for name, value in results.items():
        torch.testing.assert_close(loss.scalars[name], value.detach())


def test_acceptance_is_reported_for_samplers_that_reject():
    objective = ContrastiveDivergence(steps=2, sampler="mala", options={"step_size": 0.5}, buffer=4)
    objective.begin(Net(), context(4, (2,)))
    assert 0.5 < objective.loss(Net(), batch_of(data(4, 2))).scalars["acceptance"] <= 1
    assert objective.loss(Cliff(-math.inf), batch_of(data(4, 2))).scalars["acceptance"] == 0  # all processes report the same names


class Cliff(ce.Energy):
    """Not a number beyond an edge."""

    def __init__(self, edge: float) -> None:
        super().__init__()
        self.slope, self.edge = nn.Parameter(torch.ones((), dtype=torch.float64)), edge

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x[:, 0] < self.edge, self.slope * x.square().sum(1), torch.nan)


@pytest.mark.parametrize("edge", [0.5, -math.inf])
def test_a_chain_that_diverges_starts_again_and_the_others_continue(edge):
    rows, model = 40, Cliff(edge)
    start = lambda like, noise: noise.uniform(like)[:, None] if noise.step == 0 else torch.full_like(like, -0.25)
    objective = ContrastiveDivergence(steps=1, options={"step_size": 1e-12}, buffer=rows, fresh=0.0, start=start)
    objective.begin(model, context(rows))
    lost = objective.state()["slots"][:, 0] >= edge
    loss = objective.loss(model, batch_of(torch.full((rows, 1), -0.1, dtype=torch.float64)))
    assert loss.scalars["diverged"] == lost.double().mean() > 0
    assert torch.equal(objective.state()["slots"][:, 0] == -0.25, lost)
    assert loss.value.isfinite() == (edge > 0)  # without any finite energy the step is skipped


class Line(ce.Energy):
    """Points of one number around a plane over their condition, two numbers; its slopes are learnt."""

    def __init__(self, *slopes: float) -> None:
        super().__init__()
        self.event_shape = (1,)
        self.slopes = nn.Parameter(torch.tensor(slopes, dtype=torch.float64))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (x[:, 0] - y @ self.slopes).square() / 2


@pytest.mark.parametrize("kind", [ContrastiveDivergence, ImprovedContrastiveDivergence])
def test_a_condition_of_numbers_binds_each_chain_to_its_row(kind):
    """Without noise each step moves a chain towards its row's mean by the factor 1 - step / 2."""
    spot, x, model = data(4, 2, seed=1), data(4, 1), Line(0.5, -1.0)
    options = {"step_size": 0.4, "temperature": 0.0}
    objective = kind(steps=3, options=options, buffer=8, fresh=0.0, start=lambda like, noise: like + 5, condition="spot", l2=0.0)
    objective.begin(model, context(4))
    loss = objective.loss(model, batch_of(x, spot=spot))
    middle = spot @ model.slopes.detach()
    expected = middle + 0.8**3 * (5 - middle)
    slots = objective.state()["slots"][:, 0]
    torch.testing.assert_close(slots[slots != 5], expected)  # one of each row's two slots
    gap = ((expected - middle).square() - (x[:, 0] - middle).square()).mean() / 2
    torch.testing.assert_close(loss.scalars["gap"], gap)
    with pytest.raises(OptionError, match=r"spot is unknown \(NaN\)"):
        objective.loss(model, batch_of(x, spot=spot.where(spot > 0, torch.nan)))


def improved_once(model, x, step=50, **settings):
    """Returns the loss of a step, the points before the last step of chains, its noise, their nearest others, and those kept."""
    objective = ImprovedContrastiveDivergence(**{**IMPROVED, "buffer": 30, "entropy_after": 0, **settings})
    objective.begin(model, context(6, (2,)))
    batch, buffer = batch_of(x, step), objective.replay
    assert buffer is not None
    before = buffer.state()["slots"].clone()
    slots, chains = buffer.draw(batch.noise)
    noise = batch.noise.child(f"chains {step}")
    moved = model.sample((6, 2), sampler="langevin", steps=2, init=chains, seed=noise.seed, **IMPROVED["options"])
    nearest = buffer.nearest(
        model.sample((6, 2), sampler="langevin", steps=3, init=chains, seed=noise.seed, **IMPROVED["options"]), slots, batch.noise
    )
    assert torch.equal(buffer.state()["slots"], before)
    loss = objective.loss(model, batch)
    return loss, moved, noise.at(3).normal(x), nearest, objective.state()["slots"][slots]


def last_step_by_hand(model, moved, kick):
    y = moved.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(y).sum(), y, create_graph=True)
    return (y - 0.15 * gradient + math.sqrt(0.3 * 0.5) * kick).clamp(-0.8, 0.8)


def test_the_chains_of_the_improved_objective_are_those_of_langevin():
    model, x = Net(), data(6, 2)
    _, moved, kick, _, kept = improved_once(model, x)
    assert torch.equal(kept, last_step_by_hand(model, moved, kick).detach())
    settings: dict[str, Any] = {**IMPROVED, "buffer": 30, "condition": "kind"}
    model, kind = Net(labels=3, dropout=0.5), torch.arange(6) % 3
    whole = ImprovedContrastiveDivergence(**settings), ContrastiveDivergence(**settings)
    for objective in whole:
        objective.begin(model, context(6, (2,)))
        for step in (1, 2):
            objective.loss(model, batch_of(x, step, kind=kind))
    torch.testing.assert_close(*(objective.state()["slots"] for objective in whole), rtol=0, atol=1e-13)


def test_the_terms_of_the_last_step_reach_the_parameters_through_the_points_alone():
    x = data(6, 2)
    model, held = Net(), Net()
    held.requires_grad_(False)
    loss, moved, kick, nearest, _ = improved_once(model, x, kl=0.7, entropy=0.4)
    last = last_step_by_hand(model, moved, kick)
    far = (last - nearest).norm(dim=1).log().mean()
    here, there = model(x), model(last.detach())
    plain = (here - there).mean() + (here.square() + there.square()).mean()
    expected = plain + 0.7 * held(last).mean() - 0.4 * far
    torch.testing.assert_close(loss.value, expected)
    torch.testing.assert_close(loss.scalars["kl"], held(last).mean().detach())
    torch.testing.assert_close(loss.scalars["log_distance"], far.detach())
    for grad, wanted in zip(
        gradients(model, loss), torch.autograd.grad(expected, list(model.parameters()), allow_unused=True), strict=True
    ):
        torch.testing.assert_close(grad, torch.zeros_like(grad) if wanted is None else wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("condition", [None, "kind"])
def test_two_processes_give_the_improved_gradients_of_one(condition):
    rows, x, labels = 6, data(6, 2), torch.arange(6) % 3

    def run(share):
        model, results = Net(labels=3, dropout=0.0), []
        objective = ImprovedContrastiveDivergence(**{**IMPROVED, "fresh": 0.3}, buffer=31, entropy_after=0, condition=condition)
        objective.begin(model, context(rows, (2,), share))
        for step in (1, 2, 3):
            loss = objective.loss(model, batch_of(x[share.start : share.stop], step, share, kind=labels[share.start : share.stop]))
            results += [grad * len(share) / rows for grad in gradients(model, loss)]
        assert model.training and all(parameter.requires_grad for parameter in model.parameters())
        return results

    for grad, one, other in zip(*(run(share) for share in (range(rows), range(2), range(2, rows))), strict=True):
        torch.testing.assert_close(one + other, grad, rtol=0, atol=1e-12)
